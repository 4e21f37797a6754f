"""Latents become cells that can be asked."""

import numpy as np
import pytest

from core.nas.arena import Arena
from core.nas.decoding import decoded_cells
from core.nas.spaces import get_space
from core.nas.spaces.nb201 import NB201Cell

NEAR, FAR = NB201Cell((0, 0, 0, 0, 0, 1)), NB201Cell((4, 4, 4, 4, 4, 4))


class ByNumbers:
    """A latent space whose coordinates are the operations; what is no operation decodes to nothing."""

    def encode(self, space, cells):
        return np.array([c.ops for c in cells], dtype=float)

    def decode(self, space, z):
        rounded = np.rint(z).astype(int)
        return [NB201Cell(tuple(ops)) if max(ops) < 5 else None for ops in rounded.tolist()]


@pytest.mark.parametrize(
    ("latent", "meant"),
    [
        ([0, 0, 0, 0, 0, 1], NEAR),  # decoded, and in the pool
        ([0, 0, 0, 0, 0.2, 2.6], NEAR),  # decoded to a cell that is not in the pool
        ([4, 4, 4, 4, 4, 6], FAR),  # decoded to nothing
    ],
)
def test_in_a_closed_arena_the_nearest_cell_stands_for_what_cannot_be_asked(latent, meant):
    arena = Arena(get_space("nb201"), pool=[FAR, NEAR])
    assert decoded_cells(arena, ByNumbers(), np.array([latent])) == [meant]


def test_in_an_open_arena_cells_come_as_they_are_decoded():
    arena = Arena(get_space("nb201"), pool=[FAR, NEAR])
    arena.closed = False
    cells = decoded_cells(arena, ByNumbers(), np.array([[0, 0, 0, 0, 0, 3.0], [0, 0, 0, 0, 0, 7.0]]))
    assert cells == [NB201Cell((0, 0, 0, 0, 0, 3)), None]


def test_latents_of_another_encoder_are_not_mixed_up():
    class Mirrored(ByNumbers):
        def encode(self, space, cells):
            return 4 - super().encode(space, cells)

    arena, nothing = Arena(get_space("nb201"), pool=[FAR, NEAR]), np.array([[4, 4, 4, 4, 4, 6.0]])
    assert decoded_cells(arena, ByNumbers(), nothing) == [FAR]
    assert decoded_cells(arena, Mirrored(), nothing) == [NEAR]
