"""Linear probe: logistic or ridge regression on frozen features."""

import warnings

import numpy as np

from core.transfer.budget import Budget
from core.transfer.cost import Cost
from core.transfer.nets import prediction
from core.transfer.sources import Source
from core.transfer.strategies import STRATEGIES, Fitted, StrategyConfig
from core.transfer.target import Target

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)


@STRATEGIES.register(
    "linear_probe", family="adjust", kinds=("classification", "regression"), source="Alain & Bengio 2016"
)
def linear_probe(source: Source, target: Target, config: StrategyConfig, seed: int, budget: Budget | None) -> Fitted:
    """Train only an output layer on frozen features; its penalty is chosen by cross-validation on the training data."""
    weight, bias = probe_weights(source.features(target.train), target, seed)
    scale = (float(target.labels.mean()), float(target.labels.std())) if target.kind == "regression" else (0.0, 1.0)

    def answer(examples):
        return prediction(source.features(examples) @ weight.T + bias, target.kind, scale)

    trained = weight.size + bias.size
    cost = Cost(trained_parameters=trained, total_parameters=source.parameters + trained)
    return Fitted("linear_probe", answer, cost)


def probe_weights(features: np.ndarray, target: Target, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights (outputs, width) and bias (outputs,) of the probe, in the space of the raw features.

    Regression is of the standardised target. Classes without example get a large negative bias.
    """
    mean, std = features.mean(axis=0), features.std(axis=0)
    # One scale for all directions keeps their relative size; a scale for each would blow up the empty ones.
    scale = float(np.sqrt((std**2).mean())) or 1.0
    x = (features - mean) / scale
    if target.kind == "regression":
        from sklearn.linear_model import RidgeCV

        y = (target.labels - target.labels.mean()) / target.labels.std()
        model = RidgeCV(alphas=np.logspace(-1, 4, 11)).fit(x, y)
        weight, bias = model.coef_[None], np.atleast_1d(model.intercept_)
    else:
        weight, bias = _logistic(x, target, seed)
    weight = weight / scale
    return weight, bias - weight @ mean


def _logistic(x: np.ndarray, target: Target, seed: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    y, classes = target.labels, target.classes
    model = LogisticRegression(C=0.1, max_iter=300)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        original = y[: target.counted]
        fewest = np.bincount(original)[np.unique(original)].min()
        if fewest >= 3:
            folds = [
                (np.flatnonzero(np.isin(target.groups, train)), held_out)  # copies go with their originals, to train
                for train, held_out in StratifiedKFold(3, shuffle=True, random_state=seed).split(original, original)
            ]
            loss = [
                cross_val_score(LogisticRegression(C=c, max_iter=300), x, y, cv=folds, scoring="neg_log_loss").mean()
                for c in PENALTIES
            ]
            model = LogisticRegression(C=PENALTIES[int(np.argmax(loss))], max_iter=300)
        model.fit(x, y)
    weight, bias = np.zeros((classes, x.shape[1])), np.full(classes, -20.0)
    coefficients, intercepts = model.coef_, model.intercept_
    if len(model.classes_) == 2:
        coefficients = np.stack([-coefficients[0] / 2, coefficients[0] / 2])
        intercepts = np.array([-intercepts[0] / 2, intercepts[0] / 2])
    weight[model.classes_], bias[model.classes_] = coefficients, intercepts
    return weight, bias
