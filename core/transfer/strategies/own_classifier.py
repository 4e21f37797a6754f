"""Own classifier: a source that was trained to tell the target's very classes apart answers as it is."""

import numpy as np

from core.transfer.budget import Budget
from core.transfer.cost import Cost
from core.transfer.nets import Prediction
from core.transfer.own_classifier import order_of
from core.transfer.sources import Source
from core.transfer.strategies import STRATEGIES, Fitted, StrategyConfig
from core.transfer.target import Target


@STRATEGIES.register(
    "own_classifier",
    family="share",
    kinds=("classification",),
    modalities=("text", "image", "audio"),
    needs="labels",
    source="zero-shot use of a trained classifier",
)
def own_classifier(source: Source, target: Target, config: StrategyConfig, seed: int, budget: Budget | None) -> Fitted:
    """The source's output layer answers, among the target's classes by name; no label of the target is looked at.

    Raises:
        ValueError: a source without output layer, or one that has no class of a target's name.
    """
    if not source.labels:
        raise ValueError(f"it needs a source with classes of its own; {source.name} has no output layer")
    names = getattr(target, "names", ())
    order = order_of(source.labels, names)
    if order is None:
        raise ValueError(
            f"it needs a source whose classes have the target's names ({_short(names) or 'none given'}); those of "
            f"{source.name} are {_short(source.labels)} (id2label in its config.json)"
        )

    def answer(examples) -> Prediction:
        p = source.probabilities(examples)[:, order].astype(np.float64)
        p = p / np.maximum(p.sum(axis=1, keepdims=True), 1e-300)
        return Prediction(p.argmax(axis=1), p)

    return Fitted("own_classifier", answer, Cost(total_parameters=source.parameters), labels_used=False)


def _short(names) -> str:
    shown = ", ".join(names[:6])
    return f"{shown}, ... ({len(names)})" if len(names) > 6 else shown
