"""Exact ranks and masks: against sorting, on tensors that break guesses, with bits that are too many to keep."""

import numpy as np
import pytest

from core.merge import kernels, selection
from core.merge.dtypes import encode
from core.merge.operators import ArraySource, make_group, merge_group
from core.merge.random import philox, stream_key, words
from core.merge.selection import NONE, RANK, keys, magnitude_masks


def group_of(deltas, method="ties", **per_model):
    base = np.zeros(deltas[0].shape, np.float32)
    each = [{"weight": 1.0, **per_model} for _ in deltas]
    return make_group(method, [ArraySource(d.astype(np.float32)) for d in deltas], ArraySource(base), per_model=each)


def by_sorting(delta, removed, kept):
    order = np.argsort(-np.abs(delta.ravel()), kind="stable")
    mask = np.zeros(delta.size, bool)
    mask[order[removed:kept]] = True
    return mask


def kept_elements(group, mask, delta):
    ties = [mask.low_ties, mask.high_ties]
    return np.concatenate([mask.keep(keys(b.deltas[0]), b.start, ties) for b in group.blocks()])


CASES = {
    "normal": lambda rng: rng.standard_normal((700, 500)),
    "few values": lambda rng: np.round(rng.standard_normal((600, 600)) * 3) / 3,
    "all equal": lambda rng: np.ones((600, 600)),
    "mostly zero": lambda rng: rng.standard_normal((600, 600)) * (rng.random((600, 600)) < 0.01),
    "rows of other scales": lambda rng: rng.standard_normal((900, 400)) * np.exp(rng.standard_normal((900, 1)) * 3),
    "one row is everything": lambda rng: np.concatenate([np.zeros((800, 400)), rng.standard_normal((10, 400)) * 9]),
    "tiny": lambda rng: rng.standard_normal((3, 5)),
}


@pytest.mark.parametrize("twin", ["native", "numpy"])
@pytest.mark.parametrize("case", CASES)
def test_ranks_equal_sorting(case, twin, monkeypatch):
    monkeypatch.setenv("TRANSFEROPT_KERNELS", twin)
    delta = CASES[case](np.random.default_rng(0)).astype(np.float32)
    group = group_of([delta])
    n = delta.size
    for removed, kept in [(0, n // 2), (0, 1), (n // 100, n // 2), (n // 3, n), (0, n - 1)]:
        mask = magnitude_masks(group, [(removed, kept)])[0]
        assert np.array_equal(kept_elements(group, mask, delta), by_sorting(delta, removed, kept)), (removed, kept)


def test_no_rank_no_element():
    group = group_of([np.ones((4, 4))])
    assert magnitude_masks(group, [(0, 0)])[0].mode == NONE
    assert magnitude_masks(group, [(0, 3)])[0].mode == RANK


@pytest.mark.parametrize("method", ["dare_ties", "della", "della_linear"])
def test_bits_drawn_again_by_bands_give_the_same_result(method, monkeypatch):
    rng = np.random.default_rng(1)
    deltas = [rng.standard_normal((300, 70)) * 1e-3 for _ in range(3)]
    group = group_of(deltas, method, density=0.6)
    whole = _native(group, method)
    monkeypatch.setattr(selection, "BIT_LIMIT", 100)
    monkeypatch.setattr("core.merge.mixing.BAND", 7000)
    assert np.array_equal(_native(group, method), whole)
    assert np.array_equal(encode(merge_group(method, group), "F32").ravel(), whole)


def _native(group, method):
    from core.merge.operators import OPERATORS

    out = np.zeros(group.size, np.float32)
    if kernels.library() is None:
        pytest.skip("needs a C compiler")
    assert OPERATORS.get(method)(group).native(kernels.Tensor(out.ctypes.data, 0, -1, kernels.DTYPES["F32"]))
    return out


def test_philox_known_answers():
    """From the authors' distribution (Random123, kat_vectors), and the words of both implementations."""
    assert [hex(w) for w in philox((0, 0), 0, 1)] == ["0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8"]
    key = stream_key(3, 1, "model.norm.weight")
    for start, stop in ((0, 1000), (5, 6), (4099, 4777), ((1 << 34) - 40, (1 << 34) + 90)):
        expected = philox(key, start // 4, (stop - start) // 4 + 2)[start % 4 :][: stop - start]
        assert np.array_equal(words(key, start, stop), expected)


def test_draws_are_uniform_and_independent_between_models_and_tensors():
    a, b, c = (words(stream_key(0, m, t), 0, 1 << 18) * 2.0**-32 for m, t in ((0, "x"), (1, "x"), (0, "y")))
    for u in (a, b, c):
        assert abs(u.mean() - 0.5) < 0.003
        assert abs((u < 0.1).mean() - 0.1) < 0.003
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.01
    assert abs(np.corrcoef(a, c)[0, 1]) < 0.01


def test_portable_build_gives_the_same_bytes(tmp_path, monkeypatch):
    """The kernels compiled without the processor's own instructions."""
    if kernels.library() is None:
        pytest.skip("needs a C compiler")
    rng = np.random.default_rng(2)
    deltas = [rng.standard_normal((520, 530)) * 1e-3 for _ in range(3)]
    cases = ("ties", "dare_ties", "della", "breadcrumbs")
    before = [_native(group_of(deltas, m, density=0.6), m) for m in cases]
    monkeypatch.setattr(kernels, "TUNED", ["-O1"])
    monkeypatch.setattr(kernels, "library_path", lambda: tmp_path / "portable.so")
    kernels._load.cache_clear()
    try:
        assert all(np.array_equal(_native(group_of(deltas, m, density=0.6), m), b) for m, b in zip(cases, before))
        assert (tmp_path / "portable.so").exists()
    finally:
        kernels._load.cache_clear()
