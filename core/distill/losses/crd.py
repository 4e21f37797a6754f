"""Contrastive representation distillation with a memory bank."""

import numpy as np
import torch
from torch.nn.functional import logsigmoid, normalize

from core.distill.interface import LOSSES, Batch, Context, DistillLoss, LossSpec

DIMENSION = 128
NEGATIVES = 256


@LOSSES.register("crd", source="Tian et al. 2020, eq. 17: NCE against a memory bank; both sides projected to 128")
class ContrastiveRepresentation(DistillLoss):
    """Noise-contrastive loss of the student state with its teacher state against teacher states of other answers.

    The bank is the cached signals themselves: exact and never stale.
    """

    needs = ("tuned.logits", "tuned.hidden")
    student_hidden = True
    default_temperature = 0.07

    def __init__(self, spec: LossSpec, context: Context):
        super().__init__(spec, context)
        self.student = self.projection(DIMENSION)
        self.teacher = torch.nn.utils.skip_init(torch.nn.Linear, context.teacher_width, DIMENSION)
        generator = torch.Generator().manual_seed(context.seed * 97 + 1)
        with torch.no_grad():
            self.teacher.weight.normal_(0.0, context.teacher_width**-0.5, generator=generator)
            self.teacher.bias.zero_()
        self.column = context.tuned.layers.index(self.pairs[0][1])
        self.answers = np.asarray(context.tuned.logits).argmax(1)

    def forward(self, batch: Batch) -> torch.Tensor:
        rows = batch.rows(self.spec.on)
        student = normalize(self.student(batch.hidden[self.pairs[0][0]]), dim=-1)
        own = normalize(self.teacher(batch.tuned.hidden[:, self.column]), dim=-1)
        chosen, other = self._negatives(batch)
        bank = torch.from_numpy(np.asarray(self.context.tuned.hidden[chosen, self.column], dtype=np.float32))
        bank = normalize(self.teacher(bank.to(student.device)), dim=-1)
        positive = (student * own).sum(-1) / self.temperature
        negative = student @ bank.T / self.temperature
        other = torch.from_numpy(other).to(student.device)
        shift = torch.logsumexp(negative.detach(), dim=1) - np.log(len(chosen))  # estimates the normaliser Z
        noise = (logsigmoid(shift[:, None] - negative) * other).sum(1) / other.sum(1).clamp_min(1)
        value = -(logsigmoid(positive - shift) + noise)
        return (value * rows).sum() / len(rows)

    def _negatives(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """Bank rows [K], drawn from the batch's own indices, and which count for whom [B, K] (other answers)."""
        n = len(self.answers)
        rng = np.random.default_rng([self.context.seed, *map(int, batch.indices[:4])])
        chosen = np.sort(rng.choice(n, size=min(NEGATIVES, n), replace=False))
        return chosen, self.answers[chosen][None] != self.answers[batch.indices][:, None]
