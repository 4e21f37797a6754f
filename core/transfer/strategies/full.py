"""Full fine-tuning, and fine-tuning with the lower layers frozen."""

from torch import nn

from core.models.layers import behind_layers, layer_list
from core.transfer.budget import Budget
from core.transfer.sources import Source
from core.transfer.strategies import STRATEGIES, Fitted, StrategyConfig
from core.transfer.strategies.tuning import ALL, tune
from core.transfer.target import Target


@STRATEGIES.register("full", family="adjust", kinds=ALL, source="Kumar et al. 2022 (output layer starts as the probe)")
def full(source: Source, target: Target, config: StrategyConfig, seed: int, budget: Budget | None) -> Fitted:
    """Fine-tune every parameter."""
    return tune(source, target, config, seed, budget, lambda body, _: body.requires_grad_(True), lr=1e-4)


@STRATEGIES.register("freeze", family="adjust", kinds=ALL, source="Howard & Ruder 2018 (upper layers only)")
def freeze(source: Source, target: Target, config: StrategyConfig, seed: int, budget: Budget | None) -> Fitted:
    """Fine-tune the upper layers, the lower ones stay frozen."""
    return tune(source, target, config, seed, budget, _free_the_top, lr=2e-4)


def _free_the_top(body: nn.Module, config: StrategyConfig) -> None:
    """Free the last ``config.unfrozen`` share of the layers and what comes after them.

    A model without a list of layers (a ResNet) frees the last share of its parameter tensors instead.
    """
    try:
        holder, name = layer_list(body.backbone)
    except (ValueError, AttributeError):
        tensors = list(body.backbone.parameters())
        for p in tensors[-max(1, round(config.unfrozen * len(tensors))) :]:
            p.requires_grad_(True)
        return
    layers = getattr(holder, name)
    for layer in layers[-max(1, round(config.unfrozen * len(layers))) :]:
        layer.requires_grad_(True)
    for module in behind_layers(holder):
        module.requires_grad_(True)
