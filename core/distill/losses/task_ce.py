"""Cross-entropy on gold labels."""

import torch

from core.distill.interface import LOSSES, UNLABELLED, Batch, DistillLoss


@LOSSES.register("task_ce", source="supervised baseline; L_task of Hou et al. 2023")
class TaskCrossEntropy(DistillLoss):
    """Cross-entropy of the student on labelled rows (zero where a batch has none)."""

    labelled = True

    def forward(self, batch: Batch) -> torch.Tensor:
        value = torch.nn.functional.cross_entropy(batch.logits, batch.labels, ignore_index=UNLABELLED, reduction="sum")
        return value / len(batch.labels)
