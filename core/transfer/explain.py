"""Why a transfer did what it did: layers that moved, answers under changed input, what a source is worth."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from core.data.augment import augment
from core.data.examples import Examples, Splits
from core.models.score import score
from core.transfer.nets import Prediction
from core.transfer.sources import Source
from core.transfer.strategies.peft_methods import Wrapped

PERTURBATIONS: dict[str, dict[str, dict[str, dict[str, Any]]]] = {
    "text": {
        "10 % of words dropped": {"word_drop": {"rate": 0.1}},
        "30 % of words dropped": {"word_drop": {"rate": 0.3}},
    },
    "image": {"rotated up to 15 degrees": {"rotate": {}}, "cropped to 80 %": {"crop": {"least": 0.8}}},
}
MOST = 100  # examples for the similarity of layers


def cka(x: np.ndarray, y: np.ndarray) -> float | None:
    """Linear centred kernel alignment of two views (n, D) and (n, E) of the same examples, in [0, 1].

    None where a view is constant (Kornblith et al. 2019, eq. 4).
    """
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    norm = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(np.linalg.norm(x.T @ y) ** 2 / norm) if norm > 0 else None


def layer_similarity(source: Source, net: Any, examples: Examples) -> list[float | None]:
    """CKA of each layer before and after the transfer; 1 where nothing moved.

    Empty for other than text encoders, and where virtual tokens make layers incomparable.
    """
    body = getattr(net, "body", None)
    if source.modality != "text" or body is None or isinstance(body.backbone, Wrapped):
        return []
    part = examples.sample(MOST)
    before = score(source.original, source.original.inputs(part), hidden=True)[1]
    after = score(body, body.inputs(part), hidden=True)[1]
    return [cka(before[:, k].astype(np.float64), after[:, k].astype(np.float64)) for k in range(before.shape[1])]


def under_change(
    predict: Any, examples: Examples, modality: str, metric: str, seed: int = 0
) -> dict[str, float | None]:
    """The score on changed copies of the examples: perturbation -> value; empty where none is known."""
    out = {}
    for name, methods in PERTURBATIONS.get(modality, {}).items():
        nothing = examples.take([])
        changed, _ = augment(Splits(examples, nothing, nothing), methods, copies=1, seed=seed)
        copies = changed.train.take(range(len(examples), 2 * len(examples)))
        answers: Prediction = predict(copies)
        out[name] = answers.scores([metric], copies.labels).get(metric)
    return out


def leave_one_source_out(realised: Mapping[str, float]) -> dict[str, float]:
    """What each source is worth: the best score with all sources less the best without it; 0 for all but the best."""
    if len(realised) < 2:
        return {}
    best = max(realised.values())
    return {s: best - max(v for other, v in realised.items() if other != s) for s in realised}
