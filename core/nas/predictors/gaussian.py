"""Gaussian processes in competition: which opinion about the target do its first answers support?

A hypothesis is an expert (or a pair, or none) as prior mean, with a length scale and a nugget. The evidence of the
answers weighs the hypotheses; prediction is their mixture. So a source is trusted exactly as far as it explains what
was measured, and a wrong one fades after a few queries: this is the trust gate.

    y = sigma * (sum_e b_e s_e(x) + m + g(x) + noise),  b_e ~ N(slope_e, spread^2),  m ~ N(0, 2^2),
    g ~ GP(0, rest * exp(-d^2 / 2 l^2)),  rest = max(1/4, 1 - (sum slopes)^2),

with sigma integrated out on a grid. Answers are centred on their median and cut at ``FLOOR`` robust deviations below
it, because accuracies have a long lower tail that says nothing about the top.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.linalg.lapack import dpotrf, dpotrs, dtrtrs

SIGMAS = np.exp(np.linspace(np.log(0.05), np.log(20), 25))
LENGTHS = (0.35, 0.7, 1.4)  # in units where two random cells are at squared distance 2
MEAN, SPREAD, FLOOR = 2.0, 0.25, 2.0
COVERED = 0.95  # share of the posterior weight that prediction mixes; the tail is left out


@dataclass(frozen=True)
class Hypothesis:
    """``slopes``: expert name -> expected slope on its normal score; empty for no expert. ``weight``: prior weight."""

    weight: float
    slopes: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return " + ".join(self.slopes) or "none"

    @property
    def rest(self) -> float:
        return max(0.25, 1 - sum(self.slopes.values()) ** 2)


@dataclass(frozen=True)
class _Fit:
    hypothesis: Hypothesis
    length: float
    factor: np.ndarray
    alpha: np.ndarray
    sigma: float


class TrustedProcess:
    """Mixture of Gaussian processes over hypotheses.

    Args:
        nuggets: noise variances tried, relative to ``rest``, so that hypotheses differ by their opinion alone.
    """

    def __init__(
        self,
        hypotheses: Sequence[Hypothesis],
        nuggets: Sequence[float] = (0.03, 0.3),
        lengths: Sequence[float] = LENGTHS,
    ):
        if not hypotheses:
            raise ValueError("a trusted process needs at least one hypothesis")
        self.hypotheses, self.nuggets, self.lengths = tuple(hypotheses), tuple(nuggets), tuple(lengths)
        self.fits: list[_Fit] = []
        self.evidence = np.zeros(0)  # log, of each fit

    def fit(self, scores: Mapping[str, np.ndarray], square: np.ndarray, y: np.ndarray) -> "TrustedProcess":
        """Condition on answers.

        Args:
            scores: expert -> normal scores of the asked cells ``[n]``; square: squared distances ``[n, n]``; y ``[n]``.
        """
        y = np.asarray(y, dtype=float)
        self.center = float(np.median(y))
        spread = float(np.std(y)) if len(y) < 4 else 1.4826 * float(np.median(np.abs(y - self.center)))
        self.unit = max(spread, 1e-3 * abs(self.center)) or 1.0  # all answers 0: no unit to find
        self.target = np.maximum((y - self.center) / self.unit, -FLOOR)
        self.scores = {name: np.asarray(s) for name, s in scores.items()}
        kernels = {length: np.exp(-0.5 * square / length**2) for length in self.lengths}
        self.fits, evidence = [], []
        for hypothesis in self.hypotheses:
            extra, mean = self._prior(hypothesis)
            for length in self.lengths:
                for nugget in self.nuggets:
                    cov = hypothesis.rest * kernels[length] + extra
                    cov[np.diag_indices_from(cov)] += nugget * hypothesis.rest
                    fitted, log_evidence = _condition(hypothesis, length, cov, mean, self.target)
                    self.fits.append(fitted)
                    evidence.append(np.log(hypothesis.weight) + log_evidence)
        self.evidence = np.array(evidence)
        return self

    def weights(self, without: Collection[str] = ()) -> np.ndarray:
        """Posterior weight of each fit, ``[fits]``; zero for those that listen to an expert of ``without``."""
        heard = np.array([not any(name in without for name in f.hypothesis.slopes) for f in self.fits])
        weights = np.where(heard, np.exp(self.evidence - self.evidence[heard].max()), 0.0)
        return weights / weights.sum()

    def _prior(self, hypothesis: Hypothesis) -> tuple[np.ndarray, np.ndarray]:
        n = len(self.target)
        cov, mean = np.full((n, n), MEAN**2), np.zeros(n)
        for name, slope in hypothesis.slopes.items():
            cov += SPREAD**2 * np.outer(self.scores[name], self.scores[name])
            mean += slope * self.scores[name]
        return cov, mean

    def predict(
        self, scores: Mapping[str, np.ndarray], square: np.ndarray, without: Collection[str] = ()
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation, in units of :attr:`target`, ``[m]`` each.

        Args:
            scores: expert -> normal scores of the cells ``[m]``; square: squared distances asked to cells ``[n, m]``.
            without: experts that are not heard (one hypothesis must do without them).
        """
        weights = self.weights(without)
        kernels: dict[float, np.ndarray] = {}
        first = second = total = 0.0
        for i in _heaviest(weights):
            weight, fit = weights[i], self.fits[i]
            if fit.length not in kernels:
                kernels[fit.length] = np.exp(-0.5 * square / fit.length**2)
            cross = fit.hypothesis.rest * kernels[fit.length] + MEAN**2
            own, mean = fit.hypothesis.rest + MEAN**2, 0.0
            for name, slope in fit.hypothesis.slopes.items():
                cross = cross + SPREAD**2 * np.outer(self.scores[name], scores[name])
                own = own + SPREAD**2 * scores[name] ** 2
                mean = mean + fit.sigma * slope * scores[name]
            mean = mean + fit.alpha @ cross
            half, _ = dtrtrs(fit.factor, cross, lower=1)
            variance = fit.sigma**2 * np.maximum(own - (half * half).sum(0), 1e-6)
            first, second, total = first + weight * mean, second + weight * (variance + mean**2), total + weight
        mean = first / total
        return mean, np.sqrt(np.maximum(second / total - mean**2, 1e-9))

    def trust(self) -> dict[str, float]:
        """Posterior weight of each hypothesis by name."""
        out = {h.name: 0.0 for h in self.hypotheses}
        for weight, fit in zip(self.weights(), self.fits, strict=True):
            out[fit.hypothesis.name] += float(weight)
        return out


