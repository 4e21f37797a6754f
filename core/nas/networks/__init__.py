"""Networks built from cells: the macro skeletons by which a genotype becomes a trainable image classifier.

One file a space; each registers ``build(cell, macro, channels, classes) -> torch.nn.Module`` that takes images
``[batch, channels, height, width]`` to logits ``[batch, classes]``. Torch is imported when a network is first built.
"""

from collections.abc import Callable
from typing import Any

from pydantic import Field

from core.config import Config
from core.nas.spaces import Genotype, Space
from core.registry import Registry

NETWORKS: Registry[Callable[..., Any]] = Registry("cell network", "core.nas.networks")


class Macro(Config):
    """The part of the network that search leaves alone. Channels double and sides halve between stages."""

    width: int = Field(16, ge=4, description="channels of the first stage")
    stages: int = Field(2, ge=1, le=5, description="resolutions; the image's sides are halved between them")
    cells: int = Field(1, ge=1, description="cells of each stage")

    def check_images(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless images ``(channels, height, width)`` are large enough for the stages."""
        need = 2**self.stages
        if len(shape) != 3 or min(shape[1:]) < need:
            raise ValueError(
                f"{self.stages} stages need images (channels, height, width) of at least {need} pixels, got {shape}"
            )


def build_network(space: Space, cell: Genotype, macro: Macro, channels: int, classes: int, seed: int) -> Any:
    """The network of ``cell`` with weights drawn from ``seed``; the global RNG is left as it was.

    Raises:
        ValueError: the space has no network (a graph or transformer space), or the cell is invalid.
    """
    import torch

    space.check(cell)
    build = NETWORKS.get(space.name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(cell, macro, channels, classes)
