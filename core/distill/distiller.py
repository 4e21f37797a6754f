"""Distillation: train a prompted student on labelled and unlabelled texts against cached teacher signals."""

from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from torch import nn

from core.config import Config
from core.distill.interface import Batch, Context, LossSpec, Teaching, build_losses, needed, total
from core.distill.signals import Signals
from core.distill.transfer_set import PhraseConfig, TransferSet
from core.models.prompt import PromptedEncoder
from core.models.score import score
from core.models.train import TrainConfig, TrainReport, train
from core.models.used_words import only_used_words
from core.transfer.budget import Budget

SCHEDULE = TrainConfig(lr=2e-4, steps=240, batch_size=32)


class DistillConfig(Config):
    """An objective and a schedule: frozen for all tasks and seeds."""

    losses: tuple[LossSpec, ...] = Field(
        (LossSpec(name="task_ce"), LossSpec(name="kd_tuned")), description="terms of the objective"
    )
    unlabelled: bool = Field(True, description="learn from the pool")
    phrases: PhraseConfig | None = Field(None, description="phrases cut from the pool; None: none")
    labelled_repeat: int = Field(1, ge=0, description="how often a labelled text occurs for each pool text")
    train: TrainConfig = Field(SCHEDULE, description="schedule (fixed: the last step is the student)")


class Objective(nn.Module):
    """Student and losses as one module, so that projections train with it; ``heads`` get the head's learning rate."""

    def __init__(self, student: nn.Module, losses: nn.ModuleList):
        super().__init__()
        self.student, self.heads = student, losses


def distill(
    student: nn.Module,
    data: TransferSet,
    config: DistillConfig,
    *,
    seed: int,
    tuned: Signals | None = None,
    pretrained: Signals | None = None,
    teacher_width: int = 0,
    teacher_depth: int = 0,
    checkpoint: str | Path | None = None,
    budget: Budget | None = None,
) -> TrainReport:
    """Train ``student`` (a prompted model) in place.

    Args:
        tuned: signals of the tuned teacher on ``data.texts``, in order.
        pretrained: the same from the teacher before tuning.
        teacher_width, teacher_depth: H and number of layers of the teacher.

    Raises:
        ValueError: a loss reads signals that were not given, signals of other texts or of another label set, or a
            layer map that does not fit.
    """
    _check(student, data, config, tuned, pretrained, teacher_depth)
    device = student.device
    tokens = student.tokenize(data.texts, data.pairs)
    labels = torch.from_numpy(data.labels).to(device)
    context = _context(student, data, config, tuned, pretrained, teacher_width, teacher_depth, seed, tokens)
    losses = build_losses(config.losses, context).to(device)
    hidden = any(loss.student_hidden for loss in losses)
    rows = _rows(data, config.labelled_repeat)

    def objective(_: nn.Module, indices: np.ndarray) -> torch.Tensor:
        chosen = rows[indices]
        out = student(tokens.batch(chosen, device), hidden=hidden)
        logits, states = out if hidden else (out, None)
        with torch.autocast(device.type, enabled=False):
            batch = Batch(
                chosen,
                labels[chosen],
                logits.float(),
                None if states is None else states.float(),
                _teaching(tuned, chosen, device),
                _teaching(pretrained, chosen, device),
            )
            return total(losses, batch)

    encoder = student.encoder.backbone if isinstance(student, PromptedEncoder) else None
    with only_used_words(encoder, tokens):
        report = train(
            Objective(student, losses),
            objective,
            tokens.lengths[rows],
            config.train,
            seed=seed,
            checkpoint=checkpoint,
            budget=budget,
            description="distill",
        )
    if budget is not None and any(s.name == "task_ce" or s.on == "labelled" for s in config.losses):
        budget.note("train_labels", len(data.labelled))
    return report


def _rows(data: TransferSet, repeat: int) -> np.ndarray:
    """Positions trained on in an epoch: labelled ones ``repeat`` times."""
    known = data.labels >= 0
    return np.concatenate([np.flatnonzero(~known), *[np.flatnonzero(known)] * (repeat if known.any() else 0)])


def _teaching(signals: Signals | None, rows: np.ndarray, device: torch.device) -> Teaching:
    if signals is None:
        return Teaching()
    part = signals.take(rows)

    def tensor(array: np.ndarray | None) -> torch.Tensor | None:
        return None if array is None else torch.from_numpy(np.asarray(array, dtype=np.float32)).to(device)

    return Teaching(tensor(part.logits), tensor(part.hidden), tensor(part.answers))


def _check(student, data, config, tuned, pretrained, teacher_depth) -> None:
    wanted = needed(config.losses, student.depth, teacher_depth or 1)
    for source, signals in (("tuned", tuned), ("pretrained", pretrained)):
        if source not in wanted:
            continue
        if signals is None:
            raise ValueError(f"a loss reads signals of the {source} teacher, and none were given")
        if len(signals) != len(data):
            raise ValueError(f"{len(signals)} {source} signals for {len(data)} texts; they must be of the same texts")
        if signals.logits.shape[1] != student.classes:
            raise ValueError(
                f"the {source} teacher answers {signals.logits.shape[1]} labels, the student {student.classes}; "
                "give both the same label set"
            )
        missing = sorted(wanted[source]["layers"] - set(signals.layers))
        if missing or (wanted[source]["answers"] and signals.answers is None):
            raise ValueError(
                f"{source} signals lack {f'layers {missing}' if missing else 'filled answers'}; cache them"
            )
    if not len(data.labelled) and any(s.name == "task_ce" and s.weight for s in config.losses):
        raise ValueError("task_ce learns from labels, and there are none; leave the term out, or use labels")
    if not len(_rows(data, config.labelled_repeat)):
        raise ValueError("nothing to distil on: no pool, and labelled_repeat is 0")


def _context(student, data, config, tuned, pretrained, width, depth, seed, tokens) -> Context:
    from core.distill.interface import LOSSES

    states = None
    if any(LOSSES.get(s.name).student_states for s in config.losses):
        states = score(student, tokens, hidden=True, description="student states")[1]
    return Context(
        classes=student.classes,
        student_width=student.width,
        student_depth=student.depth,
        teacher_width=width,
        teacher_depth=depth or 1,
        labels=data.labels,
        tuned=tuned,
        pretrained=pretrained,
        seed=seed,
        student_states=states,
    )
