"""Augmentation: a contract for every registered method, and what each one does."""

import numpy as np
import pytest
import torch

from core.data.augment import IMAGE, TEXT, augment
from core.data.augment import text as module
from core.data.examples import Examples, Splits

SENTENCES = [f"the film number {i} was a terrible and evil answer to a good question ." for i in range(12)]


@pytest.fixture(autouse=True)
def thesaurus(monkeypatch):
    """A small thesaurus in place of the archive's; the real one has its own test."""
    heads = {"BAD": ["terrible", "horrible", "evil"], "FEAR": ["terrible", "horrible"], "SAY": ["answer"]}
    words = {}
    for head, members in heads.items():
        for word in members:
            words.setdefault(word, set()).add(head)
    frozen = {w: frozenset(h) for w, h in words.items()}
    monkeypatch.setattr(module, "_thesaurus", lambda: (frozen, heads))
    module._roget.cache_clear()
    yield
    module._roget.cache_clear()


def splits(kind):
    if kind == "text":
        rows = Examples(list(SENTENCES), [f"second {s}" for s in SENTENCES], [i % 2 for i in range(12)])
    else:
        pixels = np.random.default_rng(0).integers(0, 255, (12, 3, 10, 14), dtype=np.uint8)
        rows = Examples([], None, [i % 2 for i in range(12)], pixels)
    return Splits(rows, rows.take([0]), rows.take([1]))


METHODS = [("text", name) for name in TEXT.names()] + [("image", name) for name in IMAGE.names()]


@pytest.mark.parametrize(("kind", "name"), METHODS)
def test_contract(kind, name):
    given = splits(kind)
    before = given.sha256
    np.random.seed(0)
    torch.manual_seed(0)
    states = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    new, change = augment(given, [name], copies=2, seed=5)
    assert (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states
    assert given.sha256 == before
    assert len(new.train) == 36
    assert new.train.take(range(12)).sha256 == given.train.sha256
    assert new.train.labels == given.train.labels * 3
    assert (new.validation, new.test) == (given.validation, given.test)
    assert change.counts["train"]["copies"] == 24
    assert change.counts["train"]["changed"] > 0
    assert augment(given, [name], copies=2, seed=5)[0].sha256 == new.sha256
    assert augment(given, [name], copies=2, seed=6)[0].sha256 != new.sha256
    if kind == "image":
        assert new.train.arrays.dtype == np.uint8
        assert new.train.arrays.shape == (36, 3, 10, 14)


def run(name, rows=SENTENCES, **options):
    new, _ = augment(Splits(*(Examples(list(rows), None, [0] * len(rows)),) * 3), {name: options}, seed=1)
    return [(a.split(), b.split()) for a, b in zip(rows, new.train.texts[len(rows) :])]


def test_word_drop_and_swap_keep_their_words():
    pairs = run("word_drop", rate=0.5)
    assert all(set(b) <= set(a) and len(b) <= len(a) for a, b in pairs)
    share = 1 - sum(len(b) for _, b in pairs) / sum(len(a) for a, _ in pairs)
    assert 0.35 < share < 0.65
    assert all(sorted(a) == sorted(b) for a, b in run("word_swap", rate=0.3))
    assert run("word_drop", ["one"], rate=0.99)[0][1] == ["one"]  # never empty


def test_synonyms_come_from_the_thesaurus_alone():
    found = {(x, y) for a, b in run("synonym", rate=0.9) for x, y in zip(a, b) if x != y}
    assert found == {("terrible", "horrible")}
    assert run("synonym", ["Terrible!", "(terrible)"], rate=0.999)[0][1] == ["Horrible!"]
    with pytest.raises(ValueError, match="allowed: thesaurus, wordnet"):
        run("synonym", source="dictionary")


def test_back_off_draws_from_the_corpus_by_its_continuations():
    vocabulary = {w for s in SENTENCES for w in s.split()}
    pairs = run("back_off", rate=0.9)
    assert all(len(a) == len(b) and a[0] == b[0] and set(b) <= vocabulary for a, b in pairs)
    # "number" has twelve continuations in twelve occurrences, "was" one: the first is noised far more often
    after_number = sum(a[3] != b[3] for a, b in pairs)
    after_was = sum(a[5] != b[5] for a, b in pairs)
    assert after_number > after_was


def image(name, arrays, **options):
    rows = Examples([], None, [0] * len(arrays), arrays)
    return augment(Splits(rows, rows, rows), {name: options}, seed=3)[0].train.arrays[len(arrays) :]


def test_images_move_as_they_should():
    ramp = np.tile(np.arange(8, dtype=np.float32), (6, 1, 8, 1))
    np.testing.assert_allclose(image("flip", ramp, share=0.999999), ramp[..., ::-1], atol=1e-5)
    np.testing.assert_allclose(image("rotate", ramp, degrees=0), ramp, atol=1e-5)
    np.testing.assert_allclose(image("crop", ramp, least=1), ramp, atol=1e-5)
    half = image("scale", ramp, low=2, high=2)[0, 0, 4]
    np.testing.assert_allclose(np.diff(half)[1:-1], 0.5, atol=1e-5)
    wide = np.zeros((1, 1, 9, 21), np.float32)
    wide[0, 0, 4, :] = 1
    turned = image("rotate", wide, degrees=45)[0, 0]
    assert 5 < turned.sum() < 22  # a line stays a line of about its length within a wide frame


def test_wrong_use_is_refused():
    with pytest.raises(ValueError, match="did you mean 'word_drop'"):
        augment(splits("text"), ["word_dropp"])
    with pytest.raises(ValueError, match=r"'word_drop' with \{'share': 1\}"):
        augment(splits("text"), {"word_drop": {"share": 1}})
    with pytest.raises(ValueError, match="between 0 and 1"):
        augment(splits("text"), {"word_drop": {"rate": 1.5}})
    with pytest.raises(ValueError, match="unknown image augmentation 'word_drop'"):
        augment(splits("image"), ["word_drop"])
    with pytest.raises(ValueError, match="copies >= 1"):
        augment(splits("text"), ["word_drop"], copies=0)
    table = Examples([], None, [0, 1], np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="hold a table"):
        augment(Splits(table, table, table), ["flip"])
