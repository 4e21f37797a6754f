"""Paired permutation test of many comparisons at once: which of them differ, whatever their number.

Without a change the differences of a pair are as likely with all their signs turned. So the signs of whole pairs are
turned, for all comparisons together, and each comparison's statistic is held against the largest of all comparisons
(step-down maxT; Westfall and Young 1993, Algorithm 4.1; Ge, Dudoit and Speed 2003, Box 2). That keeps the family-wise
error, makes use of what comparisons on the same pairs have in common, and lets a clear change among many comparisons
have the smallest p that one alone could have, 2 ** (1 - pairs), where a factor for their number would not.
"""

import itertools
import math

import numpy as np

EXACT = 16  # pairs up to which all sign patterns are looked at
DRAWN = 50_000  # patterns beyond
TIE = 1e-9  # rounding of sums in another order


def step_down_p(differences: np.ndarray, seed: int = 0) -> list[float]:
    """Two-sided p of each comparison, corrected over all of them.

    The statistic is the sum of a comparison's differences over the root of their sum of squares: Student's t but for a
    monotone function, and unchanged below the root by any sign.

    Args:
        differences: [pairs, comparisons]; NaN where a comparison does not have a pair.
        seed: of the drawn patterns, with more than ``EXACT`` pairs.

    Raises:
        ValueError: no pair or no comparison, or a comparison whose differences are all zero or absent.
    """
    d = np.nan_to_num(np.asarray(differences, dtype=np.float64))
    if d.ndim != 2 or not d.size:
        raise ValueError(f"differences must be [pairs, comparisons] with at least one of each, got shape {d.shape}")
    size = np.sqrt((d**2).sum(axis=0))
    if not size.all():
        raise ValueError("a comparison without any difference cannot be tested; leave it out")
    values = np.abs(_signs(len(d), seed) @ (d / size))  # the first pattern turns nothing
    order = np.argsort(-values[0], kind="stable")
    largest = np.maximum.accumulate(values[:, order][:, ::-1], axis=1)[:, ::-1]  # over this and all later ones
    p = np.maximum.accumulate((largest >= largest[0] - TIE).mean(axis=0))
    found = np.empty(len(p))
    found[order] = p
    return [float(v) for v in found]


def least_pairs(alpha: float) -> int:
    """So many pairs can give a p of ``alpha``: the smallest possible is 2 ** (1 - pairs)."""
    return math.ceil(1 - math.log2(alpha))


def _signs(pairs: int, seed: int) -> np.ndarray:
    """Sign patterns [patterns, pairs]; all turned at once is the same as none, so the first sign stays."""
    if pairs <= EXACT:
        return np.array([(1, *rest) for rest in itertools.product((1, -1), repeat=pairs - 1)], dtype=np.float64)
    drawn = np.random.default_rng(seed).choice((-1.0, 1.0), size=(DRAWN, pairs))
    drawn[0] = 1
    return drawn
