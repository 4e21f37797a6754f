"""Blocks shared by the cell networks."""

from collections.abc import Callable, Sequence

import torch
from torch import nn


def conv_norm(into: int, out: int, kernel: int = 1, stride: int = 1) -> list[nn.Module]:
    """Convolution without bias that keeps the size (at stride 1), and its batch normalisation."""
    return [nn.Conv2d(into, out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(out)]


def conv_norm_relu(into: int, out: int, kernel: int = 1) -> nn.Sequential:
    return nn.Sequential(*conv_norm(into, out, kernel), nn.ReLU())


def relu_conv_norm(into: int, out: int, kernel: int = 1, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), *conv_norm(into, out, kernel, stride))


class ChainNetwork(nn.Module):
    """Stem, then stages of cells with a down-sampling block between them, mean over positions, linear classifier.

    Args:
        stem: images -> ``[batch, width, height, width]``.
        cell: ``cell(into, out)`` makes one cell.
        down: ``down(channels)`` makes the block between two stages; it halves the sides and may widen.
        widened: channels after ``down(c)`` (the first cell of the stage takes them to ``2 * c``).
    """

    def __init__(
        self,
        stem: nn.Module,
        cell: Callable[[int, int], nn.Module],
        down: Callable[[int], nn.Module],
        widened: Callable[[int], int],
        widths: Sequence[int],
        cells: int,
        classes: int,
    ):
        super().__init__()
        parts: list[nn.Module] = [stem]
        into = widths[0]
        for stage, width in enumerate(widths):
            if stage:
                parts.append(down(into))
                into = widened(into)
            for _ in range(cells):
                parts.append(cell(into, width))
                into = width
        self.body = nn.Sequential(*parts, nn.BatchNorm2d(into), nn.ReLU())
        self.classifier = nn.Linear(into, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.body(images).mean((2, 3)))
