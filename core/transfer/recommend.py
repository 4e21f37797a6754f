"""Which strategy: what happened in similar situations, weighed by how similar they were.

What is measured before any fine-tuning is a *situation* (what the source's view tells of the classes, sizes); what
happened is an *experience* (:mod:`core.transfer.experience`), so a recommender learns from every recorded run and is
compared with what then happened. Regrets are losses against the best of the strategies to choose from, gains are over
one of them (:func:`reference_of`), both in the units of the metric. What is forecast comes from similar situations;
what is picked, from a policy (:mod:`core.transfer.policy`), unless similar situations clearly advised better.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from core.transfer.durations import Durations
from core.transfer.experience import Experience
from core.transfer.policy import FEW_RESAMPLES, RESAMPLES, Policy
from core.transfer.scores import transferability
from core.transfer.situation import Situation
from core.transfer.sources import Source
from core.transfer.strategies import STRATEGIES, StrategyConfig
from core.transfer.target import Target

REFERENCE = "linear_probe"
NO_TRANSFER = "scratch"
REFERENCES = (REFERENCE, NO_TRANSFER, "share")  # what gains are over: the first of them that there is
FAMILIES = ("adjust", "share", "retrain")  # without experience the first that there is
TOLERANCE = 0.01 + 1e-9  # one point; .71 - .70 is a little more in binary
RULE = (0.6, 0.2)  # agreement above: share; above: adjust; below: retrain

# What makes two situations similar: measure -> difference that counts as one. ``lift`` is what a cross-validated probe
# knows beyond the largest class (0: nothing, 1: everything), ``imbalance`` how far that class is above an even share.
MEASURES = {
    "agreement": 0.25,
    "lift": 0.25,
    "imbalance": 0.15,
    "log_examples": 0.8,
    "log_parameters": 0.5,
    "log_classes": 0.5,
}
WIDTHS = (0.5, 1.0, 2.0, 4.0)
FEWEST_GROUPS = 3  # targets that a policy is learned from and judged on
MOST_FOLDS = 10  # of targets, in judging it
CLEARLY = 2.0  # standard errors
PRIOR = 1.0  # the mean over all experiences counts as much as this many situations that are just alike


def similarity_rule(situation: Situation) -> str | None:
    """The simple rule, as a baseline: very similar share, somewhat adjust (full fine-tuning), otherwise retrain.

    None where similarity is not known (numbers and texts as answers have no classes to agree on).
    """
    similar = situation.get("agreement")
    if similar is None:
        return None
    if similar >= RULE[0]:
        return "share"
    return "full" if similar >= RULE[1] else NO_TRANSFER


@dataclass(frozen=True)
class Forecast:
    """What is predicted of one strategy; None without experience of it.

    ``regret`` is the predicted loss against the best of the strategies to choose from. ``gain`` is over the reference
    of the recommendation, ``low`` and ``high`` are its 10 % and 90 % quantiles over similar situations. ``seconds``: of
    a fit. ``votes``: share of the policy's stumps that name it; None where no policy decides.
    """

    strategy: str
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    seconds: float | None = None
    regret: float | None = None
    votes: float | None = None


@dataclass(frozen=True)
class Recommendation:
    """The pick and why.

    ``transfer`` is False when training from scratch is picked: do not transfer. ``confidence``: weighted share of past
    situations in which the pick was within one point of the best to choose from; 0 where it is a default
    (:func:`cold_start`). ``contributions``: by how much each measure (its value against the usual one) raised the
    pick's share of votes, or lowered its predicted regret where none voted. ``reference``: what predicted gains are
    over; None where nothing is predicted.
    """

    pick: str
    transfer: bool
    confidence: float
    forecasts: Sequence[Forecast]
    contributions: Mapping[str, float] = field(default_factory=dict)
    reference: str | None = None

    @property
    def voted(self) -> bool:
        """Whether a policy decided, not the least predicted regret."""
        return any(f.votes is not None for f in self.forecasts)

    @property
    def learned(self) -> bool:
        """Whether past situations speak for the pick; otherwise it is a default."""
        return self.of(self.pick).regret is not None

    def of(self, strategy: str) -> Forecast:
        return next(f for f in self.forecasts if f.strategy == strategy)


def cold_start(strategies: Sequence[str]) -> str:
    """The default where there is nothing to learn from: the linear probe, else ``full``, else the first that adjusts,
    else the source as it is; training from scratch only where every strategy retrains.

    The probe trains only an output layer and cannot lose the source's knowledge; ``full`` was within one point of the
    best in more cells of the benchmark than any other constant choice.
    """
    families = {s: STRATEGIES.entry(s).facts["family"] for s in strategies}
    usual = [s for s in (REFERENCE, "full") if s in families]
    return [*usual, *sorted(families, key=lambda s: FAMILIES.index(families[s]))][0]


def reference_of(strategies: Sequence[str]) -> str | None:
    """What gains are over: the first of :data:`REFERENCES` among the strategies, else their first."""
    return next((s for s in (*REFERENCES, *strategies) if s in strategies), None)


class Recommender:
    """Weighs past situations by similarity; without any it takes a default (:func:`cold_start`) with confidence 0.

    Regret and gain of a strategy are means over the past situations in which it was run beside another one to choose
    from (Nadaraya-Watson, Gaussian kernel over the measures), shrunk towards its mean over all of them. The least
    predicted regret and the votes of a policy are both tried on each group of experiences with what the others teach.
    The votes decide, unless the least regret was within :data:`TOLERANCE` of the best more often by more than two
    standard errors over groups: what chance explains should not turn the advice over with every new experience.

    Args:
        width: of the kernel; None takes the one of :data:`WIDTHS` with which advice for each group of experiences from
            the other groups would have lost least.
        measures: what makes situations similar, with the difference that counts as one.
        seed: of the targets that the policy's stumps are learned from.
    """

    def __init__(self, width: float | None = None, measures: Mapping[str, float] = MEASURES, seed: int = 0):
        self.width, self.measures, self.seed = width, measures, seed
        self._strategies: list[str] = []
        self._places = np.zeros((0, len(measures)))
        self._scores = np.zeros((0, 0))  # (situations, strategies), NaN where not run
        self._durations = Durations()
        self._groups = np.zeros(0, dtype=str)
        self._voted = False
        self._policies: dict[tuple[str, ...], Policy | None] = {}

    def fit(self, experiences: Sequence[Experience]) -> "Recommender":
        """Learn from all situations in which at least two strategies were run; others only teach costs."""
        cells: dict[str, list[Experience]] = {}
        for e in experiences:
            cells.setdefault(e.cell, []).append(e)
        self._durations = Durations(experiences)
        cells = {c: found for c, found in cells.items() if len({e.strategy for e in found}) > 1}
        if not cells:
            return self
        self._strategies = sorted({e.strategy for found in cells.values() for e in found})
        self._places = np.array([_place(found[0].situation, self.measures) for found in cells.values()])
        self._scores = np.array([[_mean_score(found, s) for s in self._strategies] for found in cells.values()])
        self._groups = np.array([found[0].group for found in cells.values()])
        if self.width is None:
            self.width = self._best_width()
        self._voted = self._policy_suffices()
        self._policies.clear()
        return self

    def recommend(
        self,
        situation: Situation,
        strategies: Sequence[str] | None = None,
        budget_s: float | None = None,
        passes: float | None = None,
    ) -> Recommendation:
        """Forecast every strategy and pick one that fits the budget, by votes or by least predicted regret.

        Args:
            strategies: those to choose from; default: all that were ever experienced, and the linear probe.
            budget_s: largest predicted seconds; strategies without experience of their cost are kept.
            passes: training examples that strategies which train will pass, epochs counted; default: as many as a
                :class:`~core.transfer.strategies.StrategyConfig` of no settings passes.

        Raises:
            ValueError: unknown strategy, or none fits the budget.
        """
        names = list(dict.fromkeys(strategies or [*self._strategies, REFERENCE]))
        for name in names:
            STRATEGIES.entry(name)
        place = _place(situation, self.measures)
        weights = _similar(place, self._places, self.width or 1.0)
        forecasts = self._forecasts(names, weights)
        passes = _usual_passes(situation) if passes is None else passes
        forecasts = [replace(f, seconds=self._durations.of(f.strategy, situation, passes)) for f in forecasts]
        able = [f for f in forecasts if budget_s is None or f.seconds is None or f.seconds <= budget_s]
        if not able:
            cheapest = min(f.seconds for f in forecasts)
            raise ValueError(f"no strategy fits {budget_s:g} s; the cheapest is predicted to take {cheapest:.3g} s")
        known = [f for f in able if f.regret is not None]
        reference = reference_of([f.strategy for f in forecasts if f.regret is not None])
        if not known:
            pick = cold_start([f.strategy for f in able])
            return Recommendation(pick, pick != NO_TRANSFER, 0.0, forecasts, reference=reference)
        policy = self._policy([f.strategy for f in known]) if self._voted else None
        if policy:
            votes = dict(zip([f.strategy for f in known], policy.votes(place).tolist()))
            known = [replace(f, votes=votes[f.strategy]) for f in known]
            forecasts = [replace(f, votes=votes.get(f.strategy)) for f in forecasts]
        pick = min(known, key=lambda f: (-(f.votes or 0.0), f.regret, f.strategy)).strategy
        lost = self._regrets(names)[:, [names.index(pick)]]
        moved = self._contributions(place, self._share_of_votes(policy, known, pick) if policy else self._less(lost))
        confidence = _confidence(lost, weights, sum(f.regret is not None for f in forecasts))
        return Recommendation(pick, pick != NO_TRANSFER, confidence, forecasts, moved, reference)

    def _columns(self, names: Sequence[str]) -> np.ndarray:
        """Scores of the named strategies (n, len(names)), NaN where not run."""
        index = {s: i for i, s in enumerate(self._strategies)}
        missing = np.full(len(self._scores), np.nan)
        return np.stack([self._scores[:, index[s]] if s in index else missing for s in names], axis=1)

    def _regrets(self, names: Sequence[str]) -> np.ndarray:
        return _regrets(self._columns(names))

    def _policy(self, strategies: Sequence[str]) -> Policy | None:
        """The policy for a choice between these, learned once; None where too few targets tell of it."""
        if (names := tuple(strategies)) not in self._policies:
            lost = self._regrets(names)
            told = ~np.isnan(lost).all(axis=1)
            groups = self._groups[told]
            enough = len(set(groups)) >= FEWEST_GROUPS
            told_of = (self._places[told], _worth(lost[told]), groups)
            self._policies[names] = Policy(*told_of, RESAMPLES, self.seed) if enough else None
        return self._policies[names]

    def _share_of_votes(self, policy: Policy, known: Sequence[Forecast], pick: str) -> Callable[[np.ndarray], float]:
        index = [f.strategy for f in known].index(pick)
        return lambda place: float(policy.votes(place)[index])

    def _less(self, lost: np.ndarray) -> Callable[[np.ndarray], float]:
        return lambda place: -float(_shrunk(lost, _similar(place, self._places, self.width))[0])

    def _forecasts(self, names: Sequence[str], weights: np.ndarray) -> list[Forecast]:
        """Regret and gain of each strategy; empty forecasts where none was run beside another of them."""
        lost, scores = self._regrets(names), self._columns(names)
        known = [n for n, column in zip(names, lost.T) if not np.isnan(column).all()]
        reference = reference_of(known)
        out = []
        for i, name in enumerate(names):
            if name not in known:
                out.append(Forecast(name))
                continue
            gains = scores[:, [i]] - scores[:, [names.index(reference)]]
            gain = low = high = None
            if not np.isnan(gains).all():
                gain, (low, high) = float(_shrunk(gains, weights)[0]), _quantiles(gains[:, 0], weights)
                low, high = min(low, gain), max(high, gain)
            out.append(Forecast(name, gain, low, high, regret=float(_shrunk(lost[:, [i]], weights)[0])))
        return out

    def _contributions(self, place: np.ndarray, worth: Callable[[np.ndarray], float]) -> dict[str, float]:
        """How much more the pick is worth at this place than with the measure at its usual value, largest first."""
        now, moved = worth(place), {}
        for i, name in enumerate(self.measures):
            seen = self._places[~np.isnan(self._places[:, i]), i]
            if len(seen) and not np.isnan(place[i]):
                other = place.copy()
                other[i] = np.median(seen)
                moved[name] = now - worth(other)
        return dict(sorted(moved.items(), key=lambda item: -abs(item[1])))

    def _advised(self, width: float) -> np.ndarray:
        """What the least predicted regret would have lost in each situation, had its group been unknown."""
        lost, total = _regrets(self._scores), []
        for i, group in enumerate(self._groups):
            others = self._groups != group
            predicted = _shrunk(lost[others], _similar(self._places[i], self._places[others], width))
            unknown = np.isnan(lost[i]) | np.isnan(predicted)  # not run here, or by this group alone
            total.append(0.0 if unknown.all() else lost[i][np.argmin(np.where(unknown, np.inf, predicted))])
        return np.array(total)

    def _best_width(self) -> float:
        """The width with the least mean regret when each group is advised from the others; 1 with a single group."""
        if len(set(self._groups)) < 2:
            return 1.0
        return min(WIDTHS, key=lambda width: self._advised(width).sum())

    def _policy_suffices(self) -> bool:
        """Whether least regrets were not within the tolerance clearly more often than votes of the other groups."""
        groups, member = np.unique(self._groups, return_inverse=True)
        if len(groups) < FEWEST_GROUPS:
            return False
        lost, voted = _regrets(self._scores), np.zeros(len(member))
        folds = member % MOST_FOLDS  # a long history is not left out target by target
        for fold in np.unique(folds):
            mine = folds == fold
            others = (self._places[~mine], _worth(lost[~mine]), self._groups[~mine])
            policy = Policy(*others, FEW_RESAMPLES, self.seed)
            for i in np.flatnonzero(mine):
                voted[i] = lost[i][np.argmax(np.where(np.isnan(lost[i]), -1.0, policy.votes(self._places[i])))]
        better = (self._advised(self.width) <= TOLERANCE).astype(float) - (voted <= TOLERANCE)
        of_groups = np.array([better[member == k].mean() for k in range(len(groups))])
        return bool(of_groups.mean() <= CLEARLY * of_groups.std(ddof=1) / np.sqrt(len(groups)))


def _regrets(scores: np.ndarray) -> np.ndarray:
    """What each strategy lost against the best of its situation (n, S), NaN where it was not run, or none beside it."""
    beside = (~np.isnan(scores)).sum(axis=1, keepdims=True) > 1  # alone, a strategy is always the best
    best = np.where(np.isnan(scores), -np.inf, scores).max(axis=1, keepdims=True, initial=-np.inf)
    return np.where(beside, best - scores, np.nan)


def _confidence(lost: np.ndarray, weights: np.ndarray, choices: int) -> float:
    """Weighted share of the situations in which at most the tolerance was lost (n, 1).

    Beside them counts one in which each of the ``choices`` was as likely the best: one past transfer is no certainty.
    """
    hits = np.concatenate([_within(lost), np.full((1, 1), 1 / choices)])
    return float(_shrunk(hits, np.append(weights, 0.0))[0])


def _usual_passes(situation: Situation) -> float:
    """Training examples that a strategy passes where nothing is configured."""
    n = max(1, round(10 ** float(situation.get("log_examples") or 0.0)))
    return float(StrategyConfig().epochs(n) * n)


def _within(lost: np.ndarray) -> np.ndarray:
    """1 where at most :data:`TOLERANCE` was lost, else 0; NaN where unknown."""
    return np.where(np.isnan(lost), np.nan, lost <= TOLERANCE)


def _worth(lost: np.ndarray) -> np.ndarray:
    """1 where nothing was lost, .37 at one point, near 0 from three on; NaN where unknown.

    A step at the tolerance would let a loss of 1.1 points, which another seed turns into 0.9, count as a miss.
    """
    return np.exp(-lost / TOLERANCE)


def _place(situation: Situation, measures: Mapping[str, float]) -> np.ndarray:
    """A situation's measures over their scales, NaN where unknown."""
    known = {k: v for k, v in situation.items() if v is not None}
    majority, classes = known.get("majority"), known.get("classes")
    if majority is not None and majority < 1 and "probe" in known:
        known["lift"] = (known["probe"] - majority) / (1 - majority)
    if majority is not None and classes:
        known["imbalance"] = majority - 1 / classes
        known["log_classes"] = float(np.log10(classes))
    return np.array([known.get(name, np.nan) / scale for name, scale in measures.items()])


