"""Knowledge distillation from the teacher before tuning, on unlabelled texts."""

import torch

from core.distill.interface import LOSSES, Batch, DistillLoss, soft_cross_entropy


@LOSSES.register("kd_pretrained", source="L_KD(X~) of Hou et al. 2023: the second teacher T'")
class KDPretrained(DistillLoss):
    """As ``kd_tuned``, with the zero-shot answers of the pre-trained teacher as targets."""

    needs = ("pretrained.logits",)
    default_temperature = 2.0
    squared = True

    def forward(self, batch: Batch) -> torch.Tensor:
        t = self.temperature
        target = torch.softmax(batch.pretrained.logits / t, dim=-1)
        return t * t * soft_cross_entropy(batch.logits / t, target, batch.rows(self.spec.on))
