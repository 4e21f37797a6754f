"""The contrastive loss as printed: products of per-layer probe answers, one negative from another class."""

import numpy as np
import torch

from core.distill.interface import LOSSES, UNLABELLED, Batch, Context, DistillLoss, LossSpec


def fit_probe(states: np.ndarray, labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """A logistic probe on frozen states [n, H]: weights [C, H] and biases [C]."""
    from sklearn.linear_model import LogisticRegression

    mean, scale = states.mean(0), states.std(0) + 1e-6
    model = LogisticRegression(C=0.1, max_iter=500).fit((states - mean) / scale, labels)
    weight, bias = model.coef_, model.intercept_
    if len(weight) == 1:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    full_w, full_b = np.zeros((classes, states.shape[1])), np.full(classes, -30.0)
    full_w[model.classes_], full_b[model.classes_] = weight / scale, bias - weight @ (mean / scale)
    return full_w.astype(np.float32), full_b.astype(np.float32)


@LOSSES.register("cpd_literal", source="L_CPD of Hou et al. 2023, with per-layer probes on frozen models")
class LiteralContrast(DistillLoss):
    """``-f(x_i) / f(x')`` with ``f = exp(mean over all layers but the last, j and k, of p_T^(j) . p_S^(k) / T)``.

    ``x'`` is one row of another class of the batch (the teacher's answer on unlabelled rows). With a logarithm before
    the ratio (the thesis' form) its gradient would be zero for balanced classes: each row is as often the negative as
    the anchor. It stands here to be measured.
    """

    needs = ("tuned.logits", "tuned.hidden")
    student_hidden = True
    student_states = True
    default_layers = "every-but-last"
    default_temperature = 1.0

    def __init__(self, spec: LossSpec, context: Context):
        super().__init__(spec, context)
        known = context.labels != UNLABELLED
        labels = context.labels[known]
        if not len(labels):
            raise ValueError("cpd_literal trains its probes on labelled rows, and there are none")
        # A mean of products over all pairs of layers is the product of the means.
        self.layers = sorted({s for s, _ in self.pairs})
        teacher = []
        for layer in sorted({t for _, t in self.pairs}):
            states = np.asarray(context.tuned.hidden[:, context.tuned.layers.index(layer)], dtype=np.float32)
            weight, bias = fit_probe(states[known], labels, context.classes)
            teacher.append(_softmax(states @ weight.T + bias))
        student = [fit_probe(context.student_states[known, s], labels, context.classes) for s in self.layers]
        self.register_buffer("teacher", torch.from_numpy(np.mean(teacher, axis=0, dtype=np.float32)), persistent=False)
        self.register_buffer("weights", torch.from_numpy(np.stack([w for w, _ in student])), persistent=False)
        self.register_buffer("biases", torch.from_numpy(np.stack([b for _, b in student])), persistent=False)

    def forward(self, batch: Batch) -> torch.Tensor:
        logits = torch.einsum("lbh,lch->lbc", batch.hidden[self.layers].float(), self.weights) + self.biases[:, None]
        student = torch.softmax(logits, dim=-1).mean(0)
        agreement = (self.teacher[batch.indices] * student).sum(-1) / self.temperature
        labels = batch.known()
        order = torch.arange(len(labels), device=labels.device)
        other = labels[None] != labels[:, None]
        distance = (order[None] - order[:, None]) % len(labels) + len(labels) * ~other
        negative = distance.argmin(1)  # the next row of another class
        rows = batch.rows(self.spec.on) & other.any(1)
        value = -torch.exp(agreement - agreement[negative])
        return (value * rows).sum() / len(rows)


def _softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)