def _similar(place: np.ndarray, places: np.ndarray, width: float) -> np.ndarray:
    """Gaussian kernel of the distances (n,); a measure unknown on one side alone counts as different by one."""
    apart = (places - place) ** 2
    apart = np.where(np.isnan(apart), (np.isnan(places) != np.isnan(place)).astype(float), apart)
    return np.exp(-apart.sum(axis=1) / (2 * width**2))


def _shrunk(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted means of the columns (n, S), NaN left out, with :data:`PRIOR` weight on each column's plain mean."""
    there = ~np.isnan(values)
    w, v = weights[:, None] * there, np.where(there, values, 0.0)
    with np.errstate(invalid="ignore"):
        plain = v.sum(axis=0) / there.sum(axis=0)
    return (PRIOR * plain + (w * v).sum(axis=0)) / (PRIOR + w.sum(axis=0))


def _quantiles(values: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Weighted 10 % and 90 % quantiles, NaN left out."""
    there = ~np.isnan(values)
    order = np.argsort(values[there])
    v, w = values[there][order], weights[there][order] + 1e-9
    at = (np.cumsum(w) - w / 2) / w.sum()
    low, high = np.interp([0.1, 0.9], at, v)
    return float(low), float(high)


def _mean_score(found: Sequence[Experience], strategy: str) -> float:
    scores = [e.score for e in found if e.strategy == strategy]
    return float(np.mean(scores)) if scores else float("nan")


def rank_sources(sources: Sequence[Source], target: Target, score: str = "logme") -> list[tuple[Source, float | None]]:
    """Sources with their score on the target, best first; undefined scores last. Nothing is fine-tuned."""
    target = target.without_copies()
    by_classes = needs_head(score)
    ranked = []
    for s in sources:
        s.fits(target)
        x = s.probabilities(target.train) if by_classes else s.features(target.train)
        ranked.append((s, None if x is None else transferability(score, x, target.labels, target.kind)))
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


def needs_head(score: str) -> bool:
    """Whether a score reads the probabilities of a source's own classes."""
    from core.transfer.scores import SCORES

    return SCORES.entry(score).facts["needs"] == "probabilities"
