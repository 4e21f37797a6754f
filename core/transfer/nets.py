"""Nets: a body with what answers the target: a linear output layer, or its own language head."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from core.data.examples import Examples
from core.evaluate.metrics import METRICS, score
from core.models.heads import linear_head
from core.models.score import score as run
from core.transfer.target import Target


@dataclass(frozen=True)
class Prediction:
    """Answers: class indices, numbers or texts; ``probabilities`` (n, classes) for a classification."""

    values: Any
    probabilities: np.ndarray | None = None

    def scores(self, metrics: list[str], labels: Any) -> dict[str, float | None]:
        """The metrics that apply to this kind of answer, by name."""
        out = {}
        for name in metrics:
            if METRICS.entry(name).facts["kind"] != "probability":
                out[name] = score(name, labels, self.values)
            elif self.probabilities is not None:
                out[name] = score(name, labels, probabilities=self.probabilities)
        return out


class HeadNet(nn.Module):
    """Body and linear output layer, for classification and regression (targets standardised by ``scale``)."""

    def __init__(self, body: nn.Module, head: nn.Linear, kind: str, scale: tuple[float, float] = (0.0, 1.0)):
        super().__init__()
        self.body, self.head, self.kind, self.scale = body, head, kind, scale

    @classmethod
    def of(cls, body: nn.Module, target: Target, seed: int, weights: tuple[np.ndarray, np.ndarray] | None = None):
        """With a random head, or one that starts from ``weights`` (outputs, width) and bias (outputs,)."""
        outputs = target.classes if target.kind == "classification" else 1
        head = linear_head(body.width, outputs, seed)
        if weights is not None:
            with torch.no_grad():
                head.weight.copy_(torch.from_numpy(np.asarray(weights[0], dtype=np.float32)))
                head.bias.copy_(torch.from_numpy(np.asarray(weights[1], dtype=np.float32)))
        scale = (0.0, 1.0)
        if target.kind == "regression":
            scale = (float(target.labels.mean()), float(target.labels.std()))
        return cls(body, head.to(next(body.parameters()).device), target.kind, scale)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        features = self.body(batch)
        with torch.autocast(features.device.type, enabled=False):
            return self.head(features.float())

    def loss(self, target: Target, inputs: Any) -> tuple[Callable[[nn.Module, np.ndarray], torch.Tensor], np.ndarray]:
        """The training loss over example indices, and the examples' lengths; ``inputs`` are the training examples'."""
        device = self.head.weight.device
        if self.kind == "classification":
            y = torch.from_numpy(target.labels).to(device)
            criterion = nn.functional.cross_entropy
        else:
            y = torch.from_numpy((target.labels - self.scale[0]) / self.scale[1]).float().to(device)[:, None]
            criterion = nn.functional.mse_loss
        return (lambda net, indices: criterion(net(inputs.batch(indices, device)), y[indices])), inputs.lengths

    def predict(self, examples: Examples, dtype: str = "auto") -> Prediction:
        """Answers for examples, in their order."""
        outputs = run(self, self.body.inputs(examples), dtype=dtype, description="predict")[0].astype(np.float64)
        return prediction(outputs, self.kind, self.scale)


class LanguageNet(nn.Module):
    """A language model that answers with text."""

    def __init__(self, body: nn.Module, max_new_tokens: int = 32):
        super().__init__()
        self.body, self.max_new_tokens = body, max_new_tokens

    def loss(self, target: Target, inputs: Any) -> tuple[Callable[[nn.Module, np.ndarray], torch.Tensor], np.ndarray]:
        answers = self.body.answers(target.train)
        return (lambda net, indices: net.body.token_loss(inputs, answers, indices)), inputs.lengths + answers.lengths

    def predict(self, examples: Examples, dtype: str = "auto") -> Prediction:
        return Prediction(self.body.generate(examples, self.max_new_tokens))


def prediction(outputs: np.ndarray, kind: str, scale: tuple[float, float] = (0.0, 1.0)) -> Prediction:
    """Answers from raw outputs (n, classes) of a classification or (n, 1) of a standardised regression."""
    if kind == "regression":
        return Prediction(outputs[:, 0] * scale[1] + scale[0])
    shifted = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return Prediction(outputs.argmax(axis=1), shifted / shifted.sum(axis=1, keepdims=True))
