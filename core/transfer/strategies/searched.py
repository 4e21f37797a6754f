"""Retrain a small architecture that a search run found, in place of the source's own."""

import torch
from torch import nn

from core.nas.networks import Macro, build_network
from core.nas.spaces import get_space
from core.transfer.budget import Budget
from core.transfer.sources import Source
from core.transfer.strategies import STRATEGIES, Fitted, StrategyConfig
from core.transfer.strategies.tuning import tune
from core.transfer.target import Target


@STRATEGIES.register(
    "searched",
    family="retrain",
    kinds=("classification", "regression"),
    modalities=("image",),
    source="the best architecture of a search run",
)
def searched(source: Source, target: Target, config: StrategyConfig, seed: int, budget: Budget | None) -> Fitted:
    """Train the best small network of a search run from random weights (images; ``architecture="nb201:..."``)."""
    name, _, text = config.architecture.partition(":")
    if not text:
        raise ValueError(
            "searched needs an architecture, as 'space:genotype' with the genotype that a search run reports, e.g. "
            "architecture='nb201:|nor_conv_3x3~0|+|skip_connect~0|nor_conv_3x3~1|+|skip_connect~0|none~1|nor_conv_3x3~2|'"
        )
    space = get_space(name)
    genotype = space.parse(text)
    pixels = source.original.inputs(target.train.take([0])).arrays
    macro = Macro()
    macro.check_images(pixels.shape[1:])
    network = build_network(space, genotype, macro, pixels.shape[1], 2, seed)
    body = CellBody(network.body, source, network.classifier.in_features, config.architecture)
    return tune(source, target, config, seed, budget, lambda b, _: b.requires_grad_(True), lr=3e-3, body=body)


class CellBody(nn.Module):
    """A cell network without classifier, reading images the way the source does."""

    modality = "image"

    def __init__(self, backbone: nn.Module, source: Source, width: int, name: str):
        super().__init__()
        self.backbone, self.width, self.name, self.sha256 = backbone, width, name, ""
        self.inputs = source.original.inputs

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.backbone(batch["pixel_values"]).float().mean((2, 3))
