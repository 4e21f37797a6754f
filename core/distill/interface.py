"""What a distillation loss is: a small module that reads one batch of student outputs and cached teacher signals.

The loss declares in ``needs`` which signals must be cached (``"tuned.logits"``, ``"pretrained.hidden"``, ...), so
nothing is computed that nobody reads. It joins with ``@LOSSES.register("name")`` in a file of ``core/distill/losses``.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from core.config import Config
from core.distill.layers import layer_map
from core.distill.signals import Signals
from core.registry import Registry

LOSSES: Registry[type["DistillLoss"]] = Registry("distillation loss", "core.distill.losses")
SIGNALS = ("logits", "hidden", "answers")
UNLABELLED = -1


class LossSpec(Config):
    """One term of the objective."""

    name: str = Field(description="registered loss")
    weight: float = Field(1.0, ge=0, description="factor of the term")
    temperature: float | None = Field(None, gt=0, description="divides logits or similarities; None: the loss's own")
    on: Literal["all", "labelled", "unlabelled"] = Field("all", description="rows the term sees")
    layers: str | tuple[tuple[int, int], ...] | None = Field(None, description="layer map: preset or pairs")
    scale: Literal["batch", "published"] = Field(
        "batch",
        description="batch: by all rows, KD times T squared; published: a mean over the term's own rows",
    )


@dataclass(frozen=True)
class Teaching:
    """Teacher signals of a batch, float32: logits [B, C], hidden [B, J, H] (J cached layers), answers [B, C, H]."""

    logits: torch.Tensor | None = None
    hidden: torch.Tensor | None = None
    answers: torch.Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """What a loss sees. ``labels`` are UNLABELLED where unknown; ``hidden`` is [layers + 1, B, H] or None."""

    indices: np.ndarray
    labels: torch.Tensor
    logits: torch.Tensor
    hidden: torch.Tensor | None
    tuned: Teaching
    pretrained: Teaching

    def rows(self, on: str) -> torch.Tensor:
        """Mask [B] of the rows a term sees."""
        if on == "all":
            return torch.ones_like(self.labels, dtype=torch.bool)
        return (self.labels == UNLABELLED) if on == "unlabelled" else (self.labels != UNLABELLED)

    def known(self) -> torch.Tensor:
        """Labels [B]: gold where there is gold, else the answer of the tuned (or only) teacher."""
        teacher = self.tuned if self.tuned.logits is not None else self.pretrained
        if teacher.logits is None:
            return self.labels
        return torch.where(self.labels == UNLABELLED, teacher.logits.argmax(1), self.labels)


@dataclass(frozen=True)
class Context:
    """What a loss may know when it is built: sizes, all labels, the cached signals as a memory bank."""

    classes: int
    student_width: int
    student_depth: int
    teacher_width: int
    teacher_depth: int
    labels: np.ndarray
    tuned: Signals | None
    pretrained: Signals | None
    seed: int
    student_states: np.ndarray | None = None
    """Pooled student states before training [n, layers + 1, H]; None where no loss declares that it reads them."""


class DistillLoss(nn.Module):
    """Base of all losses: ``forward(batch) -> scalar``, a mean over the batch's rows.

    Class attributes: ``needs`` (signals read), ``student_hidden`` (whether the student's layers are read),
    ``student_states`` (whether those before training are), ``default_layers`` (layer map), ``default_temperature``,
    ``labelled`` (whether only labelled rows count, whatever ``on`` says), ``squared`` (whether it is times T squared).
    """

    needs: ClassVar[tuple[str, ...]] = ()
    student_hidden: ClassVar[bool] = False
    student_states: ClassVar[bool] = False
    default_layers: ClassVar[str] = "last"
    default_temperature: ClassVar[float] = 1.0
    labelled: ClassVar[bool] = False
    squared: ClassVar[bool] = False

    def __init__(self, spec: LossSpec, context: Context):
        super().__init__()
        self.spec, self.context = spec, context
        self.temperature = spec.temperature or self.default_temperature
        self.pairs = self.layer_pairs(spec, context.student_depth, context.teacher_depth) if self.student_hidden else []

    @classmethod
    def layer_pairs(cls, spec: LossSpec, student_depth: int, teacher_depth: int) -> list[tuple[int, int]]:
        """The validated layer map of a term."""
        return layer_map(spec.layers or cls.default_layers, student_depth, teacher_depth)

    def projection(self, to: int | None = None, offset: int = 0) -> nn.Linear:
        """A learned linear map from the student's width to the teacher's, from the context's seed."""
        width = to or self.context.teacher_width
        layer = nn.utils.skip_init(nn.Linear, self.context.student_width, width)
        generator = torch.Generator().manual_seed(self.context.seed * 97 + offset)
        with torch.no_grad():
            layer.weight.normal_(0.0, self.context.student_width**-0.5, generator=generator)
            layer.bias.zero_()
        return layer

    def teacher_state(self, teaching: Teaching, layer: int, source: str = "tuned") -> torch.Tensor:
        """A cached teacher layer [B, H]."""
        return teaching.hidden[:, getattr(self.context, source).layers.index(layer)]

    def forward(self, batch: Batch) -> torch.Tensor:
        raise NotImplementedError


def build_losses(specs: tuple[LossSpec, ...], context: Context) -> nn.ModuleList:
    """The modules of an objective."""
    return nn.ModuleList([LOSSES.get(spec.name)(spec, context) for spec in specs])


def total(losses: nn.ModuleList, batch: Batch) -> torch.Tensor:
    """Weighted sum over the terms."""
    value = batch.logits.sum() * 0.0
    for loss in losses:
        if loss.spec.weight:
            value = value + loss.spec.weight * _published(loss, batch) * loss(batch)
    return value


def _published(loss: DistillLoss, batch: Batch) -> float:
    """What turns a term divided by the whole batch into the published mean over the rows that it is about."""
    if loss.spec.scale == "batch":
        return 1.0
    rows = max(int(batch.rows("labelled" if loss.labelled else loss.spec.on).sum()), 1)
    return len(batch.labels) / rows / (loss.temperature**2 if loss.squared else 1.0)


def needed(specs: tuple[LossSpec, ...], student_depth: int, teacher_depth: int) -> dict[str, dict[str, Any]]:
    """Signals that the terms read: ``{"tuned": {"hidden": [12], "answers": True, "logits": True}, ...}``.

    Raises:
        ValueError: unknown loss, or a layer map that does not fit; before any model runs.
    """
    wanted: dict[str, dict[str, Any]] = {}
    for spec in specs:
        cls = LOSSES.get(spec.name)
        pairs = cls.layer_pairs(spec, student_depth, teacher_depth) if cls.student_hidden else []
        for need in cls.needs:
            source, kind = need.split(".")
            entry = wanted.setdefault(source, {"layers": set(), "answers": False})
            if kind == "hidden":
                entry["layers"] |= {t for _, t in pairs}
            entry["answers"] |= kind == "answers"
    return wanted


def soft_cross_entropy(logits: torch.Tensor, target: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of soft targets [B, C], summed over ``rows`` and divided by the size of the batch."""
    value = -(target * torch.log_softmax(logits, dim=-1)).sum(-1)
    return (value * rows).sum() / len(rows)
