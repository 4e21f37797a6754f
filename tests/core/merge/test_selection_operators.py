"""MagMax, EMR, Consensus and PCB by hand-made cases and literal loops."""

import numpy as np
import pytest

from core.merge.operators import ArraySource, block_ranges, contract, make_group, merge_group
from core.merge.operators.consensus import consensus_delta, tall_mask
from core.merge.operators.emr import emr_delta, emr_mask
from core.merge.operators.magmax import magmax_delta
from core.merge.operators.pcb import pcb_delta


def test_magmax_takes_the_largest_magnitude_and_the_first_of_equals():
    deltas = [np.array([1.0, -3.0, 2.0, 0.0]), np.array([-2.0, 1.0, -2.0, 0.0])]
    assert magmax_delta(deltas).tolist() == [-2.0, -3.0, 2.0, 0.0]


def test_emr_elects_by_sum_and_takes_the_largest_agreeing():
    deltas = [np.array([3.0, 1.0, 1.0, 2.0]), np.array([-1.0, 2.0, -1.0, -2.0]), np.array([0.5, -9.0, 0.0, 0.0])]
    unified = emr_delta(deltas)
    assert unified.tolist() == [3.0, -9.0, -1.0, -2.0]  # exact zero sums count as minus
    assert [emr_mask(d, unified).tolist() for d in deltas] == [
        [True, False, False, False],
        [False, False, True, True],
        [True, True, False, False],
    ]


def test_consensus_by_literal_loops():
    rng = np.random.default_rng(0)
    deltas = [rng.standard_normal(200) for _ in range(5)]
    total = sum(deltas)
    for k in range(6):
        expected = [
            t if sum(abs(d[j]) > 0.4 * abs(t - d[j]) for d in deltas) >= k else 0.0 for j, t in enumerate(total)
        ]
        assert consensus_delta(deltas, k, 0.4).tolist() == expected
    assert tall_mask(deltas[0], deltas[0]).all()


def pcb_by_sorting(deltas, density):
    """The authors' procedure with full sorts."""
    d, n = np.stack(deltas), deltas[0].size

    def unit(x):
        return (x - x.min()) / (x.max() - x.min())

    def bounds(x, low, high):
        x = np.sort(x)
        return x[int(n * low)], x[int(n * (1 - high) - 1)]

    magnitudes = np.stack([np.clip(abs(r), *bounds(abs(r), 1e-4, 1e-4)) for r in d])
    scores = [np.exp(len(d) * unit(m) ** 2) * np.tanh(r * d.sum(0)) for m, r in zip(magnitudes, d, strict=True)]
    scales = np.stack([unit(np.clip(s, *bounds(s, 1 - density, 0))) for s in scores])
    return (np.sign(d) * magnitudes * scales).sum(0) / np.clip(scales.sum(0), 1e-12, None)


@pytest.mark.parametrize("density", [0.05, 0.1, 0.5])
def test_pcb_matches_the_sorted_procedure(density):
    rng = np.random.default_rng(1)
    deltas = [0.01 * rng.standard_normal(3000) for _ in range(4)]
    assert np.allclose(pcb_delta(deltas, density), pcb_by_sorting(deltas, density), rtol=1e-10, atol=1e-15)


def test_pcb_without_competition():
    assert pcb_delta([np.array([2.0]), np.array([4.0])]).tolist() == [3.0]  # one element: the mean
    assert not pcb_delta([np.zeros((3, 3)), np.zeros((3, 3))]).any()


@pytest.mark.parametrize("method", ["magmax", "emr", "consensus"])
def test_block_borders_do_not_matter(method, monkeypatch):
    rng = np.random.default_rng(2)
    base = rng.standard_normal((13, 7)).astype(np.float32)
    experts = [ArraySource((base + rng.standard_normal(base.shape)).astype(np.float32)) for _ in range(9)]
    whole = merge_group(method, make_group(method, experts, ArraySource(base)))
    monkeypatch.setattr("core.merge.operators.BLOCK", 10)
    assert sum(1 for _ in block_ranges(base.size)) == 10
    assert merge_group(method, make_group(method, experts, ArraySource(base))).tobytes() == whole.tobytes()


@pytest.mark.parametrize("method", ["magmax", "emr", "consensus", "pcb", "tsv_m", "iso_c", "iso_cts", "wudi", "knots"])
def test_lambda_scales_the_merged_delta(method):
    rng = np.random.default_rng(3)
    base = rng.standard_normal((8, 6))
    experts = [ArraySource(base + rng.standard_normal(base.shape)) for _ in range(3)]
    merged = [
        merge_group(method, make_group(method, experts, ArraySource(base), shared={"lambda": f})) for f in (0, 1, 2)
    ]
    assert np.allclose(merged[0], base, atol=1e-12)
    assert np.allclose(merged[2] - merged[1], merged[1] - base, atol=1e-9)
    assert contract(method).source
