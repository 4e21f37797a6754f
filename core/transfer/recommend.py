"""Which strategy: predict gain and cost of each from what can be measured before any fine-tuning, then pick.

What is measured is a *situation* (scores, similarity, sizes); what happened is an *experience* (situation, strategy,
score, seconds). Experiences are rows, so a recommender learns from every recorded run and is compared with what then
happened. Predictions are gains over the linear probe in the units of the metric.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from core.evaluate.rows import Row
from core.transfer.scores import transferability
from core.transfer.situation import Situation
from core.transfer.sources import Source
from core.transfer.strategies import STRATEGIES
from core.transfer.target import Target

REFERENCE = "linear_probe"
NO_TRANSFER = "scratch"
TOLERANCE = 0.01
RULE = (0.6, 0.2)  # agreement above: share; above: adjust; below: retrain


def similarity_rule(situation: Situation) -> str:
    """The simple rule, as a baseline: very similar share, somewhat adjust (full fine-tuning), otherwise retrain."""
    similar = situation.get("agreement") or 0.0
    if similar >= RULE[0]:
        return "share"
    return "full" if similar >= RULE[1] else NO_TRANSFER


@dataclass(frozen=True)
class Experience:
    """What happened once: ``group`` names what must not be on both sides of an evaluation (the target)."""

    situation: Situation
    strategy: str
    score: float
    seconds: float
    group: str
    cell: str

    def row(self, **more: Any) -> Row:
        """As a row of the history."""
        settings = {"situation": dict(self.situation), "group": self.group, "cell": self.cell, "seconds": self.seconds}
        return Row(method=self.strategy, metric="experience", value=self.score, settings=settings, **more)

    @classmethod
    def of(cls, row: Row) -> "Experience":
        s = row.settings
        return cls(s["situation"], row.method, row.value, s["seconds"], s["group"], s["cell"])


@dataclass(frozen=True)
class Forecast:
    """Predicted gain over the linear probe (with the spread of the ensemble) and seconds of one strategy."""

    strategy: str
    gain: float
    low: float
    high: float
    seconds: float | None


@dataclass(frozen=True)
class Recommendation:
    """The pick and why.

    ``transfer`` is False when training from scratch is picked: do not transfer. ``confidence``: share of the ensemble
    for which the pick is within one point of the best. ``contributions``: by how much each measured quantity moved the
    pick's predicted gain (its value against the usual one).
    """

    pick: str
    transfer: bool
    confidence: float
    forecasts: Sequence[Forecast]
    contributions: Mapping[str, float] = field(default_factory=dict)

    def of(self, strategy: str) -> Forecast:
        return next(f for f in self.forecasts if f.strategy == strategy)


class Recommender:
    """Learns gains from experiences with an ensemble of randomised trees; without any it predicts no gain.

    Args:
        seed: of the ensemble.
        trees: size of the ensemble.
    """

    def __init__(self, seed: int = 0, trees: int = 200):
        self.seed, self.trees = seed, trees
        self._model: Any = None
        self._names: list[str] = []
        self._usual = np.zeros(0)
        self._strategies: list[str] = []
        self._seconds: dict[str, list[tuple[float, float]]] = {}

    def fit(self, experiences: Sequence[Experience]) -> "Recommender":
        """Learn from all cells in which the linear probe was run too; others only teach costs."""
        self._learn_costs(experiences)
        reference: dict[str, list[float]] = {}
        for e in experiences:
            if e.strategy == REFERENCE:
                reference.setdefault(e.cell, []).append(e.score)
        used = [e for e in experiences if e.cell in reference and e.strategy != REFERENCE]
        if not used:
            return self
        from sklearn.ensemble import ExtraTreesRegressor

        self._names = sorted({k for e in used for k in e.situation})
        self._strategies = sorted({e.strategy for e in used})
        table = np.array([[_number(e.situation.get(k)) for k in self._names] for e in used])
        seen = ~np.isnan(table)
        self._usual = np.array([np.median(c[s]) if s.any() else 0.0 for c, s in zip(table.T, seen.T)])
        x = np.stack([self._vector(e.situation, e.strategy) for e in used])
        gain = np.array([e.score - np.mean(reference[e.cell]) for e in used])
        self._model = ExtraTreesRegressor(
            self.trees, min_samples_leaf=3, max_features=0.6, bootstrap=True, random_state=self.seed, n_jobs=1
        ).fit(x, gain)
        return self

    def recommend(
        self, situation: Situation, strategies: Sequence[str] | None = None, budget_s: float | None = None
    ) -> Recommendation:
        """Forecast every strategy and pick the best one that fits the budget.

        Args:
            strategies: those to choose from; default: all that were ever experienced, and the linear probe.
            budget_s: largest predicted seconds; strategies without experience of their cost are kept.

        Raises:
            ValueError: unknown strategy, or none fits the budget.
        """
        names = list(strategies or [*self._strategies, REFERENCE])
        for name in names:
            STRATEGIES.entry(name)
        members = {n: self._members(situation, n) for n in dict.fromkeys(names)}
        forecasts = [self._forecast(situation, n, members[n]) for n in members]
        able = [f for f in forecasts if budget_s is None or f.seconds is None or f.seconds <= budget_s]
        if not able:
            cheapest = min(f.seconds for f in forecasts)
            raise ValueError(f"no strategy fits {budget_s:g} s; the cheapest is predicted to take {cheapest:.3g} s")
        # Ties (nothing learned yet) go to the probe, the cheapest that uses the labels.
        pick = max(able, key=lambda f: (f.gain, f.strategy == REFERENCE)).strategy
        best = np.max([members[f.strategy] for f in able], axis=0)
        confidence = float(np.mean(members[pick] >= best - TOLERANCE)) if self._model is not None else 0.0
        contributions = self._contributions(situation, pick)
        return Recommendation(pick, pick != NO_TRANSFER, confidence, forecasts, contributions)

    def _members(self, situation: Situation, strategy: str) -> np.ndarray:
        """Predicted gain by each member of the ensemble; the linear probe's is 0 by definition."""
        if self._model is None or strategy == REFERENCE or strategy not in self._strategies:
            return np.zeros(self.trees)
        x = self._vector(situation, strategy)[None]
        return np.array([tree.predict(x)[0] for tree in self._model.estimators_])

    def _forecast(self, situation: Situation, strategy: str, members: np.ndarray) -> Forecast:
        low, high = np.quantile(members, [0.1, 0.9])
        return Forecast(strategy, float(np.median(members)), float(low), float(high), self._cost(situation, strategy))

    def _vector(self, situation: Situation, strategy: str) -> np.ndarray:
        values = np.array([_number(situation.get(k)) for k in self._names])
        values = np.where(np.isnan(values), self._usual, values)
        one_hot = np.array([float(strategy == s) for s in self._strategies])
        family = float(STRATEGIES.entry(strategy).facts["family"] == "adjust")
        return np.concatenate([values, one_hot, [family]])

    def _contributions(self, situation: Situation, strategy: str) -> dict[str, float]:
        """Change of the predicted gain when one quantity is set to its usual value, largest first."""
        if self._model is None or strategy == REFERENCE:
            return {}
        base = self._vector(situation, strategy)
        x = np.repeat(base[None], len(self._names) + 1, axis=0)
        for i in range(len(self._names)):
            x[i + 1, i] = self._usual[i]
        predicted = self._model.predict(x)
        moved = {k: float(predicted[0] - p) for k, p in zip(self._names, predicted[1:])}
        return dict(sorted(moved.items(), key=lambda item: -abs(item[1])))

    def _learn_costs(self, experiences: Sequence[Experience]) -> None:
        for e in experiences:
            self._seconds.setdefault(e.strategy, []).append((_work(e.situation), e.seconds))

    def _cost(self, situation: Situation, strategy: str) -> float | None:
        """Seconds by the median rate (seconds per parameter and example) of this strategy's experiences."""
        past = self._seconds.get(strategy)
        if not past:
            return None
        return float(np.median([s / w for w, s in past]) * _work(situation))


