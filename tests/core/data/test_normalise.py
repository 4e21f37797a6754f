"""Normalisation: statistics of train alone, undone exactly, changes counted."""

import numpy as np
import pytest

from core.data.examples import Examples, Splits
from core.data.normalise import SCALES, TEXT_STEPS, normalise_arrays, normalise_targets, normalise_texts


def test_text_steps_and_their_counts():
    dirty = Examples(["Tom &amp; Jerry<br />ran", "cafe\u0301\u200b ok", "clean"], ["a", " b  c", "d"], [0, 1, 0])
    plain = Examples(["x"], ["y"], [0])
    new, change = normalise_texts(Splits(dirty, plain, plain))
    assert new.train.texts == ["Tom & Jerry ran", "café ok", "clean"]
    assert new.train.pairs == ["a", "b c", "d"]
    assert change.counts == {"train": {"changed": 2}, "validation": {"changed": 0}, "test": {"changed": 0}}
    assert change.settings == {"steps": ["html", "unicode", "spaces"]}
    assert dirty.texts[1].startswith("cafe\u0301")
    with pytest.raises(ValueError, match="did you mean 'lower'"):
        normalise_texts(Splits(dirty, plain, plain), ("lowr",))


@pytest.mark.parametrize("name", TEXT_STEPS.names())
def test_steps_are_idempotent(name):
    step = TEXT_STEPS.get(name)
    once = step("A &lt;b&gt;  Ｂ\u00a0c\u200d<br>\t é")
    assert step(once) == once


@pytest.mark.parametrize("scale", SCALES.names())
@pytest.mark.parametrize("shape", [(50, 4), (50, 3, 6, 5)])
def test_scaling_uses_train_alone_and_can_be_undone(scale, shape):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(3, 2, shape).astype(np.float32) for _ in range(3)]
    arrays[0][:, 0] = 7  # a column without spread
    splits = Splits(*(Examples([], None, [0] * 50, a) for a in arrays))
    new, change, facts = normalise_arrays(splits, scale)
    moved = Splits(splits.train, *(Examples([], None, [0] * 50, a + 100) for a in arrays[1:]))
    assert normalise_arrays(moved, scale)[2] == facts
    across = (1, -1, 1, 1) if len(shape) == 4 else (1, -1)
    back = new.test.arrays * np.reshape(facts["spread"], across) + np.reshape(facts["shift"], across)
    np.testing.assert_allclose(back, arrays[2], rtol=1e-4, atol=1e-4)
    assert np.all(new.train.arrays[:, 0] == 0)
    if scale == "standard":
        assert abs(new.train.arrays[:, 1].mean()) < 1e-5
        assert abs(new.train.arrays[:, 1].std() - 1) < 1e-5
    assert change.settings == {"scale": scale}


def test_targets():
    parts = [Examples([], None, [1.0, 2.0, 6.0], np.zeros((3, 1))), *(Examples([], None, [3.0], np.zeros((1, 1))),) * 2]
    new, _, (mean, deviation) = normalise_targets(Splits(*parts))
    np.testing.assert_allclose(np.array(new.train.labels) * deviation + mean, [1, 2, 6])
    assert new.test.labels == [0.0]
    classes = Examples([], None, [0, 1], np.zeros((2, 1)))
    with pytest.raises(ValueError, match="for regression"):
        normalise_targets(Splits(classes, classes, classes))
    flat = Examples([], None, [2.0, 2.0], np.zeros((2, 1)))
    with pytest.raises(ValueError, match="constant target"):
        normalise_targets(Splits(flat, flat, flat))
    with pytest.raises(ValueError, match="images and tables"):
        normalise_arrays(Splits(*(Examples(["a"], None, [0]),) * 3))
