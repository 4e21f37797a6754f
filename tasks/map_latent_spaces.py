"""Map source latents to target latents and carry the source's elites over."""

import numpy as np
from pydantic import Field

from core.config import Config
from core.nas.arena import Arena
from core.nas.experts import source_expert
from core.nas.mapping import MAPPINGS
from core.state import write_json
from tasks.encode_architectures import read_latent
from tasks.learn_source import read_source
from tasks.stage import Artifact, Output, stage

MAPPED, POINTS = "transferred.json", "points.npz"


class MapConfig(Config):
    """Which map, and how many elites it carries."""

    mapping: str = Field("linear", description="registered latent mapping")
    elites: int = Field(50, ge=1, description="source elites carried over")
    seed: int = 0


@stage("map-latent-spaces", modules=["core.nas.mapping.linear", "core.nas.mapping.controls", "core.nas.experts"])
def map_spaces(out: Output, config: MapConfig, source: Artifact, here: Artifact, there: Artifact) -> None:
    """``here``: encoded source space, ``there``: encoded target space; both are paired by the source's rank."""
    learned = read_source(source)
    (left, cells_left, z_left), (right, cells_right, z_right) = read_latent(here), read_latent(there)
    origin, target = left.codec.spaces[0], right.codec.spaces[0]
    value_left = source_expert(learned, Arena(origin, cells_left)).population
    value_right = source_expert(learned, Arena(target, cells_right)).population
    count = min(len(z_left), len(z_right))
    order_left = np.argsort(value_left, kind="stable")[np.linspace(0, len(z_left) - 1, count).astype(int)]
    order_right = np.argsort(value_right, kind="stable")[np.linspace(0, len(z_right) - 1, count).astype(int)]
    move = MAPPINGS.get(config.mapping)(z_left[order_left], z_right[order_right], config.seed)
    mapped = move(left.encode(origin, learned.elites[: config.elites]))
    decoded = right.decode(target, mapped)
    found = {target.key(c): target.format(c) for c in decoded if c is not None}
    write_json(out.folder / MAPPED, list(found.values()))
    np.savez(
        out.folder / POINTS,
        source=z_left,
        source_value=value_left,
        target=z_right,
        target_value=value_right,
        mapped=mapped,
    )
    out.metrics({"decoded": sum(c is not None for c in decoded), "distinct": len(found), "elites": len(decoded)})
