"""The NAS-Bench-101 module in torch: projections of the input, sums at nodes, concatenation at the output."""

import torch
from torch import nn

from core.nas.networks import NETWORKS, Macro
from core.nas.networks.blocks import ChainNetwork, conv_norm_relu
from core.nas.spaces.nb101 import NB101Cell, matrix_of, vertex_channels


class NB101Module(nn.Module):
    """One module: images ``[batch, into, h, w]`` -> ``[batch, out, h, w]``."""

    def __init__(self, cell: NB101Cell, into: int, out: int):
        super().__init__()
        self.matrix = matrix_of(cell).tolist()
        self.last = len(self.matrix) - 1
        self.channels = vertex_channels(matrix_of(cell), into, out)
        projected = [v for v in range(1, self.last + 1) if self.matrix[0][v]]
        self.projections = nn.ModuleDict({str(v): conv_norm_relu(into, self.channels[v]) for v in projected})
        self.operations = nn.ModuleList(_operation(op, self.channels[v]) for v, op in enumerate(cell.ops, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        states = [images]
        for v in range(1, self.last):
            inputs = [states[u][:, : self.channels[v]] for u in range(1, v) if self.matrix[u][v]]
            if self.matrix[0][v]:
                inputs.append(self.projections[str(v)](images))
            states.append(self.operations[v - 1](sum(inputs)))
        joined = [states[v] for v in range(1, self.last) if self.matrix[v][self.last]]
        result = torch.cat(joined, 1) if joined else 0
        return result + self.projections[str(self.last)](images) if self.matrix[0][self.last] else result


def _operation(op: int, channels: int) -> nn.Module:
    return nn.MaxPool2d(3, 1, 1) if op == 2 else conv_norm_relu(channels, channels, (3, 1)[op])


@NETWORKS.register("nb101")
def build(cell: NB101Cell, macro: Macro, channels: int, classes: int) -> nn.Module:
    """Stem, stages of modules with max-pooling between them (the first module of a stage doubles the channels)."""
    widths = [macro.width * 2**s for s in range(macro.stages)]
    return ChainNetwork(
        conv_norm_relu(channels, macro.width, 3),
        lambda into, out: NB101Module(cell, into, out),
        lambda width: nn.MaxPool2d(2),
        lambda width: width,
        widths,
        macro.cells,
        classes,
    )
