"""Statistics of results: intervals over items and seeds, paired tests, correction for many tests, harm rate.

Thin, typed fronts of scipy and statsmodels. Larger is better everywhere. Randomness is a numpy Generator of its own,
seeded by the caller; the global one is never used.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Values = Sequence[float] | np.ndarray
Alternative = Literal["two-sided", "greater", "less"]


@dataclass(frozen=True)
class Interval:
    """A mean and its interval; ``low`` and ``high`` are None where one value gives no interval."""

    mean: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:.4g}"
        return f"{self.mean:.4g} [{self.low:.4g}, {self.high:.4g}]"


def bootstrap_mean(values: Values, seed: int = 0, level: float = 0.95, resamples: int = 5000) -> Interval:
    """Percentile bootstrap interval of the mean of ``values`` (items of one run, or one figure per seed).

    Raises:
        ValueError: empty or not finite values, ``level`` outside (0, 1).
    """
    x = _finite("values", values)
    _check_level(level)
    if len(x) == 1:
        return Interval(float(x[0]), None, None)
    from scipy.stats import bootstrap

    batch = max(1, 20_000_000 // len(x))
    rng = np.random.default_rng(seed)
    result = bootstrap(
        (x,), np.mean, n_resamples=resamples, batch=batch, confidence_level=level, method="percentile", rng=rng
    )
    return Interval(float(x.mean()), float(result.confidence_interval.low), float(result.confidence_interval.high))


def hierarchical_bootstrap(
    values_by_group: Mapping[object, Values] | Sequence[Values],
    seed: int = 0,
    level: float = 0.95,
    resamples: int = 5000,
) -> Interval:
    """Interval of the mean of group means: groups (seeds, targets) are resampled, then the values inside each.

    Args:
        values_by_group: group -> its values (items, runs); groups may differ in size and weigh the same.
    """
    groups = values_by_group.values() if isinstance(values_by_group, Mapping) else values_by_group
    arrays = [_finite("values of a group", g) for g in groups]
    if not arrays:
        raise ValueError("no groups given; need at least one group of values")
    _check_level(level)
    mean = float(np.mean([a.mean() for a in arrays]))
    if len(arrays) == 1 and len(arrays[0]) == 1:
        return Interval(mean, None, None)
    rng = np.random.default_rng(seed)
    picks = rng.integers(len(arrays), size=(resamples, len(arrays)))
    means = np.empty(picks.shape)
    for g, a in enumerate(arrays):
        chosen = picks == g
        n = int(chosen.sum())
        block = max(1, 5_000_000 // len(a))
        drawn = [a[rng.integers(len(a), size=(min(block, n - i), len(a)))].mean(axis=1) for i in range(0, n, block)]
        if drawn:
            means[chosen] = np.concatenate(drawn)
    low, high = np.quantile(means.mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high))


def stratified_bootstrap(
    values_by_group: Mapping[object, Values], seed: int = 0, level: float = 0.95, resamples: int = 5000
) -> Interval:
    """Interval of the mean of group means for these very groups: the values are resampled inside each of them."""
    arrays = [_finite("values of a group", g) for g in values_by_group.values()]
    if not arrays:
        raise ValueError("no groups given; need at least one group of values")
    _check_level(level)
    mean = float(np.mean([a.mean() for a in arrays]))
    if any(len(a) == 1 for a in arrays):
        return Interval(mean, None, None)
    from scipy.stats import bootstrap

    def of_means(*groups: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.mean([g.mean(axis=axis) for g in groups], axis=0)

    settings = {"n_resamples": resamples, "confidence_level": level, "method": "percentile"}
    batch = max(1, 20_000_000 // sum(map(len, arrays)))
    found = bootstrap(tuple(arrays), of_means, batch=batch, rng=np.random.default_rng(seed), **settings)
    return Interval(mean, float(found.confidence_interval.low), float(found.confidence_interval.high))


def paired_wilcoxon(a: Values, b: Values, alternative: Alternative = "two-sided") -> float:
    """p-value of the Wilcoxon signed-rank test on pairs ``a[i], b[i]`` (the same seed or the same cell).

    ``alternative="greater"`` asks whether ``a`` is larger. Identical samples give 1.
    """
    x, y = _pair(a, b)
    if np.array_equal(x, y):
        return 1.0
    from scipy.stats import wilcoxon

    return float(wilcoxon(x, y, alternative=alternative).pvalue)


def mcnemar(correct_a: Sequence[bool] | np.ndarray, correct_b: Sequence[bool] | np.ndarray) -> float:
    """Two-sided p-value of the exact McNemar test: do two models differ on the same examples?

    Args:
        correct_a, correct_b: per example, whether the model answered right.
    """
    x, y = (v.astype(bool) for v in _pair(correct_a, correct_b))
    from statsmodels.stats.contingency_tables import mcnemar as exact

    table = [[int((x & y).sum()), int((x & ~y).sum())], [int((~x & y).sum()), int((~x & ~y).sum())]]
    return float(exact(table, exact=True).pvalue)


def holm(p_values: Values) -> list[float]:
    """Holm-adjusted p-values, in the order given: family-wise error over several tests."""
    p = _finite("p-values", p_values)
    if ((p < 0) | (p > 1)).any():
        raise ValueError("p-values must lie in [0, 1]")
    from statsmodels.stats.multitest import multipletests

    return [float(v) for v in multipletests(p, method="holm")[1]]


def percentile_harm(with_: Values, without: Values, percentile: float = 5.0) -> float:
    """Harm rate: share of the runs ``with_`` transfer below the ``percentile`` of their no-transfer twin's runs.

    By chance it is ``percentile / 100``. (Counting gains below zero instead is near one half for a harmless source.)
    """
    x, y = _finite("with_", with_), _finite("without", without)
    if not 0 < percentile < 100:
        raise ValueError(f"percentile must lie in (0, 100), got {percentile}")
    return float((x < np.percentile(y, percentile)).mean())


def _finite(name: str, values: Values) -> np.ndarray:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size == 0:
        raise ValueError(f"{name} must be a non-empty one-dimensional sequence, got shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError(f"{name} must be finite; drop undefined results before and say how many were dropped")
    return x


def _pair(a: Values, b: Values) -> tuple[np.ndarray, np.ndarray]:
    x, y = _finite("first sample", a), _finite("second sample", b)
    if len(x) != len(y):
        raise ValueError(f"a paired test needs equally long samples, got {len(x)} and {len(y)}")
    return x, y


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")
