"""The DARTS network in torch: normal cells, a reduction cell between stages, both earlier cells as inputs."""

import torch
from torch import nn

from core.nas.networks import NETWORKS, Macro
from core.nas.networks.blocks import conv_norm, relu_conv_norm
from core.nas.spaces.darts import NODES, DartsCells, Edges


class FactorizedReduce(nn.Module):
    """Half the size by two shifted 1x1 convolutions of stride 2, half of the channels each."""

    def __init__(self, into: int, out: int):
        super().__init__()
        self.even = nn.Conv2d(into, out // 2, 1, 2, bias=False)
        self.odd = nn.Conv2d(into, out - out // 2, 1, 2, bias=False)
        self.norm = nn.BatchNorm2d(out)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = torch.relu(images)
        shifted = nn.functional.pad(images[:, :, 1:, 1:], (0, 1, 0, 1))
        return self.norm(torch.cat([self.even(images), self.odd(shifted)], 1))


def operation(op: int, channels: int, stride: int) -> nn.Module:
    """Operation number ``op`` of the space at ``stride``."""
    if op == 0:
        return nn.MaxPool2d(3, stride, 1)
    if op == 1:
        return nn.AvgPool2d(3, stride, 1, count_include_pad=False)
    if op == 2:
        return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels)
    kernel = (3, 5)[op in (4, 6)]
    if op in (5, 6):
        return _separable(channels, kernel, stride, dilation=2)
    return nn.Sequential(_separable(channels, kernel, stride), _separable(channels, kernel, 1))


def _separable(channels: int, kernel: int, stride: int, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    depthwise = nn.Conv2d(channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False)
    return nn.Sequential(nn.ReLU(), depthwise, *conv_norm(channels, channels))


class DartsModule(nn.Module):
    """One cell of ``channels`` a node; the output concatenates its four nodes."""

    def __init__(self, edges: Edges, before: int, last: int, channels: int, reduction: bool, after_reduction: bool):
        super().__init__()
        self.first = FactorizedReduce(before, channels) if after_reduction else relu_conv_norm(before, channels)
        self.second = relu_conv_norm(last, channels)
        self.sources = [source for source, _ in edges]
        self.operations = nn.ModuleList(
            operation(op, channels, 2 if reduction and source < 2 else 1) for source, op in edges
        )

    def forward(self, before: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        states = [self.first(before), self.second(last)]
        for node in range(NODES):
            a, b = 2 * node, 2 * node + 1
            states.append(self.operations[a](states[self.sources[a]]) + self.operations[b](states[self.sources[b]]))
        return torch.cat(states[2:], 1)


class DartsNetwork(nn.Module):
    """Stem, ``cells`` normal cells a stage, a reduction cell before each later stage.

    Each of a cell's four nodes has a quarter of ``macro.width``, so that its output is as wide as other spaces' cells.
    """

    def __init__(self, cells: DartsCells, macro: Macro, channels: int, classes: int):
        super().__init__()
        width = max(1, macro.width // NODES)
        self.stem = nn.Sequential(*conv_norm(channels, macro.width, 3))
        self.layers = nn.ModuleList()
        before, last, after_reduction = macro.width, macro.width, False
        for stage in range(macro.stages):
            kinds = [True] * (stage > 0) + [False] * macro.cells
            width = width * 2 if stage else width
            for reduction in kinds:
                edges = cells.reduce if reduction else cells.normal
                self.layers.append(DartsModule(edges, before, last, width, reduction, after_reduction))
                before, last, after_reduction = last, NODES * width, reduction
        self.classifier = nn.Linear(last, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        before = last = self.stem(images)
        for layer in self.layers:
            before, last = last, layer(before, last)
        return self.classifier(last.mean((2, 3)))


@NETWORKS.register("darts")
def build(cell: DartsCells, macro: Macro, channels: int, classes: int) -> nn.Module:
    """See :class:`DartsNetwork`."""
    return DartsNetwork(cell, macro, channels, classes)
