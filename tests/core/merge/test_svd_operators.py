"""SVD and iterative operators against independent torch float64 references, and on the inputs that trip them."""

import threading

import numpy as np
import pytest
import torch

from core.merge import linalg
from core.merge.linalg import one_thread, polar, solve_right, svd
from core.merge.operators import ArraySource, make_group, merge_group
from core.merge.operators.iso_c import iso_c_delta
from core.merge.operators.iso_cts import iso_cts_delta, specific_dimensions
from core.merge.operators.knots import keep_largest, knots_delta
from core.merge.operators.tsv_m import tsv_components
from core.merge.operators.wudi import wudi_components, wudi_delta

SHAPES = [(24, 16), (16, 24), (20, 20)]


def deltas_of(shape, tasks=4, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) * 0.01 for _ in range(tasks)]


def close(ours, reference):
    reference = np.asarray(reference)
    return np.linalg.norm(ours - reference) <= 1e-10 * np.linalg.norm(reference)


def reference_polar(m):
    u, _, v = torch.linalg.svd(m, full_matrices=False)
    return u @ v


@pytest.mark.parametrize("shape", SHAPES)
def test_tsv_components_sum_to_the_papers_algorithm(shape):
    deltas = deltas_of(shape)
    k = min(shape) // len(deltas)
    triples = [torch.linalg.svd(torch.from_numpy(d), full_matrices=False) for d in deltas]
    left = reference_polar(torch.cat([u[:, :k] for u, _, _ in triples], 1))
    right = reference_polar(torch.cat([v[:k] for _, _, v in triples], 0))
    merged = left @ torch.diag(torch.cat([s[:k] for _, s, _ in triples])) @ right
    components = tsv_components(deltas)
    assert len(components) == len(deltas)
    assert close(sum(components), merged)
    overlap = components[0].T @ components[1]
    assert np.linalg.norm(overlap) < 1e-12  # whitening makes the tasks' column spaces orthogonal


@pytest.mark.parametrize("shape", SHAPES)
def test_iso_c_has_one_singular_value(shape):
    deltas = deltas_of(shape)
    u, s, v = torch.linalg.svd(torch.from_numpy(sum(deltas)), full_matrices=False)
    merged = iso_c_delta(deltas)
    assert close(merged, s.mean() * (u @ v))
    assert np.ptp(np.linalg.svd(merged, compute_uv=False)) < 1e-12


@pytest.mark.parametrize(("shape", "common"), [((24, 16), 0.8), ((16, 24), 0.5), ((20, 20), 0.0), ((20, 20), 1.0)])
def test_iso_cts_matches_the_papers_algorithm(shape, common):
    deltas = [torch.from_numpy(d) for d in deltas_of(shape)]
    r, tasks = min(shape), len(deltas)
    each = round((r - int(r * common)) / tasks)
    u, s, v = torch.linalg.svd(sum(deltas), full_matrices=False)
    k = r - each * tasks
    lefts, values, rights = [u[:, :k]], [s[:k]], [v[:k]]
    for d in deltas:
        ui, si, vi = torch.linalg.svd(d - u[:, :k] @ u[:, :k].T @ d, full_matrices=False)
        lefts, values, rights = [*lefts, ui[:, :each]], [*values, si[:each]], [*rights, vi[:each]]
    expected = torch.cat(values).mean() * (reference_polar(torch.cat(lefts, 1)) @ reference_polar(torch.cat(rights, 0)))
    assert close(iso_cts_delta([d.numpy() for d in deltas], common), expected)


def test_iso_cts_never_asks_for_more_dimensions_than_there_are():
    for full in range(1, 12):
        for tasks in range(1, 12):
            for common in (0.0, 0.3, 0.8, 1.0):
                assert 0 <= specific_dimensions(full, tasks, common) * tasks <= full


def test_knots_with_everything_kept_and_agreeing_is_the_mean():
    delta = deltas_of((24, 16), 1)[0]
    assert close(knots_delta([delta, delta, delta], [1, 1, 1], [1, 1, 1]), delta)


@pytest.mark.parametrize("rows", [5, 10, 40])  # wide and tall: the basis comes from either side
def test_knots_matches_ties_in_the_shared_basis(rows):
    deltas = deltas_of((rows, 6), 3)
    u, s, v = torch.linalg.svd(torch.from_numpy(np.concatenate(deltas, 1)), full_matrices=False)
    coordinates = torch.stack([torch.diag(s) @ part for part in v.split(6, 1)])
    n = int(0.5 * coordinates[0].numel())
    for c in coordinates:
        c[c.abs() < c.abs().flatten().sort(descending=True).values[n - 1]] = 0
    sign = torch.where(coordinates.sum(0) >= 0, 1.0, -1.0)
    chosen = coordinates * (coordinates * sign > 0)
    expected = u @ (chosen.sum(0) / (chosen != 0).sum(0).clamp(min=1))
    assert close(knots_delta(deltas, [1, 1, 1], [0.5] * 3), expected)


def test_keep_largest_breaks_ties_by_lowest_index():
    kept = keep_largest(np.array([[1.0, -1.0], [1.0, 2.0]]), 0.5)
    assert kept.tolist() == [[1.0, 0.0], [0.0, 2.0]]


def wudi_loss(d, deltas):
    return sum(((d - t) @ t.T).square().sum() / t.square().sum() for t in deltas)


def test_wudi_follows_adam_on_the_papers_loss():
    deltas = [torch.from_numpy(d) for d in deltas_of((12, 8), 3)]
    merged = torch.nn.Parameter(sum(deltas))
    adam = torch.optim.Adam([merged], lr=1e-3)
    for _ in range(40):
        adam.zero_grad()
        wudi_loss(merged, deltas).backward()
        adam.step()
    assert close(wudi_delta([d.numpy() for d in deltas], 40, 1e-3), merged.detach())


