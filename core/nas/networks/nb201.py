"""The NAS-Bench-201 cell in torch: an operation on each edge, sums at nodes, residual blocks between stages."""

import torch
from torch import nn

from core.nas.networks import NETWORKS, Macro
from core.nas.networks.blocks import ChainNetwork, conv_norm, relu_conv_norm
from core.nas.spaces.nb201 import EDGES, NB201Cell


class NB201Module(nn.Module):
    """One cell: ``[batch, channels, h, w]`` -> the same shape."""

    def __init__(self, cell: NB201Cell, channels: int):
        super().__init__()
        makers = {1: nn.Identity, 4: lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False)}
        makers |= {2: lambda: relu_conv_norm(channels, channels), 3: lambda: relu_conv_norm(channels, channels, 3)}
        self.edges = [edge for edge, op in zip(EDGES, cell.ops) if op]
        self.operations = nn.ModuleList(makers[op]() for op in cell.ops if op)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        states = [images, *[torch.zeros_like(images)] * 3]
        for (source, target), operation in zip(self.edges, self.operations):
            states[target] = states[target] + operation(states[source])
        return states[3]


class ResidualDown(nn.Module):
    """Residual block with stride 2: ``[batch, c, h, w]`` -> ``[batch, 2 c, h / 2, w / 2]``."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = relu_conv_norm(channels, 2 * channels, 3, 2)
        self.second = relu_conv_norm(2 * channels, 2 * channels, 3)
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(channels, 2 * channels, 1, bias=False))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        strided = self.second(self.first(images))
        return strided + nn.functional.interpolate(self.shortcut(images), strided.shape[2:])


@NETWORKS.register("nb201")
def build(cell: NB201Cell, macro: Macro, channels: int, classes: int) -> nn.Module:
    """Stem, stages of cells with a residual block between them."""
    widths = [macro.width * 2**s for s in range(macro.stages)]
    return ChainNetwork(
        nn.Sequential(*conv_norm(channels, macro.width, 3)),
        lambda into, out: NB201Module(cell, out),
        ResidualDown,
        lambda width: 2 * width,
        widths,
        macro.cells,
        classes,
    )
