"""Source predictor: extremely randomised trees on space-independent features, kept as plain arrays.

Trees are fitted by scikit-learn and exported, so that a learned source is a file of arrays that another site reads
without scikit-learn. Two forests see the two views of a cell (raw features, ranks within its space); the label is the
source rank u, stretched at the top by -log(1 - u + .01), because a search feels the top only. In measurements over ten
pairs of spaces that label and leaves of at least ten cells transferred best (boosted trees, kernel ridge and ridge
regression lost; so did the plain rank as label).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from core.nas.features import NAMES

TREES, LEAF, SHARE = 100, 10, 0.2
TOP = 0.01
COMPARABLE = len(NAMES)  # raw sizes depend on a space's macro network; only their ranks compare across spaces


@dataclass(frozen=True)
class Forest:
    """Regression trees side by side; leaves point at themselves.

    ``feature``, ``left``, ``right`` int32 and ``threshold``, ``value`` float32, all ``[nodes]``; ``roots`` int32
    ``[trees]``; ``depth`` of the deepest tree.
    """

    feature: np.ndarray
    left: np.ndarray
    right: np.ndarray
    threshold: np.ndarray
    value: np.ndarray
    roots: np.ndarray
    depth: int

    @classmethod
    def fit(cls, x: np.ndarray, y: np.ndarray, seed: int = 0, trees: int = TREES) -> "Forest":
        """Fit to ``x [n, f]``, ``y [n]``."""
        from sklearn.ensemble import ExtraTreesRegressor

        model = ExtraTreesRegressor(trees, min_samples_leaf=min(LEAF, max(1, len(x) // 20)), max_features=SHARE)
        model.set_params(random_state=seed).fit(x, y)
        parts, roots, offset = [], [], 0
        for estimator in model.estimators_:
            tree = estimator.tree_
            own = np.arange(tree.node_count)
            leaf = tree.children_left < 0
            left, right = (np.where(leaf, own, c) + offset for c in (tree.children_left, tree.children_right))
            parts.append((np.maximum(tree.feature, 0), left, right, tree.threshold, tree.value[:, 0, 0]))
            roots.append(offset)
            offset += tree.node_count
        feature, left, right, threshold, value = (np.concatenate(c) for c in zip(*parts, strict=True))
        depth = max(e.get_depth() for e in model.estimators_)
        ints, floats = (a.astype(np.int32) for a in (feature, left, right)), (threshold, value)
        return cls(*ints, *(a.astype(np.float32) for a in floats), np.array(roots, dtype=np.int32), depth)

    def predict(self, x: np.ndarray, block: int = 2000) -> np.ndarray:
        """Mean over trees, float64 ``[n]``."""
        x = np.ascontiguousarray(x, dtype=np.float32)
        out = np.empty(len(x))
        for start in range(0, len(x), block):
            part = x[start : start + block]
            rows = np.arange(len(part))[:, None]
            node = np.broadcast_to(self.roots, (len(part), len(self.roots)))
            for _ in range(self.depth):
                node = np.where(
                    part[rows, self.feature[node]] <= self.threshold[node], self.left[node], self.right[node]
                )
            out[start : start + block] = self.value[node].mean(1)
        return out

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        names = ("feature", "left", "right", "threshold", "value", "roots")
        return {f"{prefix}.{n}": getattr(self, n) for n in names} | {f"{prefix}.depth": np.array([self.depth])}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], prefix: str) -> "Forest":
        names = ("feature", "left", "right", "threshold", "value", "roots")
        return cls(*(arrays[f"{prefix}.{n}"] for n in names), int(arrays[f"{prefix}.depth"][0]))


def top_label(y: np.ndarray) -> np.ndarray:
    """-log(1 - u + .01) of the rank u in 0..1: steep at the top."""
    u = (rankdata(y) - 0.5) / len(y)
    return -np.log(1 - u + TOP)


@dataclass(frozen=True)
class RankPredictor:
    """Two forests, one a view. Higher means better in the source's eyes; only the order means something."""

    raw: Forest
    rank: Forest

    @classmethod
    def fit(cls, raw: np.ndarray, ranks: np.ndarray, y: np.ndarray, seed: int = 0) -> "RankPredictor":
        """``raw``, ``ranks`` float ``[n, f]`` (:class:`core.nas.features.Scale`), labels ``y [n]``, larger better.

        Raises:
            ValueError: fewer than 20 labels, or a label that is not finite.
        """
        if len(y) < 20 or not np.isfinite(y).all():
            raise ValueError(f"a source needs at least 20 finite labels, got {int(np.isfinite(y).sum())} of {len(y)}")
        label = top_label(y)
        return cls(Forest.fit(raw[:, :COMPARABLE], label, seed), Forest.fit(ranks, label, seed + 1))

    def predict(self, raw: np.ndarray, ranks: np.ndarray) -> np.ndarray:
        """Scores of both views, ``[n, 2]``; their scales differ in a foreign space, only ranks there can be joined."""
        return np.stack([self.raw.predict(raw[:, :COMPARABLE]), self.rank.predict(ranks)], axis=1)
