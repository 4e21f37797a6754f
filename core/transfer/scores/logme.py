"""LogME: the largest evidence of a Bayesian linear model from features to one-hot labels, per example."""

import numpy as np

from core.transfer.scores import SCORES, require_signal


def logme_of_numbers(features: np.ndarray, values: np.ndarray) -> float:
    """LogME of a regression: the evidence of the standardised values (You et al. 2021, sec. 4.3), per example."""
    require_signal(features, values)
    return float(_evidences(features, ((values - values.mean()) / values.std())[:, None])[0])


@SCORES.register(
    "logme",
    needs="features",
    numbers=logme_of_numbers,
    source="You et al. 2021, eq. 2; evidence computed on the n-by-n side",
)
def logme(features: np.ndarray, labels: np.ndarray) -> float:
    """LogME: mean over classes of max evidence / n; right also for n < D, where the published code ranks by width.

    With y = Fw + noise, w ~ N(0, 1/a), noise ~ N(0, 1/b) the evidence is that of y ~ N(0, I/b + FF'/a). For a fixed
    ratio t = a/b the best b has a closed form, which leaves a search over t alone; the width D enters only through FF'.
    """
    require_signal(features, labels)
    return float(np.mean(_evidences(features, np.eye(labels.max() + 1)[labels])))


def _evidences(features: np.ndarray, targets: np.ndarray) -> list[float]:
    """The largest evidence per example of each column of ``targets`` (n, K)."""
    left, singular, _ = np.linalg.svd(features, full_matrices=False)
    kept = singular > singular[0] * max(features.shape) * np.finfo(float).eps
    left, power = left[:, kept], singular[kept] ** 2
    inside = (left.T @ targets) ** 2
    outside = np.maximum((targets**2).sum(axis=0) - inside.sum(axis=0), 0)
    return [_evidence(power, z, rest, len(targets)) for z, rest in zip(inside.T, outside)]


def _evidence(power: np.ndarray, inside: np.ndarray, outside: float, n: int) -> float:
    """max over t of log p(y) / n.

    Args:
        power: (r,) non-zero eigenvalues of FF'.
        inside: (r,) squared coordinates of y along their eigenvectors; ``outside``: squared length of the rest.
    """
    from scipy.optimize import minimize_scalar

    # Directions in which F is numerically nothing cannot explain y: keeps an exact fit from an infinite evidence.
    outside = max(outside, 1e-9 * n) if len(power) < n else 0.0

    def loss(log_t: float) -> float:
        gain = 1 + power * np.exp(-log_t)
        noise = ((inside / gain).sum() + outside) / n
        return 0.5 * (np.log(2 * np.pi * noise) + 1) + 0.5 * np.log(gain).sum() / n

    grid = np.linspace(np.log(power[-1]) - 12, np.log(power[0]) + 12, 41)
    values = [loss(t) for t in grid]
    best = int(np.argmin(values))
    around = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
    found = minimize_scalar(loss, bounds=around, method="bounded", options={"xatol": 1e-6})
    return -float(min(found.fun, values[best]))
