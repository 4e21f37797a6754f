"""TinyBERT's hidden-state loss."""

import torch

from core.distill.interface import LOSSES, Batch, Context, DistillLoss, LossSpec


@LOSSES.register("tinybert", source="Jiao et al. 2020, eq. 8 and 9")
class TinyBERTHidden(DistillLoss):
    """Mean squared error of projected states over all mapped layers, embedding output included.

    The attention term (eq. 7) needs one tokenizer and as many heads on both sides, which nothing here may assume;
    states are those at the answer position, divided by the teacher's spread per layer so that no layer dominates.
    """

    needs = ("tuned.hidden",)
    student_hidden = True
    default_layers = "uniform"

    def __init__(self, spec: LossSpec, context: Context):
        super().__init__(spec, context)
        self.project = torch.nn.ModuleList([self.projection(offset=i) for i in range(len(self.pairs))])
        hidden = context.tuned.hidden
        columns = [context.tuned.layers.index(t) for _, t in self.pairs]
        scale = [float(hidden[:, c].astype("float32").std()) + 1e-6 for c in columns]
        self.register_buffer("scale", torch.tensor(scale), persistent=False)

    def forward(self, batch: Batch) -> torch.Tensor:
        rows = batch.rows(self.spec.on)
        value = batch.logits.sum() * 0.0
        for i, (project, (s, t)) in enumerate(zip(self.project, self.pairs, strict=True)):
            teacher = self.teacher_state(batch.tuned, t) / self.scale[i]
            distance = (project(batch.hidden[s]) - teacher).square().mean(-1)
            value = value + (distance * rows).sum() / len(rows)
        return value / len(self.pairs)
