"""Take a model that was fine-tuned elsewhere as the expert of a task, beside those that the flow trains itself.

Merging needs the encoder and a linear head on its pooled embeddings. The heads of fine-tuned checkpoints are of many
kinds, so a linear one is fitted on the frozen expert, from training labels that are counted like those of any expert.

That head must also serve the merged encoder, which it never saw. On five archive tasks (validation, 1,000 labels each)
the usual probe, on standardised coordinates, was as good as a trained head on the expert and 5 points below it on the
merge: it reads directions of little variance, which merging turns first. A strong penalty on plain coordinates loses 2.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from safetensors.numpy import save_file
from safetensors.torch import load_file
from safetensors.torch import save_file as save_tensors

from core.config import Config
from core.data.tasks import load_task
from core.hashing import sha256_file
from core.merge.experts import CARD, HEAD, TASK, WHOLE, fit_probe, load_expert
from core.merge.one_base import POOLER, Descent
from core.models.load import Source, load_encoder
from core.models.quiet import quietly
from core.state import write_json
from tasks.costed import costed
from tasks.load_model import opened
from tasks.plain_encoder import WEIGHTS
from tasks.stage import Artifact, Output, stage

PENALTY = 1.0  # of the mean loss, on embeddings of unit mean variance; a third and three times made no difference


class TakeExpertConfig(Config):
    """Whose expert it is, and how its head is fitted."""

    task: str = Field(description="task the model was fine-tuned on")
    examples: int = Field(1000, ge=8, description="labelled training examples for its head")
    max_length: int = Field(64, ge=8, description="longest text in tokens (pairs: both together)")
    seed: int = Field(0, description="draw of the examples")


@stage("take-expert", modules=["core.merge.experts"])
@costed
def take_expert(out: Output, config: TakeExpertConfig, model: Artifact, base: Artifact, data: Artifact) -> None:
    """Write the model as an expert of the base; one that a flow made before keeps its head and its labels.

    Raises:
        ValueError: it is of another base, reads other tokens, equals the base, or is an expert of another task.
    """
    task, source, origin = load_task(config.task), opened(model), opened(base)
    drawn = task.splits().train.sample(config.examples, config.seed)
    labels = np.asarray(drawn.labels, dtype=np.int64)
    if len(set(drawn.labels)) < 2:
        raise ValueError(f"task {task.name!r}: the {len(drawn)} training examples are of one class")
    expert, frozen = _open(source, config), _open(origin, config)
    if expert.tokenizer.get_vocab() != frozen.tokenizer.get_vocab():
        raise ValueError(f"{source.name} reads other tokens than the base {origin.name}: it was not fine-tuned from it")
    quietly(expert.backbone.save_pretrained, out.folder, max_shard_size=WHOLE)
    expert.tokenizer.save_pretrained(out.folder)
    _beside(out.folder / WEIGHTS, Descent(source.name, source.path, origin.name, base.folder))
    card = _card(source.path, task.name)
    if card is None:
        heads = {"": fit_head(expert, expert.tokenize(drawn.texts, drawn.pairs), labels, len(task.labels))}
        heads["probe."] = fit_probe(frozen, frozen.tokenize(drawn.texts, drawn.pairs), labels, len(task.labels))
        parts = {f"{at}{part}": t for at, head in heads.items() for part, t in zip(("weight", "bias"), head)}
        save_file(parts, out.folder / HEAD)
        card = {"classes": len(task.labels), "train_sha256": drawn.sha256, "train_labels": len(drawn)}
        card |= {"train_examples": 0, "config": config.model_dump(mode="json")}
    else:
        (out.folder / HEAD).write_bytes((source.path / HEAD).read_bytes())
    card |= {"task": task.name, "model": source.name, "base": origin.name, "base_sha256": base.sha256}
    write_json(out.folder / CARD, card | {"weights_sha256": sha256_file(out.folder / WEIGHTS)})
    write_json(out.folder / TASK, task.model_dump(mode="json", by_alias=True))
    out.budget({"train_labels": card["train_labels"], "train_examples": card["train_examples"]})


def fit_head(encoder: Any, tokenized: Any, labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """A linear head that reads the directions in which the expert varies most: weight float32 [C, H] and bias [C].

    Logistic regression with a strong penalty, then one factor on its logits by maximum likelihood, because the penalty
    leaves them near zero. Classes that do not occur get a bias that never wins.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax
    from sklearn.linear_model import LogisticRegression

    from core.models.score import score

    x = score(encoder, tokenized, description="embed for the head")[0].astype(np.float64)
    size = x.std()
    fitted = LogisticRegression(C=1 / (PENALTY * len(labels)), max_iter=300).fit(x / size, labels)
    coef, intercept, present = fitted.coef_ / size, fitted.intercept_, fitted.classes_
    if len(present) == 2:
        coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
    logits, right = x @ coef.T + intercept, np.searchsorted(present, labels)

    def loss(power: float) -> float:
        return -log_softmax(np.exp(power) * logits, axis=1)[np.arange(len(right)), right].mean()

    factor = np.exp(minimize_scalar(loss, bounds=(0, 7), method="bounded").x)
    weight, bias = np.zeros((classes, x.shape[1])), np.full(classes, -1e4)
    weight[present], bias[present] = factor * coef, factor * intercept
    return weight.astype(np.float32), bias.astype(np.float32)


def _open(source: Source, config: TakeExpertConfig):
    encoder = load_encoder(source)
    encoder.max_length = min(config.max_length, encoder.max_length)
    return encoder


def _card(folder: Path, task: str) -> dict | None:
    """The card of an expert that a flow made; None for any other model."""
    if not (folder / CARD).is_file():
        return None
    expert = load_expert(folder)
    if expert.task != task:
        raise ValueError(f"{folder} is an expert of task {expert.task!r}, not of {task!r}")
    expert.head()  # it says what is missing
    return json.loads((folder / CARD).read_text())


def _beside(path: Path, descent: Descent) -> None:
    """Leave the tensors of the base in ``path``, those that the encoder does not use (a pooler) as the base has them.

    Raises:
        ValueError: tensors missing or of another shape, NaN, weights too far from the base's, or equal to them.
    """
    own, start = load_file(path), load_file(Path(descent.base_folder) / WEIGHTS)
    floats = [{t: v for t, v in side.items() if v.is_floating_point()} for side in (start, own)]
    descent.prefix(*[{t: tuple(v.shape) for t, v in side.items()} for side in floats], heads=False)
    for tensor, value in floats[0].items():
        if not POOLER.search(tensor):
            descent.add(tensor, value.float().numpy(), (own[tensor].float() - value.float()).numpy())
    descent.check()
    save_tensors({t: own.get(t, v) for t, v in start.items()}, path, metadata={"format": "pt"})
