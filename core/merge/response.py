"""Response model: how each task's score answers to the coefficients, learned from every evaluation of every form.

Per task a Bayesian quadratic around a reference recipe: own coefficients (linear and squared), other experts'
coefficients (linear: the interference of expert i on task j), own times other and other times other. The five kinds of
terms have prior variances of their own, learned by evidence maximisation (MacKay, Neural Computation 1992), so an
effect the data do not show stays at zero. One evaluation answers for all its tasks at once, which is what makes this
model so much cheaper to learn than a ranking of scalar scores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize

KINDS = ("own", "other", "own squared", "own x other", "other x other")
START = (0.3, 0.05, 0.3, 0.05, 0.05)  # first prior standard deviations of the terms, in score per unit coefficient
FLOOR = 1e-3


@dataclass(frozen=True)
class Terms:
    """Design of one task: linear terms, and products ``(left · d)(right · d)`` of linear forms."""

    left: np.ndarray  # [q, D]
    right: np.ndarray  # [q, D]
    kind: np.ndarray  # [D + q] index into KINDS

    def features(self, d: np.ndarray) -> np.ndarray:
        """[N, D + q] features of offsets ``d`` [N, D] from the reference."""
        return np.concatenate([d, (d @ self.left.T) * (d @ self.right.T)], axis=1)

    def quadratic(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gradient [D] at the reference and (symmetric) Hessian [D, D] of ``features(d) @ weights``."""
        d = self.left.shape[1]
        product = (self.left * weights[d:, None]).T @ self.right
        return weights[:d], product + product.T