def test_wudi_exact_is_the_minimum():
    deltas = [torch.from_numpy(d) for d in deltas_of((12, 8), 3)]
    merged = torch.from_numpy(wudi_delta([d.numpy() for d in deltas], 0)).requires_grad_()
    wudi_loss(merged, deltas).backward()
    start = sum(deltas).clone().requires_grad_()
    wudi_loss(start, deltas).backward()
    assert merged.grad.norm() < 1e-9 * start.grad.norm()


@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (7,)])
def test_wudi_components_sum_to_the_exact_delta(shape):
    deltas = [*deltas_of(shape, 3), np.zeros(shape)]
    assert close(sum(wudi_components(deltas)), wudi_delta(deltas, 0))


def rank_two(shape, seed):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((shape[0], 2)) @ rng.standard_normal((2, shape[1]))


def test_low_rank_and_equal_experts_give_no_rounding_noise():
    delta = rank_two((20, 16), 0)
    assert close(sum(tsv_components([delta, delta, delta])), delta)  # equal experts: the expert itself
    merged = iso_c_delta([delta, rank_two((20, 16), 1)])
    assert np.linalg.matrix_rank(merged) == 4  # not filled up with arbitrary directions
    assert close(wudi_delta([delta], 0), delta)


@pytest.mark.parametrize(
    "function",
    [
        iso_c_delta,
        iso_cts_delta,
        wudi_delta,
        lambda d: sum(tsv_components(d)),
        lambda d: knots_delta(d, [1, 1], [0.5, 1]),
    ],
)
@pytest.mark.parametrize("shape", [(6, 4), (20, 4)])
def test_zero_deltas_give_zero(function, shape):
    assert not function([np.zeros(shape), np.zeros(shape)]).any()


@pytest.mark.parametrize("method", ["tsv_m", "iso_c", "iso_cts", "wudi", "knots"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 24), (7,), (), (2, 3, 4)])
def test_small_and_non_matrix_tensors(method, shape):
    rng = np.random.default_rng(1)
    base = rng.standard_normal(shape).astype(np.float32)
    experts = [ArraySource(base + rng.standard_normal(shape).astype(np.float32)) for _ in range(5)]
    merged = merge_group(method, make_group(method, experts, ArraySource(base)))
    assert merged.shape == shape
    assert np.isfinite(merged).all()
    if len(shape) != 2:
        mean = sum(e.read(0, base.size).astype(np.float64) for e in experts) / 5
        assert np.allclose(merged.ravel(), mean, atol=1e-12)


@pytest.mark.parametrize("method", ["tsv_m", "iso_c", "iso_cts", "wudi", "knots"])
def test_same_bytes_on_any_number_of_blas_threads(method):
    from threadpoolctl import threadpool_limits

    rng = np.random.default_rng(2)
    base = rng.standard_normal((160, 120)).astype(np.float32)
    experts = [ArraySource(base + 0.01 * rng.standard_normal(base.shape).astype(np.float32)) for _ in range(3)]
    merged = []
    for threads in (1, 2):
        with threadpool_limits(threads, user_api="blas"):
            merged.append(merge_group(method, make_group(method, experts, ArraySource(base))).tobytes())
    assert merged[0] == merged[1]


def test_one_thread_restores_the_limits_when_the_last_leaves():
    from threadpoolctl import threadpool_info, threadpool_limits

    def counts():
        return [p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"]

    with threadpool_limits(2, user_api="blas"):
        before, inside, leave = counts(), threading.Event(), threading.Event()

        def other():
            with one_thread():
                inside.set()
                leave.wait(10)

        thread = threading.Thread(target=other, daemon=True)
        thread.start()
        assert inside.wait(10)
        with one_thread():
            pass
        while_inside = counts()
        leave.set()
        thread.join()
        assert set(while_inside) == {1}
        assert counts() == before


def test_svd_drops_zero_directions_and_polar_is_orthogonal():
    u, s, vt = svd(rank_two((9, 7), 3))
    assert s.size == 2
    assert close((u * s) @ vt, rank_two((9, 7), 3))
    q = polar(np.random.default_rng(0).standard_normal((9, 4)))
    assert np.allclose(q.T @ q, np.eye(4), atol=1e-12)


def test_solve_right_is_least_squares_with_a_null_space():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 6))
    gram, wanted = x.T @ x, rng.standard_normal((4, 6))
    assert close(solve_right(wanted, gram), wanted @ np.linalg.pinv(gram, rcond=1e-10))


@pytest.mark.parametrize("operation", ["svd", "polar", "solve_right", "wudi_delta", "knots_delta"])
@pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_on_a_device_the_same_numbers(monkeypatch, operation, where):
    if where == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(24, 16)), rng.normal(size=(24, 16))
    run = {
        "svd": lambda: (lambda u, s, vt: (u * s) @ vt)(*svd(a, 5)),
        "polar": lambda: polar(a),
        "solve_right": lambda: solve_right(a, b.T @ b),
        "wudi_delta": lambda: wudi_delta([a, b], iterations=20, learning_rate=1e-3),
        "knots_delta": lambda: knots_delta([a, b], [1.0, 0.5], [0.5, 0.5]),
    }[operation]
    expected = run()
    monkeypatch.setattr(linalg, "DEVICE_SIDE", 1)
    monkeypatch.setattr(linalg, "device", lambda: torch.device(where))
    assert close(run(), expected)
