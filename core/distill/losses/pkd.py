"""Patient knowledge distillation."""

import torch
from torch.nn.functional import normalize

from core.distill.interface import LOSSES, Batch, Context, DistillLoss, LossSpec


@LOSSES.register("pkd", source="Sun et al. 2019, eq. 5 (PKD-skip; PKD-last with layers='top')")
class PatientKD(DistillLoss):
    """Squared distance of normalised states over mapped layers; projected where widths differ."""

    needs = ("tuned.hidden",)
    student_hidden = True
    default_layers = "skip"

    def __init__(self, spec: LossSpec, context: Context):
        super().__init__(spec, context)
        self.project = torch.nn.ModuleList([self.projection(offset=i) for i in range(len(self.pairs))])

    def forward(self, batch: Batch) -> torch.Tensor:
        rows = batch.rows(self.spec.on)
        value = batch.logits.sum() * 0.0
        for project, (s, t) in zip(self.project, self.pairs, strict=True):
            student = normalize(project(batch.hidden[s]), dim=-1)
            teacher = normalize(self.teacher_state(batch.tuned, t), dim=-1)
            value = value + ((student - teacher).square().sum(-1) * rows).sum() / len(rows)
        return value / len(self.pairs)