def rank_sources(sources: Sequence[Source], target: Target, score: str = "logme") -> list[tuple[Source, float | None]]:
    """Sources with their score on the target, best first; undefined scores last. Nothing is fine-tuned."""
    needs_head = _needs_head(score)
    ranked = []
    for s in sources:
        s.fits(target)
        x = s.probabilities(target.train) if needs_head else s.features(target.train)
        ranked.append((s, None if x is None else transferability(score, x, target.labels)))
    return sorted(ranked, key=lambda pair: (pair[1] is None, -(pair[1] or 0.0)))


def regret(chosen: str, realised: Mapping[str, float]) -> float:
    """What choosing ``chosen`` lost against the best: at least 0."""
    return max(realised.values()) - realised[chosen]


def weighted_tau(predicted: Sequence[float], realised: Sequence[float]) -> float | None:
    """Weighted Kendall tau (top ranks weigh more; scipy); None where either side is constant."""
    from scipy.stats import weightedtau

    if len(predicted) < 2 or np.ptp(predicted) == 0 or np.ptp(realised) == 0:
        return None
    return float(weightedtau(predicted, realised).statistic)


def _needs_head(score: str) -> bool:
    from core.transfer.scores import SCORES

    return SCORES.entry(score).facts["needs"] == "probabilities"


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _work(situation: Situation) -> float:
    """Parameters times examples, the size that cost grows with."""
    return 10 ** float((situation.get("log_parameters") or 0) + (situation.get("log_examples") or 0))
