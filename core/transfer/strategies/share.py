"""Share: the source as it is. Frozen features and class prototypes, nearest neighbours, or its own generation."""

import numpy as np

from core.transfer.budget import Budget
from core.transfer.cost import Cost
from core.transfer.nets import LanguageNet, Prediction, prediction
from core.transfer.sources import Source
from core.transfer.strategies import STRATEGIES, Fitted, StrategyConfig
from core.transfer.target import Target

SLOPE = 20.0  # logits per unit of cosine, as in prototype heads of sentence encoders
NEIGHBOURS = 5


@STRATEGIES.register(
    "share",
    family="share",
    kinds=("classification", "regression", "generation"),
    source="Snell et al. 2017 (prototypes)",
)
def share(source: Source, target: Target, config: StrategyConfig, seed: int, budget: Budget | None) -> Fitted:
    """Use the source as it is: nearest class prototype, nearest neighbours' mean, or generation; nothing is trained."""
    if target.kind == "generation":
        net = LanguageNet(source.original, config.max_new_tokens)
        return Fitted("share", net.predict, Cost(total_parameters=source.parameters), net, labels_used=False)
    features = source.features(target.train)
    centre = features.mean(axis=0)
    reference = _unit(features - centre)
    # A class without example is never the nearest, not even where all cosines are negative.
    there = np.isin(np.arange(target.classes), target.labels) if target.kind == "classification" else True
    absent = np.where(there, 0.0, -2 * SLOPE)

    def answer(examples) -> Prediction:
        queries = _unit(source.features(examples) - centre)
        if target.kind == "classification":
            return prediction(SLOPE * queries @ _prototypes(reference, target).T + absent, "classification")
        similarity = queries @ reference.T
        nearest = np.argsort(-similarity, axis=1)[:, : min(NEIGHBOURS, len(reference))]
        return Prediction(target.labels[nearest].mean(axis=1))

    return Fitted("share", answer, Cost(total_parameters=source.parameters))


def _prototypes(reference: np.ndarray, target: Target) -> np.ndarray:
    """Unit mean feature of each class; a class without example keeps a zero vector."""
    sums = np.zeros((target.classes, reference.shape[1]))
    np.add.at(sums, target.labels, reference)
    return _unit(sums)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
