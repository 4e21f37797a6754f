"""An artificial merge: tasks answer to coefficients by formula, with the sampling noise of real validation sets.

For tuning and testing searches in seconds, without a model. A task's margin saturates in its own expert's coefficients,
drops when they are far too large, and is moved by every other expert (most interfere, some help); examples have a
difficulty and a direction of their own, so mini-batches differ as they do in reality. Nothing measured here is a claim
about real models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm

from core.merge.fitness import Fitness
from core.merge.objectives import SOFT, Scored
from core.merge.recipe_space import RecipeSpace, SpaceConfig
from core.merge.task_vectors import Tensor

LAYERS = 6
DIRECTION = 0.25  # how much examples of one task differ in what they answer to, per unit of coefficient


class Landscape:
    """Mean margins of k tasks with an expert each, as functions of coefficients [k, g]."""

    def __init__(self, k: int, g: int, seed: int):
        rng = np.random.default_rng([seed, 99])
        self.k, self.g = k, g
        self.share = rng.dirichlet(np.full(g, 2.0), k)
        self.need, self.top = rng.uniform(0.6, 2.2, k), rng.uniform(0.3, 1.5, k)
        self.base, self.decay = rng.uniform(-0.2, 0.8, k), rng.uniform(0.005, 0.03, k)
        effect = -np.abs(rng.normal(0, 0.10, (k, k)))
        helps = rng.random((k, k)) < 0.2
        effect[helps] *= -0.7
        np.fill_diagonal(effect, 0.0)
        self.effect = effect[:, :, None] * rng.dirichlet(np.full(g, 2.0), (k, k))

    def margins(self, a: np.ndarray) -> np.ndarray:
        """Mean margin of each task [k] at coefficients [k, g]."""
        own = (self.share * a).sum(axis=1)
        gain = 2 * self.top * (1 / (1 + np.exp(-3 * (own / self.need - 0.5))) - 1 / (1 + np.exp(1.5)))
        too_far = 0.3 * np.clip(own - 1.6 * self.need, 0, None) ** 2
        others = np.einsum("ig,ijg->j", a, self.effect)
        return self.base + gain - too_far + others - self.decay * ((a - 0.5) ** 2).mean(axis=1).sum()

    def individual(self) -> np.ndarray:
        """Accuracy of each expert alone [k]."""
        alone = [np.eye(self.k)[:, [j]] * np.ones((1, self.g)) for j in range(self.k)]
        return np.array([norm.cdf(self.margins(a)[j]) for j, a in enumerate(alone)])

    def truth(self, a: np.ndarray) -> float:
        """Expected normalised test score of a recipe, in percent."""
        spread = np.sqrt(1 + DIRECTION**2 * ((np.asarray(a) - 1) ** 2).mean() * self.k)
        return float(100 * np.mean(norm.cdf(self.margins(a) / spread) / self.individual()))


@dataclass
class _Objective:
    """Size and reference of an artificial task."""

    name: str
    size: int
    reference: float

    def score(self, model: Any, indices: np.ndarray) -> np.ndarray:
        raise ValueError(f"artificial task {self.name!r} is scored by its landscape")


class _Recipe:
    """Stands where the in-memory model stands: the 'network' of a recipe is the recipe."""

    def write(self, coefficients: np.ndarray) -> np.ndarray:
        return np.array(coefficients, dtype=float)

    def hold(self, coefficients: np.ndarray, moving: Sequence[int]) -> None:
        """Nothing to keep."""

    def release(self) -> None:
        """Nothing to release."""


class LandscapeFitness(Fitness):
    """The fitness of a landscape: same mini-batches, racing and control variate as with models."""

    def __init__(self, landscape: Landscape, seed: int = 0, size: int = 200, batch: int = 24):
        self.landscape = landscape
        rng = np.random.default_rng([seed, 5])
        references = landscape.individual()
        tasks = {f"task{j}": _Objective(f"task{j}", size, float(references[j])) for j in range(landscape.k)}
        width = landscape.k * landscape.g
        spread = DIRECTION / np.sqrt(landscape.g)
        self.examples = {
            t: (rng.normal(0, 1, size), rng.normal(0, spread, (size, width))) for t in tasks
        }  # fmt: skip
        super().__init__(_Recipe(), tasks, batch, seed)

    def _scored(self, network: np.ndarray, wanted: Mapping[str, np.ndarray], key: tuple | None) -> dict[str, Scored]:
        margins, out = self.landscape.margins(network), {}
        offset = (network - 1).ravel()
        for task, indices in wanted.items():
            difficulty, direction = self.examples[task]
            margin = margins[self.tasks.index(task)] - difficulty[indices] + direction[indices] @ offset
            soft = 1 / (1 + np.exp(-np.clip(margin / SOFT, -60, 60)))
            out[task] = Scored((margin > 0).astype(float), soft)
        return out


@dataclass
class _Layout:
    """What a recipe space needs to know of task vectors."""

    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    layers: int = LAYERS


def artificial_problem(
    k: int, granularity: str, seed: int, size: int = 200, batch: int = 24
) -> tuple[LandscapeFitness, RecipeSpace]:
    """Fitness and recipe space of an artificial merge of k experts with six layers."""
    tensors = tuple(Tensor(f"layer.{i}.weight", (1,), i) for i in range(LAYERS))
    layout = _Layout(tuple(f"task{j}" for j in range(k)), tensors)
    space = RecipeSpace(layout, SpaceConfig(granularity=granularity))
    return LandscapeFitness(Landscape(k, len(space.labels), seed), seed, size, batch), space
