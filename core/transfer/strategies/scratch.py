"""Retrain: the source's architecture with new weights, the twin without transfer."""

from core.transfer.budget import Budget
from core.transfer.sources import Source
from core.transfer.strategies import STRATEGIES, Fitted, StrategyConfig
from core.transfer.strategies.tuning import ALL, tune
from core.transfer.target import Target


@STRATEGIES.register("scratch", family="retrain", kinds=ALL, source="baseline")
def scratch(source: Source, target: Target, config: StrategyConfig, seed: int, budget: Budget | None) -> Fitted:
    """Train the same architecture from random weights: no knowledge is transferred."""
    new = source.original.fresh(seed)
    return tune(source, target, config, seed, budget, lambda body, _: body.requires_grad_(True), lr=3e-4, body=new)
