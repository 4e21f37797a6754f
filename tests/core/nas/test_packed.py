"""A source carries latent spaces, maps and labelled latents through its one file."""

import numpy as np
import pytest

from core.nas.arena import Arena
from core.nas.encoder import Corpus, EncoderConfig, train_latent_space
from core.nas.mapping import MAPPINGS
from core.nas.packed import AffineMap, labelled_latents, latent_map, latent_space, pack
from core.nas.source import Source, learn_source
from core.nas.spaces import get_space

TINY = EncoderConfig(width=32, feedforward=32, heads=2, layers=1, latent=8, steps=20, rank_steps=10, every=10, lr=3e-3)


def cells_of(name, count=60):
    space, rng = get_space(name), np.random.default_rng(0)
    return space, list({space.key(c): c for c in (space.sample(rng) for _ in range(3 * count))}.values())[:count]


@pytest.fixture(scope="module")
def world():
    """A source, latent spaces of its space and of another, and one of both."""
    (here, ours), (there, theirs) = cells_of("nb201"), cells_of("nb101")
    labels = np.array([here.size_features(c)["params"] for c in ours])
    source = learn_source("s", Arena(here, ours), ours, labels)
    corpora = [Corpus(here, ours), Corpus(there, theirs)]
    latents = [train_latent_space([c], TINY) for c in corpora]
    return source, latents, train_latent_space(corpora, TINY), ours, theirs


def test_latent_spaces_maps_and_labels_come_back_from_the_file(world, tmp_path):
    source, (left, right), both, ours, theirs = world
    here, there = left.codec.spaces[0], right.codec.spaces[0]
    z, moved_to = left.encode(here, ours), right.encode(there, theirs)
    move = MAPPINGS.get("linear")(z, moved_to, 0)
    numbers = AffineMap.of("linear", move, z)
    values = np.arange(len(ours), dtype=float)
    pack(source, [left, right, both], {"nb101": numbers}, (z, values)).save(tmp_path / "a.source")
    read = Source.load(tmp_path / "a.source")
    assert (read.key, read.elites, read.facts["labels"]) == (source.key, source.elites, source.facts["labels"])
    assert np.array_equal(latent_space(read, ["nb201"]).encode(here, ours), z)
    assert np.array_equal(latent_space(read, ["nb201", "nb101"]).encode(there, theirs), both.encode(there, theirs))
    carried = latent_map(read, "nb101")
    assert carried.name == "linear"
    assert np.allclose(carried(z), move(z), atol=1e-6)
    assert latent_space(read, ["nb101"]).decode(there, carried(z)) == right.decode(there, move(z))
    latents, known = labelled_latents(read)
    assert np.array_equal(latents, z)
    assert np.array_equal(known, values)


def test_latent_spaces_of_a_space_with_settings_are_carried_as_such(world, tmp_path):
    _, (left, _), _, _, _ = world
    space = get_space("transformer-student", layers=3, heads=(1, 2), neurons=(16, 32), width=32)
    cells = list(space.enumerate())[::3]
    labels = np.array([space.size_features(c)["params"] for c in cells])
    source = learn_source("students", Arena(space, cells), cells, labels)
    latent = train_latent_space([Corpus(space, cells)], TINY)
    z = latent.encode(space, cells)
    map_to_itself = AffineMap.of("shared", MAPPINGS.get("shared")(z, z, 0), z)
    packed = pack(source, [latent, left], {space.full_name: map_to_itself})
    packed.save(tmp_path / "a.source")
    read = Source.load(tmp_path / "a.source")
    assert read.home == space
    assert latent_space(read, ["transformer-student"]) is None, "the space of the default settings is another"
    found = latent_space(read, [space.full_name])
    assert found.codec.spaces == (space,)
    assert np.array_equal(found.encode(space, cells), z)
    assert latent_map(read, "transformer-student") is None
    assert np.allclose(latent_map(read, space.full_name)(z), z, atol=1e-6)


def test_what_is_not_carried_is_none(world):
    source, (left, _), _, _, _ = world
    assert latent_space(source, ["nb201"]) is None
    assert latent_map(source, "nb101") is None
    assert labelled_latents(source) is None
    packed = pack(source, [left])
    assert latent_space(packed, ["nb101"]) is None
    assert latent_space(pack(packed), ["nb201"]) is None, "what was carried before is replaced"


@pytest.mark.parametrize(("name", "affine"), [("linear", True), ("none", True), ("shared", True), ("random", False)])
def test_a_map_has_numbers_only_if_it_is_affine(name, affine):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(40, 5))
    found = AffineMap.of(name, MAPPINGS.get(name)(z, z + 1, 0), z)
    assert (found is not None) == affine
    if affine:
        assert found.weights.shape == (5, 5)
