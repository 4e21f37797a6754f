"""Dual contrast: towards the teacher's representation of the right answer, away from those of the wrong answers."""

import torch
from torch.nn.functional import cross_entropy, normalize

from core.distill.interface import LOSSES, Batch, Context, DistillLoss, LossSpec


@LOSSES.register("dual", source="positive and hard negatives are filled answers; tuned and pre-trained teacher")
class DualContrast(DistillLoss):
    """Contrast of the projected student state with the filled prompts of the same text, against both teachers.

    Positive: the prompt filled with the right answer (gold, or the tuned teacher's on unlabelled rows). Hard negatives:
    the same prompt filled with each wrong answer.
    """

    needs = ("tuned.logits", "tuned.answers", "pretrained.answers")
    student_hidden = True
    default_temperature = 0.1

    def __init__(self, spec: LossSpec, context: Context):
        super().__init__(spec, context)
        self.project = torch.nn.ModuleList([self.projection(offset=i) for i in range(2)])

    def forward(self, batch: Batch) -> torch.Tensor:
        rows, right = batch.rows(self.spec.on), batch.known()
        value = batch.logits.sum() * 0.0
        for project, teaching in zip(self.project, (batch.tuned, batch.pretrained), strict=True):
            state = normalize(project(batch.hidden[-1]), dim=-1)
            answers = teaching.answers - teaching.answers.mean(1, keepdim=True)  # what the answers differ in
            similarity = torch.einsum("bh,bch->bc", state, normalize(answers, dim=-1)) / self.temperature
            value = value + (cross_entropy(similarity, right, reduction="none") * rows).sum() / len(rows)
        return value / 2
