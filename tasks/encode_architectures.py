"""The latent space of a search space, or one that several share: trained on cells, or taken from a portable source."""

import json
from typing import Any

import numpy as np
from pydantic import Field

from core.config import Config
from core.nas.encoder import Corpus, EncoderConfig, LatentSpace, train_latent_space
from core.nas.packed import latent_space
from core.nas.spaces import Genotype, Space, get_space
from core.state import write_json
from tasks.learn_source import read_labelled, read_source
from tasks.stage import METRICS, Artifact, Output, stage

FILE, LATENTS, CELLS = "latent", "latents.npz", "cells.json"


class SpaceConfig(Config):
    """A search space by name."""

    name: str = Field(description="registered search space")
    settings: dict[str, Any] = Field(default_factory=dict, description="its settings, where they are not the default")

    @classmethod
    def of(cls, space: Space) -> "SpaceConfig":
        return cls(name=space.name, settings=space.settings if space.full_name != space.name else {})

    def open(self) -> Space:
        return get_space(self.name, **self.settings)


class EncodeConfig(Config):
    """Which spaces, on how many cells, how long."""

    spaces: tuple[SpaceConfig, ...] = Field(min_length=1, description="search spaces; several share one encoder")
    cells: int = Field(4000, ge=50, description="random cells without labels to learn from, of each space")
    shown: int = Field(1000, ge=50, description="cells whose latents are kept for the map and the picture")
    encoder: EncoderConfig = EncoderConfig()
    seed: int = 0


def draw(space: Space, count: int, seed: int) -> list[Genotype]:
    """Distinct random cells."""
    rng, found = np.random.default_rng(seed), {}
    for _ in range(20 * count):
        cell = space.sample(rng)
        found.setdefault(space.key(cell), cell)
        if len(found) == count:
            break
    return list(found.values())


@stage("encode-architectures", modules=["core.nas.encoder", "core.nas.packed"])
def encode(out: Output, config: EncodeConfig, source: list[Artifact]) -> None:
    """Pre-train without labels, then rank by the labelled cells of a source at home in a space.

    A source that carries the latent space of these very spaces brings it along, and nothing is trained.
    """
    spaces = [place.open() for place in config.spaces]
    drawn = {space: draw(space, config.cells, config.seed) for space in spaces}
    carried = (latent_space(read_source(a), [space.full_name for space in spaces]) for a in source)
    latent = next((found for found in carried if found is not None), None)
    brought = latent is not None
    if latent is None:
        checkpoint = out.folder / "training"
        corpora = [_corpus(space, drawn[space], source) for space in spaces]
        latent = train_latent_space(corpora, config.encoder, checkpoint)
        checkpoint.unlink(missing_ok=True)
    latent.save(out.folder / FILE)
    shown = {space: drawn[space][: config.shown] for space in spaces}
    np.savez(out.folder / LATENTS, **{space.full_name: latent.encode(space, shown[space]) for space in spaces})
    write_json(out.folder / CELLS, {space.full_name: [space.format(c) for c in shown[space]] for space in spaces})
    out.metrics(latent.facts | {"brought": brought})


def _corpus(space: Space, cells: list[Genotype], source: list[Artifact]) -> Corpus:
    """``cells`` and those whose labels a source of the same space knows; NaN where nothing is known."""
    known: dict[str, float] = {}
    places = {space.key(c) for c in cells}
    for artifact in source:
        if read_source(artifact).home == space:
            labelled, values = read_labelled(artifact)
            known |= {space.key(c): v for c, v in zip(labelled, values, strict=True)}
            cells = [*cells, *(c for c in labelled if space.key(c) not in places)]
    return Corpus(space, cells, np.array([known.get(space.key(c), np.nan) for c in cells]))


def read_latent(artifact: Artifact) -> LatentSpace:
    """The latent space, of one search space or of several."""
    return LatentSpace.load(artifact.folder / FILE)


def read_shown(artifact: Artifact, space: Space) -> tuple[list[Genotype], np.ndarray]:
    """The cells shown of one space, and their latents ``[n, latent]``."""
    texts = json.loads((artifact.folder / CELLS).read_text())[space.full_name]
    with np.load(artifact.folder / LATENTS) as latents:
        return [space.parse(t) for t in texts], latents[space.full_name]


def was_brought(artifact: Artifact) -> bool:
    """Whether the latent space came with a source."""
    return bool(json.loads((artifact.folder / METRICS).read_text())["brought"])
