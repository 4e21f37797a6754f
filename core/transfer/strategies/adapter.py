"""Bottleneck adapters, which peft lacks: a small residual network behind each layer."""

import torch
from torch import nn

from core.models.layers import layer_list
from core.transfer.budget import Budget
from core.transfer.sources import Source
from core.transfer.strategies import STRATEGIES, Fitted, StrategyConfig
from core.transfer.strategies.tuning import ALL, tune
from core.transfer.target import Target


@STRATEGIES.register(
    "adapter", family="adjust", kinds=ALL, source="Houlsby et al. 2019; one adapter a layer as Pfeiffer 2020"
)
def adapter(source: Source, target: Target, config: StrategyConfig, seed: int, budget: Budget | None) -> Fitted:
    """Train bottleneck adapters behind each layer; the body stays frozen."""
    return tune(source, target, config, seed, budget, add_adapters, lr=1e-3)


class Bottleneck(nn.Module):
    """x + up(gelu(down(norm(x)))); ``up`` starts at zero, so a new adapter changes nothing.

    Args:
        channels: True for feature maps [B, C, H, W] (1 x 1 convolutions), False for states [..., C].
    """

    def __init__(self, width: int, bottleneck: int, channels: bool):
        super().__init__()
        self.channels = channels
        self.norm = nn.LayerNorm(width)
        self.down, self.up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states = x.movedim(1, -1) if self.channels else x
        change = self.up(nn.functional.gelu(self.down(self.norm(states))))
        return x + (change.movedim(-1, 1) if self.channels else change)


class Adapted(nn.Module):
    """A layer followed by its adapter; other outputs of the layer pass unchanged."""

    def __init__(self, layer: nn.Module, bottleneck: nn.Module):
        super().__init__()
        self.layer, self.adapter = layer, bottleneck

    def forward(self, *args, **kwargs):
        out = self.layer(*args, **kwargs)
        if isinstance(out, tuple):
            return (self.adapter(out[0]), *out[1:])
        return self.adapter(out)

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:  # models look at attributes of their layers, such as attention_type
            return getattr(super().__getattr__("layer"), name)


def add_adapters(body: nn.Module, config: StrategyConfig) -> None:
    """Put an adapter behind every layer (every stage of a convolutional model) of the body.

    Raises:
        ValueError: the model has no list of layers or stages.
    """
    backbone = body.backbone
    sizes = getattr(backbone.config, "hidden_sizes", None)
    if sizes and hasattr(backbone, "encoder") and hasattr(backbone.encoder, "stages"):
        stages = backbone.encoder.stages
        for i, width in enumerate(sizes):
            stages[i] = Adapted(stages[i], Bottleneck(width, config.bottleneck, channels=True))
        return
    for layers in _stacks(backbone):
        for i, layer in enumerate(layers):
            layers[i] = Adapted(layer, Bottleneck(_width(backbone.config), config.bottleneck, channels=False))


def _stacks(backbone: nn.Module) -> list[nn.ModuleList]:
    """The lists of layers: one, the encoder's and the decoder's, or ALBERT's groups, each of which runs repeatedly."""
    if getattr(backbone.config, "num_hidden_groups", None):
        return [_longest(backbone)]
    if getattr(backbone.config, "is_encoder_decoder", False):
        return [_longest(part) for part in (backbone.get_encoder(), backbone.get_decoder())]
    holder, name = layer_list(backbone)
    return [getattr(holder, name)]


def _longest(part: nn.Module) -> nn.ModuleList:
    lists = [m for m in part.modules() if isinstance(m, nn.ModuleList)]
    if not lists:
        raise ValueError(f"{type(part).__name__} has no list of layers to put adapters behind")
    return max(lists, key=len)


def _width(config) -> int:
    return int(getattr(config, "d_model", None) or config.hidden_size)
