"""Knowledge distillation from the tuned teacher."""

import torch

from core.distill.interface import LOSSES, Batch, DistillLoss, soft_cross_entropy


@LOSSES.register("kd_tuned", source="Hinton et al. 2015, eq. 1; L_KD(X) of Hou et al. 2023")
class KDTuned(DistillLoss):
    """T²-scaled cross-entropy between the tuned teacher's and the student's softmax(logits / T)."""

    needs = ("tuned.logits",)
    default_temperature = 2.0
    squared = True

    def forward(self, batch: Batch) -> torch.Tensor:
        t = self.temperature
        target = torch.softmax(batch.tuned.logits / t, dim=-1)
        return t * t * soft_cross_entropy(batch.logits / t, target, batch.rows(self.spec.on))
