"""Dense linear algebra of the merge operators: float64, one BLAS thread, no direction made of rounding noise.

LAPACK's bytes depend on the number of threads it may use, so every decomposition runs on one; the engine's own threads
work on different tensors. Singular directions whose value is numerically zero (below ``max(m, n) · eps · sigma_max``)
are dropped instead of being filled with arbitrary vectors: results are then defined by the input alone, also for
low-rank deltas (merged adapters, frozen rows) and for equal experts.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

_lock = threading.Lock()
_holders = 0
_limits = None


@contextmanager
def one_thread() -> Iterator[None]:
    """Hold BLAS at one thread while any caller of the process is inside (re-entrant, safe from many threads)."""
    global _holders, _limits
    from threadpoolctl import threadpool_limits

    with _lock:
        if _holders == 0:
            _take_control()
            _limits = threadpool_limits(limits=1, user_api="blas")
        _holders += 1
    try:
        yield
    finally:
        with _lock:
            _holders -= 1
            if _holders == 0:
                _take_control()
                _limits.restore_original_limits()
                _take_control()
                _limits = None


def _take_control() -> None:
    """Let this thread set OpenBLAS's process-wide limit (threadpoolctl 3.7+ listens to the first thread alone)."""
    from threadpoolctl import OpenBLASController

    if hasattr(OpenBLASController, "clear_controlling_thread"):
        OpenBLASController.clear_controlling_thread(force=True)


def svd(matrix: Matrix, rank: int | None = None) -> tuple[Matrix, Matrix, Matrix]:
    """Thin SVD ``u · diag(s) · vt`` of ``(m, n)``: the numerically non-zero triples, the largest ``rank`` of them.

    Returns:
        ``u (m, r)``, ``s (r,)`` falling, ``vt (r, n)``.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    with one_thread():
        u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    r = _numerical_rank(s, matrix.shape)
    if rank is not None:
        r = min(r, rank)
    return u[:, :r], s[:r], vt[:r]


def polar(matrix: Matrix) -> Matrix:
    """Nearest matrix with orthonormal columns or rows, ``u · vt`` (orthogonal Procrustes); zero on the null space."""
    u, _, vt = svd(matrix)
    return product(u, vt)


def product(*factors: Matrix) -> Matrix:
    """Matrix product from left to right on one BLAS thread."""
    with one_thread():
        out = factors[0]
        for factor in factors[1:]:
            out = out @ factor
        return out


def solve_right(numerator: Matrix, gram: Matrix) -> Matrix:
    """``X = numerator · gram⁺`` for a symmetric positive semi-definite ``gram (n, n)``; minimal norm on its null space.

    Eigenvalues below ``n · eps`` of the largest count as zero.
    """
    with one_thread():
        values, vectors = np.linalg.eigh((gram + gram.T) / 2)
        top = values[-1] if values.size else 0.0
        keep = values > max(top, 0.0) * gram.shape[0] * np.finfo(np.float64).eps
        vectors = vectors[:, keep]
        return ((numerator @ vectors) / values[keep]) @ vectors.T


def _numerical_rank(s: Matrix, shape: tuple[int, ...]) -> int:
    if s.size == 0 or s[0] == 0:
        return 0
    return int(np.count_nonzero(s > s[0] * max(shape) * np.finfo(np.float64).eps))
