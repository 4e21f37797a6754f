"""The situation: everything that can be measured about a source and a target before any fine-tuning."""

from collections.abc import Mapping, Sequence

import numpy as np

from core.transfer.scores import transferability
from core.transfer.similarity import agreement, label_overlap, mmd, prototype_accuracy, proxy_a_distance
from core.transfer.sources import Source
from core.transfer.target import Target

Situation = Mapping[str, float | None]
FEATURE_SCORES = ("logme", "h-score-regularised", "sfda", "gbc", "n-leep")


def describe(source: Source, target: Target, labels: Sequence[str] = (), seed: int = 0) -> dict[str, float | None]:
    """The situation: everything measured about a source and a target before any fine-tuning. Undefined values are None.

    Args:
        labels: names of the target's classes, for the label overlap.
    """
    target = target.without_copies()  # a copy in another fold would tell the label
    x, y, n = source.features(target.train), target.labels, len(target.train)
    out: dict[str, float | None] = {
        "log_examples": float(np.log10(n)),
        "log_parameters": float(np.log10(max(source.parameters, 1))),
        "log_width": float(np.log10(x.shape[1])),
        "pair": float(target.train.pairs is not None),
        "mean_words": float(np.mean([len(t.split()) for t in target.train.texts])) if target.train.texts else None,
    }
    if target.kind == "classification":
        counts = np.bincount(y, minlength=target.classes)
        out |= {
            "classes": float(target.classes),
            "log_per_class": float(np.log10(n / target.classes)),
            "majority": float(counts.max() / n),
            "agreement": agreement(x, y),
            "prototype": prototype_accuracy(x, y),
            "probe": _probe_accuracy(x, y, seed),
        }
        out |= {name: transferability(name, x, y) for name in FEATURE_SCORES}
        p = source.probabilities(target.train)
        out["leep"] = None if p is None else transferability("leep", p, y)
    out |= _similarity(source, x, labels, seed)
    return out


def _similarity(source: Source, x: np.ndarray, labels: Sequence[str], seed: int) -> dict[str, float | None]:
    """Distance of the source's own data to the target's, where the source's data are known."""
    if source.train is None:
        return {"mmd": None, "proxy_a": None, "label_overlap": None}
    own = source.features(source.train)
    enough = min(len(own), len(x)) >= 4
    return {
        "mmd": mmd(own, x, seed) if enough else None,
        "proxy_a": proxy_a_distance(own, x, seed) if enough else None,
        "label_overlap": label_overlap(source.labels, labels),
    }


def _probe_accuracy(x: np.ndarray, y: np.ndarray, seed: int) -> float | None:
    """Cross-validated accuracy of a linear probe; None where a class has fewer than two examples."""
    fewest = np.bincount(y)[np.unique(y)].min()
    if fewest < 2:
        return None
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    scaled = (x - x.mean(axis=0)) / (np.sqrt((x.std(axis=0) ** 2).mean()) or 1.0)
    folds = StratifiedKFold(int(min(4, fewest)), shuffle=True, random_state=seed)
    return float(cross_val_score(LogisticRegression(C=0.1, max_iter=200), scaled, y, cv=folds).mean())
