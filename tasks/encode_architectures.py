"""Train the latent space of a search space on its cells, and rank it by a source where that source is at home."""

import json

import numpy as np
from pydantic import Field

from core.config import Config
from core.nas.encoder import Corpus, EncoderConfig, LatentSpace, train_latent_space
from core.nas.spaces import Genotype, Space, get_space
from core.state import write_json
from tasks.learn_source import read_source
from tasks.stage import Artifact, Output, stage

FILE, LATENTS, CELLS = "latent", "latents.npy", "cells.json"


class EncodeConfig(Config):
    """Which space, on how many cells, how long."""

    space: str = Field(description="registered search space")
    cells: int = Field(4000, ge=50, description="random cells without labels to learn from")
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


@stage("encode-architectures", modules=["core.nas.encoder"])
def encode(out: Output, config: EncodeConfig, source: list[Artifact]) -> None:
    """Pre-train without labels; elites of a source of the same space, if given, fine-tune the ranker."""
    space = get_space(config.space)
    cells = draw(space, config.cells, config.seed)
    labels = np.full(len(cells), np.nan)
    for artifact in source:
        learned = read_source(artifact)
        if learned.space == space.name:
            known = {space.key(e): s for e, s in zip(learned.elites, learned.scores, strict=True)}
            fresh = [e for e in learned.elites if space.key(e) not in {space.key(c) for c in cells}]
            cells, labels = [*cells, *fresh], np.concatenate([labels, np.full(len(fresh), np.nan)])
            labels = np.array([known.get(space.key(c), y) for c, y in zip(cells, labels, strict=True)])
    checkpoint = out.folder / "training"
    latent = train_latent_space([Corpus(space, cells, labels)], config.encoder, checkpoint)
    checkpoint.unlink(missing_ok=True)
    latent.save(out.folder / FILE)
    shown = cells[: config.shown]
    np.save(out.folder / LATENTS, latent.encode(space, shown))
    write_json(out.folder / CELLS, [space.format(c) for c in shown])
    out.metrics(latent.facts)


def read_latent(artifact: Artifact) -> tuple[LatentSpace, list[Genotype], np.ndarray]:
    """The latent space, the cells shown, their latents."""
    latent = LatentSpace.load(artifact.folder / FILE)
    texts = json.loads((artifact.folder / CELLS).read_text())
    return latent, [latent.codec.spaces[0].parse(t) for t in texts], np.load(artifact.folder / LATENTS)
