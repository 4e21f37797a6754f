"""Graph attention network over the experts of a form, after the paper (one layer, learned expert embeddings).

With n experts there are n(n-1)/2 pairs, so it is hardly identifiable for small n; it is here to be compared.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from core.merge.predictors import PREDICTORS, check_forms


@PREDICTORS.register("graph_attention")
class GraphAttention:
    """Attention from each task to the experts in the form (Velickovic et al., ICLR 2018), trained with AdamW."""

    def __init__(self, n: int, seed: int = 0, width: int = 8, steps: int = 400, lr: float = 0.02, decay: float = 0.05):
        self.n, self.seed, self.width, self.steps, self.lr, self.decay = n, seed, width, steps, lr, decay

    def _parameters(self):
        import torch

        generator = torch.Generator().manual_seed(self.seed)

        def draw(*shape):
            return (0.3 * torch.randn(*shape, generator=generator)).requires_grad_()

        w = self.width
        names = {
            "expert": (self.n, w),
            "task": (self.n, w),
            "query": (w, w),
            "key": (w, w),
            "value": (w, w),
            "out": (w,),
        }
        return {k: draw(*s) for k, s in names.items()} | {"level": torch.zeros(self.n, requires_grad=True)}

    def _forward(self, p, masks, tasks):
        """Scores [rows] of tasks [rows] in forms given as masks [rows, n]."""
        import torch

        query = p["task"][tasks] @ p["query"]
        logits = query @ (p["expert"] @ p["key"]).T / self.width**0.5
        attention = torch.softmax(logits.masked_fill(masks == 0, -1e9), dim=1)
        message = torch.tanh(attention @ (p["expert"] @ p["value"]) + p["task"][tasks])
        return p["level"][tasks] + message @ p["out"]

    def fit(self, forms: Sequence[tuple[int, ...]], scores: Sequence[Mapping[int, float]]) -> None:
        import torch

        check_forms(forms, scores, self.n)
        masks, tasks, y = [], [], []
        for form, score in zip(forms, scores, strict=True):
            for j, value in score.items():
                masks.append([float(i in form and i != j) for i in range(self.n)])
                tasks.append(j)
                y.append(value)
        target = torch.tensor(y, dtype=torch.float32)
        self.offset, self.scale = float(target.mean()), float(target.std()) + 1e-6
        target = (target - self.offset) / self.scale
        masks, tasks = torch.tensor(masks), torch.tensor(tasks)
        self.parameters = self._parameters()
        optimizer = torch.optim.AdamW(list(self.parameters.values()), lr=self.lr, weight_decay=self.decay)
        for _ in range(self.steps):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(self._forward(self.parameters, masks, tasks), target).backward()
            optimizer.step()

    def predict(self, forms: Sequence[tuple[int, ...]]) -> np.ndarray:
        import torch

        out = []
        with torch.no_grad():
            for form in forms:
                masks = torch.tensor([[float(i in form and i != j) for i in range(self.n)] for j in form])
                values = self._forward(self.parameters, masks, torch.tensor(form))
                out.append(self.offset + self.scale * float(values.mean()))
        return np.array(out)
