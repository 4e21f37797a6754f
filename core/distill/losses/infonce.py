"""Cross-sample contrast: a student state should find its own teacher state among those of the batch."""

import torch
from torch.nn.functional import cross_entropy, normalize

from core.distill.interface import LOSSES, Batch, Context, DistillLoss, LossSpec


@LOSSES.register("infonce", source="van den Oord et al. 2018; cross-sample form of the contrast")
class CrossSampleInfoNCE(DistillLoss):
    """InfoNCE between the projected student state and the tuned teacher's states of the batch."""

    needs = ("tuned.hidden",)
    student_hidden = True
    default_temperature = 0.05

    def __init__(self, spec: LossSpec, context: Context):
        super().__init__(spec, context)
        self.project = torch.nn.ModuleList([self.projection(offset=i) for i in range(len(self.pairs))])

    def forward(self, batch: Batch) -> torch.Tensor:
        rows = batch.rows(self.spec.on)
        value = batch.logits.sum() * 0.0
        for project, (s, t) in zip(self.project, self.pairs, strict=True):
            student = normalize(project(batch.hidden[s]), dim=-1)
            teacher = normalize(self.teacher_state(batch.tuned, t), dim=-1)
            similarity = student @ teacher.T / self.temperature
            own = torch.arange(len(student), device=student.device)
            value = value + (cross_entropy(similarity, own, reduction="none") * rows).sum() / len(rows)
        return value / len(self.pairs)
