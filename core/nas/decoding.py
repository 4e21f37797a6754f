"""From latents to cells that a search may ask."""

from weakref import WeakKeyDictionary

import numpy as np

from core.nas.arena import Arena
from core.nas.encoder import LatentSpace
from core.nas.spaces import Genotype


def decoded_cells(arena: Arena, latent: LatentSpace, z: np.ndarray) -> list[Genotype | None]:
    """The cells that latents ``z`` ``[n, latent]`` stand for, in their order; a cell may come twice.

    What is decoded may be no cell (None). In a closed arena, where it may also be a cell that cannot be asked, the
    cell with the nearest latent takes its place.
    """
    decoded = latent.decode(arena.space, z)
    if not arena.closed:
        return decoded
    population = _latents(arena, latent)
    return [
        cell
        if cell is not None and arena.key(cell) in arena.row_of
        else arena.cells[int(((population - point) ** 2).sum(1).argmin())]
        for point, cell in zip(z, decoded, strict=True)
    ]


_encoded: WeakKeyDictionary[Arena, tuple[LatentSpace, np.ndarray]] = WeakKeyDictionary()


def _latents(arena: Arena, latent: LatentSpace) -> np.ndarray:
    """Latents of the arena's cells ``[n, latent]``: the same for every search in it."""
    by, z = _encoded.get(arena, (None, None))
    if by is not latent:
        z = latent.encode(arena.space, arena.cells)
        _encoded[arena] = latent, z
    return z
