"""Evaluate merged models on every task's test set, beside the base, each expert, and the individual ceiling."""

from collections.abc import Mapping

import numpy as np
from pydantic import Field
from safetensors.numpy import load_file, save_file
from scipy.special import softmax

from core.config import Config
from core.data.examples import Examples
from core.evaluate.rows import Row
from core.hashing import code_version
from core.merge.align import Head, embed
from core.merge.experts import Expert
from core.merge.suite import Predictions, objectives
from core.models.load import load_encoder
from core.models.score import autocast
from core.progress import progress
from tasks.align_heads import SUFFIX, aligned_heads, model_folder, texts_read
from tasks.hits import Hits
from tasks.merge_static import experts_of
from tasks.normalised import normalised_rows
from tasks.quote_mistakes import keep_answers
from tasks.stage import Artifact, Output, stage

MODULES = ["core.merge.suite", "core.merge.static"]
CORRECT = "correct.safetensors"
CEILING, PROBE, BASE = "individual experts", "frozen base with probe", "base with heads"


class EvaluateConfig(Config):
    """On how much test data."""

    test_examples: int | None = Field(500, ge=20, description="test examples a task; none takes all")
    max_length: int = Field(64, ge=8, description="longest text in tokens")
    seed: int = Field(0, description="draw of test examples")


@stage("evaluate-merges", modules=MODULES)
def evaluate_merges(
    out: Output,
    config: EvaluateConfig,
    base: Artifact,
    experts: Mapping[str, Artifact],
    merged: Mapping[str, Artifact],
    spent: Mapping[str, Artifact],
    aligned: Artifact | None = None,
) -> None:
    """Score every model on all tasks' test sets; accuracy, F1, ECE, and accuracy relative to the individual experts.

    ``spent``: for each merged model the artifact of the stage that chose its recipe; its budget is the row's.
    ``aligned``: aligned heads of some merged models, which are scored with them, too. Of an expert that got no test
    item right nothing is relative: ``normalised`` of its task is undefined, its mean over the others.
    """
    found = experts_of(experts)
    probes, own = ({e.task: Head(*e.head(probe=p)) for e in found} for p in (True, False))
    results = dict(zip((PROBE, BASE), _of(base, found, config, probes, own), strict=True))
    singles = {e.task: _of(experts[e.task], found, config, own)[0] for e in found}
    results[CEILING] = {e.task: singles[e.task][e.task] for e in found}
    results |= {f"expert {name}": r for name, r in singles.items()}
    heads, source = aligned_heads(aligned) if aligned is not None else {}, {m: m for m in merged}
    for name in progress(merged, "test", unit="model"):
        results[name], *more = _of(merged[name], found, config, own, *([own | heads[name]] if name in heads else []))
        if more:
            source[name + SUFFIX] = name
            results[name + SUFFIX] = more[0]
    individual = {t: float(p.correct.mean()) for t, p in results[CEILING].items()}
    rows: list[Row] = []
    for method, r in results.items():
        facts = {"seed": config.seed, "oracle": "test", "version": code_version(MODULES)}
        chosen = spent[source[method]].facts()["budget"] if method in source else {}
        facts["budget"] = labels_behind(method, found) | chosen
        facts["budget"] |= texts_read(aligned) if method.endswith(SUFFIX) else {}
        facts["inputs"] = {"model": merged[source[method]].sha256} if method in source else {"base": base.sha256}
        rows += normalised_rows(method, r, individual, **facts)
    out.rows(rows)
    hits = {f"{m}/{t}": p.correct.astype(np.uint8) for m, r in results.items() for t, p in r.items()}
    save_file(hits, out.folder / CORRECT)
    keep_answers(out.folder, {(m, t): p.probabilities for m in source for t, p in results[m].items()})
    out.facts["items"] = {e.task: tested(e, config).sha256 for e in found}
    out.budget({"task_examples": float(sum(h.size for h in hits.values()))})


def hits_of(evaluated: Artifact, method: str) -> dict[str, Hits]:
    """Task -> which of its test examples ``method`` answered rightly."""
    stored, items = load_file(evaluated.folder / CORRECT), evaluated.facts()["items"]
    return {task: Hits(digest, stored[f"{method}/{task}"].astype(bool)) for task, digest in items.items()}


def _of(
    model: Artifact, experts: list[Expert], config: EvaluateConfig, *heads: Mapping[str, Head]
) -> list[dict[str, Predictions]]:
    """The model's predictions with each set of heads; it reads every text once."""
    encoder = load_encoder(model_folder(model))
    encoder.max_length = min(config.max_length, encoder.max_length)
    tasks = objectives(encoder, experts, "test", config.test_examples, config.seed)
    with autocast(encoder.device):
        pooled = embed(encoder, tasks)
    return [
        {t: Predictions(softmax(own[t].logits(x), axis=1), tasks[t].labels) for t, x in pooled.items()} for own in heads
    ]


def tested(expert: Expert, config: EvaluateConfig) -> Examples:
    """The test examples of an expert's task, as :func:`core.merge.suite.objectives` draws them."""
    test = expert.definition.splits().test
    return test if config.test_examples is None else test.sample(config.test_examples, config.seed)


def labels_behind(method: str, experts: list[Expert]) -> dict[str, float]:
    """Training labels behind a method: those of the experts it uses."""
    used = [e for e in experts if method == f"expert {e.task}"] or experts
    return {"train_labels": float(sum(e.card["train_labels"] for e in used))}
