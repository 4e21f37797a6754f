"""Genotypes from anywhere: any text and any tokens are a valid genotype or a ValueError, nothing else."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.nas.spaces import SPACES, get_space

NAMES = SPACES.names()
ALPHABET = "01234567~|+,-x()[]{}\"': _" + "acdefghiklmnoprstuvw"


def accepted(space, read):
    """What ``read()`` gives if it is a genotype; None if it is refused."""
    try:
        cell = read()
    except ValueError:
        return None
    space.check(cell)
    assert space.parse(space.format(cell)) == cell
    assert space.key(space.decode(space.encode(cell))) == space.key(cell)
    assert space.key(space.canonical(cell)) == space.key(cell)
    return cell


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=80) | st.text(ALPHABET, max_size=120))
def test_any_text(name, text):
    space = get_space(name)
    accepted(space, lambda: space.parse(text))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    edits=st.lists(st.tuples(st.integers(0, 500), st.text(ALPHABET, max_size=2)), max_size=3),
)
def test_valid_text_with_a_few_characters_changed(name, seed, edits):
    space = get_space(name)
    text = space.format(space.sample(np.random.default_rng(seed)))
    for place, replacement in edits:
        place %= len(text) + 1
        text = text[:place] + replacement + text[place + 1 :]
    cell = accepted(space, lambda: space.parse(text))
    assert cell is not None or edits


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), changes=st.lists(st.tuples(st.integers(0, 60), st.integers(-2, 20)), max_size=3))
def test_valid_tokens_with_a_few_changed(name, seed, changes):
    space = get_space(name)
    tokens = space.encode(space.sample(np.random.default_rng(seed))).tolist()
    for place, token in changes:
        tokens[place % len(tokens)] = token
    cell = accepted(space, lambda: space.decode(tokens))
    assert cell is not None or changes


@settings(max_examples=100, deadline=None)
@given(
    matrix=st.lists(st.lists(st.integers(-1, 2), max_size=8), max_size=8),
    names=st.lists(st.sampled_from(["input", "output", "conv3x3-bn-relu", "maxpool3x3", "other"]), max_size=9),
)
def test_any_specification_of_nb101(matrix, names):
    space = get_space("nb101")
    accepted(space, lambda: space.from_matrix(matrix, names))


@settings(max_examples=100, deadline=None)
@given(
    value=st.recursive(
        st.integers(-9, 9) | st.text("ab01", max_size=4), lambda c: st.lists(c, max_size=9).map(tuple), max_leaves=40
    )
)
def test_any_literal_of_darts(value):
    space = get_space("darts")
    accepted(space, lambda: space.parse(repr(value)))
