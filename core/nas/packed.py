"""What a source carries beside its predictor: latent spaces, maps between them, labelled latents of its own space.

They lie in the arrays of :class:`core.nas.source.Source` (``encoder``), their descriptions in its ``facts``: one
portable file holds all that a search learned, and whoever loads it need not train an encoder again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from core.nas.encoder import KIND, SCHEMA, LatentSpace
from core.nas.source import Source
from core.state import load_checkpoint, save_checkpoint

SPACES, MAPS = "latent_spaces", "latent_maps"  # in the facts
CLOSE = 1e-6


@dataclass(frozen=True)
class AffineMap:
    """A latent map in numbers: ``z @ weights + bias``, ``[n, d_s]`` -> ``[n, d_t]``; ``name``: how it was made."""

    name: str
    weights: np.ndarray
    bias: np.ndarray

    def __call__(self, z: np.ndarray) -> np.ndarray:
        return np.asarray(z, dtype=np.float64) @ self.weights + self.bias

    @classmethod
    def of(cls, name: str, move, z: np.ndarray) -> "AffineMap | None":
        """The numbers of a map that is affine; None for another (``random`` learns nothing that could be kept).

        Args:
            move: latents -> latents; z: latents ``[n, d_s]`` on which the numbers must say the same.
        """
        corners = np.concatenate([np.zeros((1, z.shape[1])), np.eye(z.shape[1])])
        bias, *images = move(corners)
        found = cls(name, np.stack(images) - bias, bias)
        return found if np.allclose(found(z), move(z), atol=CLOSE) else None


def pack(
    source: Source,
    spaces: Sequence[LatentSpace] = (),
    maps: Mapping[str, AffineMap] | None = None,
    labelled: tuple[np.ndarray, np.ndarray] | None = None,
) -> Source:
    """``source`` with all that is given; what it carried before is replaced.

    Args:
        spaces: trained latent spaces, of the source's own space and of others.
        maps: target space (its full name) -> map from the source's latents to that space's.
        labelled: latents ``[n, d]`` of cells of the source's space, and what was measured of them ``[n]``.
    """
    arrays: dict[str, np.ndarray] = {}
    described = {}
    for latent in {id(s): s for s in spaces}.values():
        name = _name(latent.codec.names)
        described[name], found = _closed(latent)
        arrays |= {f"{name}/{key}": array for key, array in found.items()}
    for target, move in (maps or {}).items():
        arrays |= {f"map/{target}/weights": move.weights, f"map/{target}/bias": move.bias}
    if labelled is not None:
        arrays |= {"labelled/latents": labelled[0], "labelled/values": labelled[1]}
    facts = {**source.facts, SPACES: described, MAPS: {t: m.name for t, m in (maps or {}).items()}}
    return replace(source, encoder=arrays, facts=facts)


def latent_space(source: Source, spaces: Sequence[str]) -> LatentSpace | None:
    """The latent space of exactly these search spaces (full names) that ``source`` carries, if it does."""
    name = _name(spaces)
    described = source.facts.get(SPACES, {}).get(name)
    return None if described is None else _opened(described, _below(source, f"{name}/"))


def latent_map(source: Source, target: str) -> AffineMap | None:
    """The map from the source's latents to those of the space ``target`` (its full name), if ``source`` carries one."""
    name = source.facts.get(MAPS, {}).get(target)
    return None if name is None else AffineMap(name, **_below(source, f"map/{target}/"))


def labelled_latents(source: Source) -> tuple[np.ndarray, np.ndarray] | None:
    """Latents ``[n, d]`` of cells of the source's space and what was measured of them ``[n]``, if it carries some."""
    found = _below(source, "labelled/")
    return (found["latents"], found["values"]) if found else None


def _name(spaces: Sequence[str]) -> str:
    return "+".join(spaces)


def _below(source: Source, prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v for k, v in source.encoder.items() if k.startswith(prefix)}


def _closed(latent: LatentSpace) -> tuple[dict, dict[str, np.ndarray]]:
    """Description and arrays, by way of the latent space's own file: one format, one reader."""
    with TemporaryDirectory() as folder:
        latent.save(path := Path(folder) / "latent")
        payload, arrays, _ = load_checkpoint(path, kind=KIND, schema=SCHEMA)
    return payload, arrays


def _opened(payload: dict, arrays: Mapping[str, np.ndarray]) -> LatentSpace:
    with TemporaryDirectory() as folder:
        save_checkpoint(path := Path(folder) / "latent", payload, kind=KIND, schema=SCHEMA, arrays=arrays)
        return LatentSpace.load(path)
