"""Map source latents to target latents and carry the source's elites over."""

import numpy as np
from pydantic import Field

from core.config import Config
from core.nas.arena import Arena
from core.nas.encoder import LatentSpace
from core.nas.experts import source_expert
from core.nas.mapping import MAPPINGS, Map
from core.nas.packed import AffineMap, labelled_latents, latent_map
from core.nas.spaces import Space
from core.state import write_json
from tasks.encode_architectures import SpaceConfig, read_latent, read_shown, was_brought
from tasks.learn_source import read_labelled, read_source
from tasks.stage import Artifact, Output, stage

MAPPED, POINTS, MAP = "transferred.json", "points.npz", "map.npz"
LABELLED = 1000  # labelled cells of the source whose latents are kept
MODULES = ["core.nas.mapping.linear", "core.nas.mapping.controls", "core.nas.experts", "core.nas.packed"]


class MapConfig(Config):
    """Which map to which space, and how many elites it carries."""

    mapping: str = Field("linear", description="registered latent mapping")
    target: SpaceConfig = Field(description="search space to which the map leads")
    elites: int = Field(50, ge=1, description="source elites carried over")
    seed: int = 0


@stage("map-latent-spaces", modules=MODULES)
def map_spaces(out: Output, config: MapConfig, source: Artifact, here: Artifact, there: Artifact) -> None:
    """``here``: encoded source space, ``there``: encoded target space; both are paired by the source's rank.

    A source that brought both latent spaces and carries this map between them brings it along.
    """
    learned = read_source(source)
    origin, target = learned.home, config.target.open()
    left, right = read_latent(here), read_latent(there)
    (cells_left, z_left), (cells_right, z_right) = read_shown(here, origin), read_shown(there, target)
    value_left = source_expert(learned, Arena(origin, cells_left)).population
    value_right = source_expert(learned, Arena(target, cells_right)).population
    carried = latent_map(learned, target.full_name) if was_brought(here) and was_brought(there) else None
    fits = carried is not None and carried.name == config.mapping
    move = carried if fits else _fitted(config, (z_left, value_left), (z_right, value_right))
    mapped = move(left.encode(origin, learned.elites[: config.elites]))
    decoded = right.decode(target, mapped)
    found = {target.key(c): target.format(c) for c in decoded if c is not None}
    write_json(out.folder / MAPPED, list(found.values()))
    kept = AffineMap.of(config.mapping, move, z_left)
    if kept is not None:
        np.savez(out.folder / MAP, weights=kept.weights, bias=kept.bias)
    known = labelled_latents(learned) if was_brought(here) else None
    latents, measured = known or _labelled(source, left, origin, config.seed)
    np.savez(
        out.folder / POINTS,
        source=z_left,
        source_labelled=latents,
        source_value=measured,
        target=z_right,
        target_value=value_right,
        mapped=mapped,
    )
    out.metrics({"decoded": sum(c is not None for c in decoded), "distinct": len(found), "elites": len(decoded)})


def _fitted(config: MapConfig, left: tuple[np.ndarray, np.ndarray], right: tuple[np.ndarray, np.ndarray]) -> Map:
    """The mapping fitted to latents of both sides, each with its values: equally many, paired by rank."""
    count = min(len(left[0]), len(right[0]))

    def ordered(z: np.ndarray, values: np.ndarray) -> np.ndarray:
        return z[np.argsort(values, kind="stable")[np.linspace(0, len(z) - 1, count).astype(int)]]

    return MAPPINGS.get(config.mapping)(ordered(*left), ordered(*right), config.seed)


def _labelled(source: Artifact, left: LatentSpace, origin: Space, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Latents of labelled cells of the source, at most :data:`LABELLED` drawn at random, and their labels."""
    cells, values = read_labelled(source)
    rows = np.random.default_rng(seed).permutation(len(cells))[:LABELLED]
    return left.encode(origin, [cells[i] for i in rows]), values[rows]


def read_map(artifact: Artifact, mapping: str) -> AffineMap | None:
    """The map ``mapping`` in numbers; None where it has none (``random``)."""
    path = artifact.folder / MAP
    if not path.is_file():
        return None
    with np.load(path) as arrays:
        return AffineMap(mapping, **arrays)


def read_labelled_latents(artifact: Artifact) -> tuple[np.ndarray, np.ndarray]:
    """Latents ``[n, d]`` of labelled cells of the source's space, and their labels ``[n]``."""
    with np.load(artifact.folder / POINTS) as points:
        return points["source_labelled"], points["source_value"]
