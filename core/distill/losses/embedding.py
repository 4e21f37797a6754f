"""Match the teacher's representation, from the best linear map on."""

import numpy as np
import torch
from torch.nn.functional import normalize

from core.distill.interface import LOSSES, Batch, Context, DistillLoss, LossSpec

PENALTY = 1e-2  # of the ridge regression, as a share of the mean variance of a student dimension


def ridge(x: np.ndarray, y: np.ndarray, penalty: float = PENALTY) -> tuple[np.ndarray, np.ndarray]:
    """Weights [p, q] and bias [q] of the linear map from ``x`` [n, p] to ``y`` [n, q] with the least squares."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    centred = x - mean_x
    gram = centred.T @ centred
    gram += penalty * np.trace(gram) / len(gram) * np.eye(len(gram))
    weight = np.linalg.solve(gram, centred.T @ (y - mean_y))
    return weight, mean_y - mean_x @ weight


@LOSSES.register("embedding", source="Chen et al. 2022 (features through a projector), started at the ridge solution")
class EmbeddingMatch(DistillLoss):
    """One less the cosine between the projected student state and the teacher's state less its mean.

    The projection starts as the ridge regression of teacher states on the student's states before training: a random
    one would first bend the student to itself.
    """

    needs = ("tuned.hidden",)
    student_hidden = True
    student_states = True

    def __init__(self, spec: LossSpec, context: Context):
        super().__init__(spec, context)
        self.project = torch.nn.ModuleList()
        for i, (s, t) in enumerate(self.pairs):
            teacher = self._directions(np.asarray(context.tuned.hidden[:, context.tuned.layers.index(t)]))
            self.register_buffer(f"mean{i}", torch.from_numpy(teacher.mean(0)), persistent=False)
            weight, bias = ridge(self._directions(context.student_states[:, s]), teacher - teacher.mean(0))
            layer = self.projection(offset=i)
            with torch.no_grad():
                layer.weight.copy_(torch.from_numpy(weight.T))
                layer.bias.copy_(torch.from_numpy(bias))
            self.project.append(layer)

    @staticmethod
    def _directions(states: np.ndarray) -> np.ndarray:
        states = states.astype(np.float32)
        return states / np.maximum(np.linalg.norm(states, axis=1, keepdims=True), 1e-6)

    def forward(self, batch: Batch) -> torch.Tensor:
        rows = batch.rows(self.spec.on)
        value = batch.logits.sum() * 0.0
        for i, (project, (s, t)) in enumerate(zip(self.project, self.pairs, strict=True)):
            student = normalize(project(normalize(batch.hidden[s], dim=-1)), dim=-1)
            teacher = normalize(self.teacher_state(batch.tuned, t), dim=-1) - getattr(self, f"mean{i}")
            distance = 1 - (student * normalize(teacher, dim=-1)).sum(-1)
            value = value + (distance * rows).sum() / len(rows)
        return value / len(self.pairs)
