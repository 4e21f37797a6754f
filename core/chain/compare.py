"""Two multi-task models on the same test items: paired differences, intervals, exact tests."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from core.evaluate.statistics import Interval, bootstrap_mean, holm, mcnemar


@dataclass(frozen=True)
class Comparison:
    """First less second, in points of accuracy.

    ``mean``: over tasks of equal weight, items resampled; ``p``: exact McNemar test on all items together; ``tasks``:
    task -> (difference, Holm-corrected exact p).
    """

    mean: Interval
    p: float
    tasks: Mapping[str, tuple[Interval, float]]


def compare(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray], seed: int = 0) -> Comparison:
    """Compare hits (bool or 0/1 ``[items]``) by task.

    Raises:
        ValueError: other tasks, or another number of items of a task.
    """
    if first.keys() != second.keys() or not first:
        raise ValueError(f"both models must be judged on the same tasks, got {sorted(first)} and {sorted(second)}")
    names = sorted(first)
    for name in names:
        if len(first[name]) != len(second[name]):
            raise ValueError(f"task {name}: {len(first[name])} items for one model, {len(second[name])} for the other")
    differences = {n: 100 * (first[n].astype(float) - second[n].astype(float)) for n in names}
    total = sum(map(len, differences.values()))
    weighted = np.concatenate([d * total / (len(names) * len(d)) for d in differences.values()])
    corrected = holm([mcnemar(first[n], second[n]) for n in names])
    p = mcnemar(np.concatenate([first[n] for n in names]), np.concatenate([second[n] for n in names]))
    return Comparison(
        bootstrap_mean(weighted, seed),
        p,
        {n: (bootstrap_mean(differences[n], seed), c) for n, c in zip(names, corrected, strict=True)},
    )


def verdict(c: Comparison, what: str, than: str) -> str:
    """The comparison as a sentence that claims no more than its interval."""
    if c.mean.low is None or c.mean.high is None:
        return f"{what} is {c.mean.mean:+.1f} points against {than}; too few items for an interval"
    span = f"{c.mean.mean:+.1f} points [{c.mean.low:+.1f}, {c.mean.high:+.1f}]"
    if c.mean.low > 0:
        return f"{what} is better than {than}: {span}"
    if c.mean.high < 0:
        return f"{what} is worse than {than}: {span}"
    return f"no difference between {what} and {than} is shown: {span}"


def total(budgets: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Amounts of several budgets added up by unit."""
    summed: dict[str, float] = {}
    for budget in budgets:
        for unit, amount in budget.items():
            summed[unit] = summed.get(unit, 0) + amount
    return summed
