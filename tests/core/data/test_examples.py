"""Folding, examples, hashes, draws."""

import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.examples import Examples, fold, share_of


@settings(max_examples=50, deadline=None)
@given(st.one_of(st.text(max_size=30), st.text(st.characters(max_codepoint=127), max_size=30)))
def test_the_quick_way_for_ascii_equals_the_rule(text):
    normal = unicodedata.normalize("NFKC", text)
    rule = re.sub(r"[\W_]+", " ", normal.lower()).strip()
    assert fold(text) == (rule or normal.strip())


def test_equal_texts_fold_together_and_marks_alone_stay():
    assert fold("It 's GREAT , isn't it?") == fold("it's great... isn't it") == "it s great isn t it"
    assert fold("ﬁne\u2014Café") == "fine café"
    assert fold(" ?! ") == "?!"


def make(n=4):
    return Examples([f"t{i}" for i in range(n)], [f"p{i}" for i in range(n)], list(range(n)))


def test_columns_must_be_as_long():
    with pytest.raises(ValueError, match="1 texts for 2 labels"):
        Examples(["a"], None, [0, 1])
    with pytest.raises(ValueError, match="1 pairs for 2 labels"):
        Examples(["a", "b"], ["c"], [0, 1])


def test_the_hash_sees_every_column_and_the_order():
    base = make()
    others = [
        base.take([1, 0, 2, 3]),
        Examples(["x", *base.texts[1:]], base.pairs, base.labels),
        Examples(base.texts, None, base.labels),
        base.with_labels([3, 2, 1, 0]),
        Examples(base.texts, base.pairs, base.labels, np.zeros((4, 2), np.float32)),
        Examples(base.texts, base.pairs, base.labels, np.ones((4, 2), np.float32)),
        Examples(["t0p0", *base.texts[1:]], ["", *base.pairs[1:]], base.labels),
    ]
    hashes = {base.sha256, *(o.sha256 for o in others)}
    assert len(hashes) == len(others) + 1
    assert make().sha256 == base.sha256


def test_take_and_sample():
    rows = Examples([], None, list(range(10)), np.arange(20).reshape(10, 2))
    taken = rows.take(np.array([7, 2]))
    assert taken.labels == [7, 2]
    assert taken.arrays.tolist() == [[14, 15], [4, 5]]
    drawn = rows.sample(4, seed=1)
    assert drawn.labels == sorted(drawn.labels)
    assert drawn.labels == rows.sample(4, seed=1).labels != rows.sample(4, seed=2).labels
    assert rows.sample(99) is rows


def test_shares_are_even_and_depend_on_key_and_seed():
    shares = np.array([share_of(f"text {i}", 0) for i in range(2000)])
    assert abs(shares.mean() - 0.5) < 0.02
    assert 0 <= shares.min() < shares.max() < 1
    assert share_of("a", 0) == share_of("a", 0) != share_of("a", 1)