def make_terms(n: int, g: int, own: int | None) -> Terms:
    """Terms for a task whose expert is ``own`` (None: no expert of its own), n experts in g groups."""
    size = n * g
    unit = np.eye(size)
    mean = np.zeros((n, size))
    for i in range(n):
        mean[i, i * g : (i + 1) * g] = 1.0 / g
    kind = [0 if own is not None and k // g == own else 1 for k in range(size)]
    left, right = [], []

    def add(a: np.ndarray, b: np.ndarray, which: int) -> None:
        left.append(a)
        right.append(b)
        kind.append(which)

    if own is not None:
        add(mean[own], mean[own], 2)
        if g > 1:
            for k in range(own * g, (own + 1) * g):
                add(unit[k], unit[k], 2)
    others = [i for i in range(n) if i != own]
    for i in others:
        if own is not None:
            add(mean[own], mean[i], 3)
    for at, i in enumerate(others):
        for j in others[at:]:
            add(mean[i], mean[j], 4)
    return Terms(np.array(left), np.array(right), np.array(kind))


class TaskResponse:
    """Posterior of one task's response."""

    def __init__(self, terms: Terms):
        self.terms = terms
        self.scale = np.array(START)
        self.noise = 1.0
        self.mean = np.zeros(len(terms.kind))
        self.root = np.diag(self.scale[terms.kind])

    def fit(self, d: np.ndarray, y: np.ndarray, variance: np.ndarray, rounds: int = 15) -> None:
        """Fit to offsets [N, D], score differences to the reference [N], and the variance of each [N]."""
        self.scale, self.noise = np.array(START), 1.0  # the fit depends on the data alone, not on earlier fits
        kind, x = self.terms.kind, self.terms.features(d)
        weight = 1.0 / variance
        gram, moment, total = (x * weight[:, None]).T @ x, x.T @ (weight * y), float(weight @ y**2)
        covariance = np.eye(len(kind))
        for _ in range(rounds):
            covariance = np.linalg.inv(gram / self.noise + np.diag(1.0 / self.scale[kind] ** 2))
            self.mean = covariance @ moment / self.noise
            spread = self.mean**2 + np.diag(covariance)
            for k in range(len(KINDS)):
                if (kind == k).any():
                    self.scale[k] = max(np.sqrt(spread[kind == k].mean()), FLOOR)
            residual = total - 2 * self.mean @ moment + self.mean @ gram @ self.mean
            free = max(len(y) - float((covariance * gram).sum()) / self.noise, 0.2 * len(y))
            self.noise = float(np.clip(residual / free, 0.5, 10.0))
        values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
        self.root = vectors * np.sqrt(np.clip(values, 0, None))

    def predict(self, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the score difference at offsets [N, D]."""
        x = self.terms.features(np.atleast_2d(d))
        return x @ self.mean, np.sqrt(((x @ self.root) ** 2).sum(axis=1))

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Weights drawn from the posterior (Thompson sampling)."""
        return self.mean + self.root @ rng.standard_normal(self.root.shape[1])


class ResponseModel:
    """All tasks' responses around a reference recipe.

    Args:
        reference: coefficients [n, g] at which differences are zero.
        tasks: names.
        owners: for each task the index of its expert, or None.
        weights: importance of the tasks (equal when None).
    """

    def __init__(
        self,
        reference: np.ndarray,
        tasks: Sequence[str],
        owners: Sequence[int | None],
        weights: Sequence[float] | None = None,
    ):
        self.reference = np.asarray(reference, dtype=float)
        self.tasks, self.owners = tuple(tasks), tuple(owners)
        n, g = self.reference.shape
        self.responses = [TaskResponse(make_terms(n, g, own)) for own in owners]
        self.weights = np.full(len(tasks), 1 / len(tasks)) if weights is None else np.asarray(weights) / np.sum(weights)
        self.data: list[list[tuple[np.ndarray, float, float]]] = [[] for _ in tasks]

    def add(self, coefficients: np.ndarray, tasks: Sequence[str], difference: np.ndarray, variance: np.ndarray) -> None:
        """One evaluation: per-task score minus the reference's, and its variance; NaN answers are left out."""
        d = (np.asarray(coefficients, dtype=float) - self.reference).ravel()
        for name, y, v in zip(tasks, difference, variance, strict=True):
            if np.isfinite(y) and np.isfinite(v):
                self.data[self.tasks.index(name)].append((d, float(y), float(v)))

    def fit(self, centre: np.ndarray | None = None, radius: float = np.inf) -> None:
        """Refit all tasks to all data; answers far from ``centre`` count less (a quadratic holds only nearby).

        Args:
            centre: recipe [n, g] of interest; the reference when None.
            radius: root mean squared distance of a coefficient at which an answer's variance has grown e-fold.
        """
        middle = 0.0 if centre is None else (np.asarray(centre, dtype=float) - self.reference).ravel()
        for response, data in zip(self.responses, self.data, strict=True):
            if data:
                d, y, v = (np.array(c) for c in zip(*data, strict=True))
                far = ((d - middle) ** 2).mean(axis=1) / radius**2
                response.fit(d, y, v * np.exp(np.minimum(far, 20.0)))

    def predict(self, coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Per-task mean and standard deviation [N, tasks] of the difference to the reference, for [N, n, g]."""
        d = np.asarray(coefficients, dtype=float).reshape(-1, *self.reference.shape) - self.reference
        d = d.reshape(len(d), -1)
        means, deviations = zip(*[r.predict(d) for r in self.responses], strict=True)
        return np.stack(means, axis=1), np.stack(deviations, axis=1)

    def score(self, coefficients: np.ndarray) -> np.ndarray:
        """Predicted weighted score difference [N]."""
        return self.predict(coefficients)[0] @ self.weights

    def quadratic(self, rng: np.random.Generator | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Gradient and Hessian of the weighted score; of a posterior draw when ``rng`` is given."""
        gradient, hessian = 0.0, 0.0
        for response, weight in zip(self.responses, self.weights, strict=True):
            draw = response.mean if rng is None else response.draw(rng)
            b, h = response.terms.quadratic(draw)
            gradient, hessian = gradient + weight * b, hessian + weight * h
        return gradient, hessian

    def propose(
        self,
        lower: float,
        upper: float,
        radius: float,
        rng: np.random.Generator | None = None,
        free: np.ndarray | None = None,
        centre: np.ndarray | None = None,
    ) -> np.ndarray:
        """The recipe [n, g] of largest predicted score, within bounds and ``radius`` of ``centre`` per coefficient.

        Args:
            rng: maximise a draw from the posterior instead of its mean.
            free: mask [n, g] of coefficients that may move; the others stay at the centre.
        """
        gradient, hessian = self.quadratic(rng)
        around = (self.reference if centre is None else centre).ravel()
        zero = self.reference.ravel()
        low, high = np.maximum(lower, around - radius), np.minimum(upper, around + radius)
        if free is not None:
            stay = ~np.ravel(free)
            low[stay] = high[stay] = around[stay]

        def negative(a: np.ndarray) -> tuple[float, np.ndarray]:
            d = a - zero
            return -float(gradient @ d + 0.5 * d @ hessian @ d), -(gradient + hessian @ d)

        found = minimize(negative, np.clip(around, low, high), jac=True, bounds=list(zip(low, high)), method="L-BFGS-B")
        return found.x.reshape(self.reference.shape)

    def covariance(self, shrink: float = 0.5) -> np.ndarray:
        """Correlation matrix [D, D] for a warm start: inverse curvature of the predicted score, shrunk to identity."""
        _, hessian = self.quadratic()
        values, vectors = np.linalg.eigh(-(hessian + hessian.T) / 2)
        floor = max(values.max() * 0.02, 1e-6)
        inverse = (vectors / np.maximum(values, floor)) @ vectors.T
        scale = np.sqrt(np.diag(inverse))
        correlation = inverse / np.outer(scale, scale)
        return (1 - shrink) * correlation + shrink * np.eye(len(scale))

    def interference(self) -> np.ndarray:
        """Model-to-task effect [n, tasks]: score change of a task per unit of an expert's mean coefficient."""
        n, g = self.reference.shape
        return np.stack([r.mean[: n * g].reshape(n, g).sum(axis=1) for r in self.responses], axis=1)

    def synergy(self) -> np.ndarray:
        """[n, n] predicted change of the weighted score per unit of both experts' coefficients, zero diagonal."""
        n, g = self.reference.shape
        hessian = self.quadratic()[1].reshape(n, g, n, g).sum(axis=(1, 3))
        return hessian - np.diag(np.diag(hessian))

    def borrow(self, offset: np.ndarray, answers: Mapping[str, Sequence[float]], distrust: float) -> None:
        """Take in an answer of an earlier run: offset [n, g] from *its* reference, task -> (difference, variance).

        Its variance is multiplied by ``distrust``, because the experts around it were others.
        """
        for task, (y, v) in answers.items():
            if task in self.tasks:
                self.data[self.tasks.index(task)].append((np.ravel(offset), float(y), distrust * float(v)))

    def state_dict(self) -> dict[str, Any]:
        """JSON-able: reference and data (the fit is recomputed from them)."""
        data = [[[d.tolist(), y, v] for d, y, v in rows] for rows in self.data]
        return {"reference": self.reference.tolist(), "tasks": self.tasks, "data": data}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reference = np.array(state["reference"], dtype=float)
        self.data = [[(np.array(d), float(y), float(v)) for d, y, v in rows] for rows in state["data"]]
        for index, own in enumerate(self.owners):
            self.responses[index] = TaskResponse(make_terms(*self.reference.shape, own))
        self.fit()
