"""Evaluate merged language models on every task's test set, beside the base, each expert, and the experts' ceiling."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from core.evaluate.rows import Row
from core.hashing import code_version
from core.merge.experts import Expert
from core.merge.language import in_memory, language_objectives
from core.merge.language_suite import Hits, answered, hit_rows, individual_scores
from core.models.load import Source, load_causal
from core.models.score import autocast
from core.progress import progress
from tasks.evaluate_merges import CEILING, CORRECT, EvaluateConfig, labels_behind, tested
from tasks.load_model import opened
from tasks.merge_recipe import MODEL
from tasks.merge_static import experts_of, vectors_of
from tasks.stage import Artifact, Output, stage

MODULES = ["core.merge.language_suite", "core.merge.static"]
BASE = "base"


@stage("evaluate-language-merges", modules=MODULES)
def evaluate_language(
    out: Output,
    config: EvaluateConfig,
    base: Artifact,
    experts: Mapping[str, Artifact],
    merged: Mapping[str, Artifact],
    spent: Mapping[str, Artifact],
) -> None:
    """Score every model on all tasks' test sets; accuracy (exact match) and accuracy relative to the experts.

    ``spent``: for each merged model the artifact of the stage that chose its recipe; its budget is the row's.
    """
    found = experts_of(experts)
    results = _unmerged(base, found, config)
    for name in progress(merged, "test", unit="model"):
        folder = merged[name].folder / MODEL
        results[name] = _of(load_causal(Source(name, folder, merged[name].sha256)), found, config)
    individual = individual_scores(results[CEILING])
    rows: list[Row] = []
    for method, hits in results.items():
        facts: dict[str, Any] = {"seed": config.seed, "oracle": "test", "version": code_version(MODULES)}
        facts["budget"] = labels_behind(method, found) | (spent[method].facts()["budget"] if method in spent else {})
        facts["inputs"] = {"model": merged[method].sha256} if method in merged else {"base": base.sha256}
        rows += hit_rows(method, hits, individual, **facts)
    out.rows(rows)
    stored = {f"{m}/{t}": h.astype(np.uint8) for m, hits in results.items() for t, h in hits.items()}
    save_file(stored, out.folder / CORRECT)
    out.facts["items"] = {e.task: tested(e, config).sha256 for e in found}
    out.budget({"task_examples": float(sum(h.size for h in stored.values()))})


def _unmerged(base: Artifact, experts: list[Expert], config: EvaluateConfig) -> dict[str, Hits]:
    """The base, each expert on all tasks, and the experts on their own tasks; merged in memory, nothing is written."""
    import torch

    lm, raw = load_causal(opened(base)), vectors_of(base, experts)
    model = in_memory(lm.model, raw, [0] * len(raw.tensors), torch.float32)
    alone = {f"expert {name}": weight[:, None] for name, weight in zip(raw.names, np.eye(len(raw.names)), strict=True)}
    results: dict[str, Hits] = {}
    for name, weights in progress({BASE: np.zeros((len(raw.names), 1)), **alone}.items(), "test", unit="model"):
        model.write(weights)
        results[name] = _of(lm, experts, config)
    results[CEILING] = {e.task: results[f"expert {e.task}"][e.task] for e in experts}
    return results


def _of(lm: Any, experts: list[Expert], config: EvaluateConfig) -> Hits:
    tasks = language_objectives(experts, lm.tokenizer, "test", config.test_examples, config.seed)
    with autocast(next(lm.model.parameters()).device):
        return answered(lm.model, tasks)