def _heaviest(weights: np.ndarray) -> np.ndarray:
    """The fewest fits that carry ``COVERED`` of the weight, heaviest first."""
    order = np.argsort(-weights, kind="stable")
    return order[: int(np.searchsorted(np.cumsum(weights[order]), COVERED)) + 1]


def _condition(
    hypothesis: Hypothesis, length: float, cov: np.ndarray, mean: np.ndarray, target: np.ndarray
) -> tuple[_Fit, float]:
    """Posterior of one hypothesis and its log evidence, sigma integrated on the grid."""
    factor, failed = dpotrf(cov, lower=1, clean=1)
    if failed:
        raise FloatingPointError(f"the covariance of {len(target)} answers is not positive definite ({failed})")
    half, _ = dtrtrs(factor, np.stack([target, mean], axis=1), lower=1)
    tt, tm, mm = half[:, 0] @ half[:, 0], half[:, 0] @ half[:, 1], half[:, 1] @ half[:, 1]
    log = -0.5 * (tt / SIGMAS**2 - 2 * tm / SIGMAS + mm) - len(target) * np.log(SIGMAS)
    mass = np.exp(log - log.max())
    sigma = float(mass @ SIGMAS / mass.sum())
    alpha, _ = dpotrs(factor, target - sigma * mean, lower=1)
    evidence = log.max() + np.log(mass.sum()) - np.log(np.diag(factor)).sum()
    return _Fit(hypothesis, length, factor, alpha, sigma), float(evidence)
