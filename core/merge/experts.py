"""Experts: one encoder fine-tuned on one task, with its head, as a folder that a merge can read.

A folder holds the encoder in Hugging Face form (``config.json``, ``model.safetensors``, tokenizer), the head in
``head.safetensors`` (``weight`` [C, H], ``bias`` [C], and the same of a probe on the frozen base: ``probe.weight``,
``probe.bias``) and ``expert.json`` (task, base and their hashes, configuration, cost). Embeddings stay frozen, so
experts of one base differ in their layers only.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from core.config import Config
from core.hashing import content_key
from core.merge.one_base import longer_by
from core.merge.tensors import SINGLE, open_checkpoint
from core.models.train import TrainConfig
from core.state import Cache, write_json

CARD = "expert.json"
TASK = "task.json"
HEAD = "head.safetensors"
RECIPE = 2  # bumped when training itself changes; experts cost minutes and survive edits elsewhere
WHOLE = 10**15  # bytes: one file whatever the size
KINDS = ("single", "pair")


class ExpertConfig(Config):
    """How an expert is fine-tuned."""

    examples: int = Field(1500, ge=8, description="training examples drawn from the task")
    max_length: int = Field(64, ge=8, description="longest text in tokens (pairs: both together)")
    freeze: tuple[str, ...] = Field(("embeddings",), description="parameters left as in the base, by part of name")
    seed: int = Field(0, description="draw of examples, head initialisation, batch order")
    train: TrainConfig = Field(
        TrainConfig(lr=1e-4, head_lr=3e-3, epochs=3, batch_size=32), description="the training loop's settings"
    )


@dataclass(frozen=True)
class Expert:
    """A trained expert on disk."""

    folder: Path
    task: str
    base: str
    card: Mapping[str, Any]

    @property
    def sha256(self) -> str:
        """Hash of the encoder's weights."""
        return self.card["weights_sha256"]

    @property
    def definition(self) -> Any:
        """Its task (:class:`core.data.tasks.Task`): the description kept beside the weights, else the built-in one."""
        from core.data.tasks import load_task, parse_task

        path = self.folder / TASK
        if path.exists():
            return parse_task(json.loads(path.read_text()), str(path))
        return load_task(self.task)

    def head(self, probe: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Weight [C, H] and bias [C] of the head, or of the probe on the frozen base.

        Raises:
            ValueError: the folder has no head: an encoder without its task cannot be scored.
        """
        from safetensors.numpy import load_file

        path = self.folder / HEAD
        if not path.exists():
            raise ValueError(f"{self.folder} has no {HEAD}: an expert needs the head of its task to be scored")
        tensors = load_file(path)
        prefix = "probe." if probe else ""
        return tensors[f"{prefix}weight"], tensors[f"{prefix}bias"]


def load_expert(folder: str | Path) -> Expert:
    """The expert in ``folder``.

    Raises:
        ValueError: no ``expert.json`` there, or one without a task.
    """
    path = Path(folder) / CARD
    if not path.exists():
        raise ValueError(f"{folder} is no expert folder ({CARD} is missing); make one with train_expert")
    card = json.loads(path.read_text())
    if not card.get("task"):
        raise ValueError(f"{path} names no task: a head without its task cannot be scored")
    return Expert(Path(folder), card["task"], card["base"], card)


def train_expert(task: Any, base: Any, config: ExpertConfig, cache: Cache | None = None) -> Path:
    """Fine-tune ``base`` on ``task`` (a :class:`core.data.tasks.Task` or its name) and return the expert's folder.

    Cached by content: the same training examples, base and configuration give the folder that is there. A killed
    training continues from its checkpoint.

    Raises:
        ValueError: not a classification task, training examples of one class only, or damaged weights of the base.
        FileNotFoundError: a base without safetensors.
    """
    from core.models.load import locate

    task = _task(task)
    source = locate(base)
    splits = task.splits()
    drawn = splits.train.sample(config.examples, config.seed)
    classes = len(task.labels)
    if task.kind not in KINDS:
        raise ValueError(f"task {task.name!r} is of kind {task.kind!r}; encoder experts are for {KINDS}")
    if len(set(drawn.labels)) < 2:
        raise ValueError(f"task {task.name!r}: the {len(drawn)} training examples are of one class")
    open_checkpoint(source.path)  # an expert needs all tensors of its base; better refused before the training
    key = content_key("expert", RECIPE, task.name, classes, drawn.sha256, source.sha256, config)

    def build(folder: Path) -> dict[str, str]:
        _build(folder, task.name, classes, drawn, source, config)
        return {"task": task.name, "base": source.name}

    return (cache or Cache()).compute("experts", key, build)


def _build(folder: Path, task: str, classes: int, drawn: Any, source: Any, config: ExpertConfig) -> None:
    from safetensors.numpy import save_file

    from core.hashing import sha256_file
    from core.models.load import load_encoder
    from core.models.quiet import quietly

    encoder = load_encoder(source)
    encoder.max_length = min(config.max_length, encoder.max_length)
    tokenized, labels = encoder.tokenize(drawn.texts, drawn.pairs), np.asarray(drawn.labels, dtype=np.int64)
    probe_weight, probe_bias = fit_probe(encoder, tokenized, labels, classes)
    checkpoint = folder / "training.ckpt"
    model, report = fine_tune(encoder, {task: (tokenized, labels)}, {task: classes}, config, checkpoint)
    checkpoint.unlink(missing_ok=True)
    head = model.heads[task]
    quietly(encoder.backbone.save_pretrained, folder, max_shard_size=WHOLE)
    encoder.tokenizer.save_pretrained(folder)
    _complete(folder / SINGLE, source.path)
    tensors = {"weight": head.weight, "bias": head.bias}
    tensors = {name: np.ascontiguousarray(t.detach().float().cpu().numpy()) for name, t in tensors.items()}
    save_file({**tensors, "probe.weight": probe_weight, "probe.bias": probe_bias}, folder / HEAD)
    card = {
        "task": task,
        "classes": classes,
        "base": source.name,
        "base_sha256": source.sha256,
        "train_sha256": drawn.sha256,
        "train_labels": len(drawn),
        "train_examples": report.examples,
        "config": config.model_dump(mode="json"),
        "weights_sha256": sha256_file(folder / SINGLE),
    }
    write_json(folder / CARD, card)


def _complete(path: Path, base: Path) -> None:
    """Give the weights in ``path`` the tensors of the folder ``base``, under its names.

    What the encoder does not use is the base's (a pooler, a head); a base with a head calls the encoder's tensors by
    longer names (``bert.``).
    """
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    start = {name: t for file in open_checkpoint(base).files for name, t in load_file(file).items()}
    prefix = longer_by(tensors, start)
    tensors = {prefix + name: t for name, t in tensors.items()}
    missing = {name: t for name, t in start.items() if name not in tensors}
    if missing or prefix:
        save_file({**tensors, **missing}, path, metadata={"format": "pt"})


def fine_tune(
    encoder: Any,
    data: Mapping[str, tuple[Any, np.ndarray]],
    classes: Mapping[str, int],
    config: ExpertConfig,
    checkpoint: Path | None = None,
    heads: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
) -> tuple[Any, Any]:
    """Train ``encoder`` in place with one head a task on the union of the tasks' examples.

    One task gives an expert, several give joint multi-task training; ``heads`` continues from given ones.

    Args:
        data: task -> (tokenised texts, class indices [n]).
        classes: task -> number of classes.

    Returns:
        the model (``encoder`` and ``heads``, a module a task) and the training report.
    """
    import torch
    from torch import nn

    from core.models.heads import linear_head
    from core.models.train import train

    modules = {
        task: linear_head(encoder.width, classes[task], seed=config.seed * 1009 + i)
        for i, task in enumerate(sorted(data))
    }
    with torch.no_grad():
        for task, (weight, bias) in (heads or {}).items():
            if task in modules:
                modules[task].weight.copy_(torch.from_numpy(weight))
                modules[task].bias.copy_(torch.from_numpy(bias))
    model = nn.Module()
    model.encoder, model.heads = encoder, nn.ModuleDict(modules)
    model.to(encoder.device)
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(not any(part in name for part in config.freeze))
    names = sorted(data)
    tokens = data[names[0]][0]
    for name in names[1:]:
        tokens = tokens + data[name][0]
    labels = torch.from_numpy(np.concatenate([data[n][1] for n in names])).to(encoder.device)
    owner = np.concatenate([np.full(len(data[n][1]), i) for i, n in enumerate(names)])

    def loss(module: Any, indices: np.ndarray) -> Any:
        pooled = module.encoder(tokens.batch(indices, encoder.device))
        total = 0.0
        for i in np.unique(owner[indices]):
            rows = torch.from_numpy(np.flatnonzero(owner[indices] == i)).to(encoder.device)
            with torch.autocast(encoder.device.type, enabled=False):
                logits = module.heads[names[i]](pooled[rows].float())
                where = torch.from_numpy(indices).to(encoder.device)[rows]
                total = total + nn.functional.cross_entropy(logits, labels[where], reduction="sum")
        return total / len(indices)

    report = train(
        model,
        loss,
        tokens.lengths,
        config.train,
        seed=config.seed,
        checkpoint=checkpoint,
        description=f"fine-tune {', '.join(names)}",
    )
    for parameter in encoder.parameters():
        parameter.requires_grad_(False)
    return model.eval(), report


def fit_probe(encoder: Any, tokenized: Any, labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """A linear probe on the frozen encoder: weight float32 [C, H] and bias [C] (the twin without transfer of weights).

    Logistic regression on standardised embeddings, its penalty chosen by three-fold cross-validation on the training
    examples; classes that do not occur get a bias that never wins.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score

    from core.models.score import score

    x = score(encoder, tokenized, description="embed for the probe")[0].astype(np.float64)
    mean, scale = x.mean(0), x.std(0) + 1e-6
    x = (x - mean) / scale
    folds = max(2, min(3, int(np.bincount(labels)[np.unique(labels)].min())))
    candidates = [LogisticRegression(C=c, max_iter=300) for c in (0.003, 0.03, 0.3)]
    fitted = max(candidates, key=lambda c: cross_val_score(c, x, labels, cv=folds).mean()).fit(x, labels)
    coef, intercept, present = fitted.coef_, fitted.intercept_, fitted.classes_
    if len(present) == 2:
        coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
    weight, bias = np.zeros((classes, x.shape[1])), np.full(classes, -1e4)
    weight[present] = coef / scale
    bias[present] = intercept - (coef / scale) @ mean
    return weight.astype(np.float32), bias.astype(np.float32)


def check_tasks(experts: Sequence[Expert]) -> None:
    """Refuse two experts of one task, or experts of different bases.

    Raises:
        ValueError: naming them.
    """
    seen: dict[str, Expert] = {}
    for expert in experts:
        if expert.task in seen:
            raise ValueError(f"two experts of task {expert.task!r}: {seen[expert.task].folder} and {expert.folder}")
        seen[expert.task] = expert
    bases = {e.card["base_sha256"]: e for e in experts}
    if len(bases) > 1:
        listed = ", ".join(f"{e.task} from {e.base} ({sha[:8]})" for sha, e in bases.items())
        raise ValueError(f"experts of different bases cannot be merged: {listed}")


def _task(task: Any) -> Any:
    if isinstance(task, (str, Path)):
        from core.data.tasks import load_task

        return load_task(task)
    return task
