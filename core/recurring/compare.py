"""Did it become worse? Paired comparison of a run with its history.

A comparison is one method of one level under one set-up; its pairs are tasks times seeds. A seed that the history has
is paired with itself, which takes all noise of draws and initialisations out. A fresh seed is paired with a fresh seed
of the history, one with one and in order: which seed meets which does not depend on their values, so without a change
the differences scatter evenly around zero and the sign-flip test keeps its level.

A comparison whose differences are all zero cannot mislead and is not counted as a test. A verdict needs all three: the
corrected p of the paired sign-flip test (:mod:`core.evaluate.sign_flips`), an interval of the effect without zero, and
an effect of some size. The test is corrected over the comparisons of a level by turning signs for all of them together,
and over the levels by their number: methods of a level are measured on the same pairs, levels are not.

With seeds paired with themselves the interval is a bootstrap over seeds, then tasks. Fresh seeds bring noise that all
tasks of a seed may share (the same drawn weights), which the sign-flip test does not see: there the interval is
Student's, over one mean difference a seed. It is wide for few seeds, and should be.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from core.config import Config
from core.evaluate.curves import at_end, uncurved
from core.evaluate.sign_flips import least_pairs, step_down_p
from core.evaluate.statistics import Interval, hierarchical_bootstrap

# Metric -> factor to points (hundredths of the whole scale). Larger is better in all. Other metrics are stored only.
COMPARED: Mapping[str, float] = {
    "accuracy": 100.0, "mcc": 100.0, "pearson": 100.0, "spearman": 100.0, "exact_match": 100.0, "score": 1.0,
}  # fmt: skip
NAMING = ("run", "source")  # settings that tell two uses of one method apart
MEAN = "mean"  # the task of rows that average the others
REGRESSION, IMPROVEMENT = "regression", "improvement"
EQUAL, UNSURE, FEW, NEW = "equal", "no change shown", "too few pairs", "no history"


class CompareConfig(Config):
    """When a difference is called one."""

    alpha: float = Field(0.01, gt=0, lt=1, description="largest corrected p of a verdict; 1 - alpha: of intervals")
    least_points: float = Field(1.0, ge=0, description="smallest effect of a verdict, in points")
    window: int = Field(4, ge=1, description="a seed is compared with its mean over so many earlier runs")
    seed: int = Field(0, ge=0, description="of the bootstrap")


@dataclass(frozen=True)
class Change:
    """One comparison. ``before``, ``after`` and ``effect`` (with interval) are in points; p is corrected."""

    level: str
    method: str
    metric: str
    pairs: int
    fresh: int
    before: float | None
    after: float
    effect: float | None
    low: float | None
    high: float | None
    p: float | None
    verdict: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measured(table: pd.DataFrame) -> pd.DataFrame:
    """The records that are compared, with columns ``name`` (method), ``unit`` (task and what else) and ``points``.

    Means over tasks and all but the last point of a curve are left out: they say the same again.
    """
    kept = table[table["metric"].isin(COMPARED) & table["value"].notna()].reset_index(drop=True)
    settings = [json.loads(s) for s in kept["settings"]]
    single = [s.get("task") != MEAN for s in settings]
    single = [a and not m.startswith("expert ") for a, m in zip(single, kept["method"], strict=True)]
    kept, settings = kept[np.array(single, dtype=bool)].copy(), [s for s, a in zip(settings, single, strict=True) if a]
    kept["points"] = kept["value"] * kept["metric"].map(COMPARED).astype(float)
    kept["name"] = [_name(m, s) for m, s in zip(kept["method"], settings, strict=True)]
    kept["unit"] = [
        json.dumps({k: v for k, v in uncurved(s).items() if k not in NAMING}, sort_keys=True) for s in settings
    ]
    curves = kept[["run", "level", "setup", "name", "metric", "unit", "seed"]].itertuples(index=False, name=None)
    return kept[np.array(at_end(list(curves), settings), dtype=bool)]


def _name(method: str, settings: Mapping[str, Any]) -> str:
    more = [str(settings[k]) for k in NAMING if k in settings and str(settings[k]) != method]
    return method + (f" ({', '.join(more)})" if more else "")


def compare(now: pd.DataFrame, history: pd.DataFrame, config: CompareConfig | None = None) -> list[Change]:
    """Every comparison that the run's records allow, regressions first.

    Args:
        now: records of one run (see :mod:`core.recurring.store`).
        history: records of earlier runs; the run's own are left out.
    """
    config = config or CompareConfig()
    earlier = measured(history[~history["run"].isin(now["run"].unique())])
    group = ["level", "setup", "name", "metric"]
    past = dict(list(earlier.groupby(group, sort=False)))
    found = [
        _change(key, part, past.get(key), config) for key, part in measured(now).groupby(group, sort=False)
    ]  # fmt: skip
    levels = differing([c for c, _ in found])
    least = needed_pairs(config.alpha, len(levels))
    found = [(replace(c, verdict=FEW) if c.verdict == UNSURE and c.pairs < least else c, pairs) for c, pairs in found]
    changes = [c for c, _ in found if c.verdict != UNSURE]
    for level in levels:
        tested = [(c, pairs) for c, pairs in found if (c.level, c.verdict) == (level, UNSURE)]
        if tested:
            p = step_down_p(_differences([pairs for _, pairs in tested]), config.seed)
            corrected = [min(1.0, len(levels) * one) for one in p]
            changes += [_judged(replace(c, p=one), config) for (c, _), one in zip(tested, corrected, strict=True)]
    return sorted(changes, key=_order)


def differing(changes: Sequence[Change]) -> list[str]:
    """The levels in which anything differs from its history."""
    return sorted({c.level for c in changes if c.verdict not in (EQUAL, NEW)})


def needed_pairs(alpha: float, levels: int) -> int:
    """So many pairs a comparison needs for a verdict where so many levels differ."""
    return least_pairs(alpha / max(levels, 1))


def _differences(compared: Sequence[pd.DataFrame]) -> np.ndarray:
    """Differences [pairs, comparisons] on the pairs of all of them; NaN where one does not have a pair."""
    own = [(d["after"] - d["before"]).set_axis(pd.MultiIndex.from_frame(d[["unit", "seed"]])) for d in compared]
    return pd.concat(own, axis=1).to_numpy()


def _change(
    key: Sequence[str], now: pd.DataFrame, past: pd.DataFrame | None, config: CompareConfig
) -> tuple[Change, pd.DataFrame]:
    """The comparison before it is judged, and its pairs."""
    level, _, name, metric = key
    after = float(now["points"].mean())
    pairs = paired(now, past, config.window) if past is not None else pd.DataFrame()
    if pairs.empty:
        return Change(level, name, metric, 0, 0, None, after, None, None, None, None, NEW), pairs
    before, after = pairs["before"].to_numpy(), pairs["after"].to_numpy()
    difference = after - before
    interval = _interval(pairs, config)
    facts = (len(pairs), int(pairs["fresh"].sum()), float(before.mean()), float(after.mean()))
    verdict = EQUAL if np.abs(difference).max() < 1e-9 else UNSURE
    effect = float(difference.mean())
    return Change(level, name, metric, *facts, effect, interval.low, interval.high, None, verdict), pairs


def _interval(pairs: pd.DataFrame, config: CompareConfig) -> Interval:
    """Of the effect, over seeds; open where fresh seeds are fewer than two."""
    by_seed = {s: (d["after"] - d["before"]).to_numpy() for s, d in pairs.groupby("seed")}
    if not pairs["fresh"].any():
        return hierarchical_bootstrap(by_seed, config.seed, 1 - config.alpha)
    means = np.array([d.mean() for d in by_seed.values()])
    if len(means) < 2:
        return Interval(float(means.mean()), None, None)
    from scipy.stats import t

    half = float(t.ppf(1 - config.alpha / 2, len(means) - 1) * means.std(ddof=1) / np.sqrt(len(means)))
    return Interval(float(means.mean()), float(means.mean()) - half, float(means.mean()) + half)


def paired(now: pd.DataFrame, past: pd.DataFrame, window: int) -> pd.DataFrame:
    """Pairs of one comparison: columns ``unit, seed, before, after, fresh``.

    A measurement of the history is the mean over the last ``window`` runs that have its unit and seed. Seeds without
    a twin are paired with those of the history that are left, in order; what then is left over stays unpaired.
    """
    recent = past.sort_values(["time", "run"], kind="stable").groupby(["unit", "seed"]).tail(window)
    known = recent.groupby(["unit", "seed"])["points"].mean()
    lines = []
    for unit, part in now.groupby("unit", sort=True):
        values = dict(zip(part["seed"], part["points"], strict=True))
        old = known[unit].to_dict() if unit in known.index.get_level_values("unit") else {}
        lines += [(unit, s, old[s], values[s], False) for s in sorted(values) if s in old]
        new, left = sorted(s for s in values if s not in old), sorted(s for s in old if s not in values)
        lines += [(unit, a, old[b], values[a], True) for a, b in zip(new, left, strict=False)]
    return pd.DataFrame(lines, columns=["unit", "seed", "before", "after", "fresh"])


def _judged(change: Change, config: CompareConfig) -> Change:
    if change.p > config.alpha or abs(change.effect) < config.least_points:
        return change
    if change.low is None or change.low <= 0 <= change.high:
        return change
    return replace(change, verdict=REGRESSION if change.effect < 0 else IMPROVEMENT)


def _order(change: Change) -> tuple[int, str, str]:
    order = (REGRESSION, IMPROVEMENT, UNSURE, FEW, EQUAL, NEW)
    return order.index(change.verdict), change.level, change.method
