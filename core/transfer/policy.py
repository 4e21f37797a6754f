"""Which strategy, learned as a decision: the one that would most often have been about as good as the best.

A mean regret is ruled by the few situations in which much can be lost, and advises whatever never loses much and seldom
wins. A policy is learned for the decision itself (policy trees: Athey and Wager 2021, eq. 2, here of depth one, for a
dozen targets teach no more), many times on resampled targets (bagging: Breiman 1996), and the votes are counted.
"""

import numpy as np

FEWEST = 3  # situations on each side of a split, as often as they count
RESAMPLES = 500
FEW_RESAMPLES = 100  # where a policy is only judged


class Policy:
    """Bagged stumps: each asks one measure and names one strategy for small and one for large values.

    Args:
        places: measures of past situations, float [n, M]; NaN where unknown (counts as large).
        worth: 1 where a strategy was as good as the best, 0 where much worse, float [n, S]; NaN where it was not run,
            which counts as its mean.
        groups: what is resampled together and counts once, however many situations it has, [n].
        resamples: stumps.
        seed: of the resamples.
    """

    def __init__(
        self, places: np.ndarray, worth: np.ndarray, groups: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
    ):
        there = ~np.isnan(worth)
        means = np.where(there, worth, 0.0).sum(axis=0) / np.maximum(there.sum(axis=0), 1)
        values, rng = np.where(there, worth, means), np.random.default_rng(seed)
        names, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        each = len(groups) / (len(names) * sizes)  # situations of one target say much the same
        orders = np.argsort(places, axis=0, kind="stable")  # NaN last
        ordered = np.take_along_axis(places, orders, axis=0), values[orders], orders
        self.strategies = worth.shape[1]
        draws = (np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names)) for _ in range(resamples))
        self._stumps = [_stump(*ordered, (drawn * each)[member]) for drawn in draws]

    def votes(self, place: np.ndarray) -> np.ndarray:
        """Share of the stumps that name each strategy, float [S], for measures [M]."""
        counts = np.zeros(self.strategies)
        for measure, threshold, below, above in self._stumps:
            counts[below if place[measure] < threshold else above] += 1
        return counts / len(self._stumps)


def _stump(places: np.ndarray, worth: np.ndarray, orders: np.ndarray, times: np.ndarray) -> tuple[int, float, int, int]:
    """The best stump (measure, threshold, strategy below, strategy above) where situations count ``times`` times.

    Args:
        places: each measure sorted by itself, [n, M]; NaN last.
        worth: of the strategies in that order, [n, M, S].
        orders: the situations in that order, [n, M].
    """
    weights = times[orders]
    below = np.cumsum(weights[..., None] * worth, axis=0)
    total, below, counts = below[-1, 0], below[:-1], np.cumsum(weights, axis=0)[:-1]
    apart = (places[:-1] < places[1:]) & (counts >= FEWEST) & (times.sum() - counts >= FEWEST)
    if not apart.any():
        return 0, np.inf, int(total.argmax()), int(total.argmax())
    gained = np.where(apart, below.max(axis=2) + (total - below).max(axis=2), -1.0)
    best = gained.max(axis=0)
    measure = int(np.argmax(best >= best.max() - 1e-9))  # of equals the first, whatever their last digit
    at = int(gained[:, measure].argmax())
    threshold = (places[at, measure] + places[at + 1, measure]) / 2
    return measure, threshold, int(below[at, measure].argmax()), int((total - below[at, measure]).argmax())
