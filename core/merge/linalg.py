"""Dense linear algebra of the merge operators: float64, one BLAS thread, no direction made of rounding noise.

LAPACK's bytes depend on the number of threads it may use, so every decomposition runs on one; the engine's own threads
work on different tensors. Singular directions whose value is numerically zero (below ``max(m, n) · eps · sigma_max``)
are dropped instead of being filled with arbitrary vectors: results are then defined by the input alone, also for
low-rank deltas (merged adapters, frozen rows) and for equal experts.

Where a CUDA device is there, matrices whose shorter side reaches ``DEVICE_SIDE`` are decomposed on it, in float64 too:
the work grows with the cube of the side and the transfer with its square. The bytes then depend on the device; they
agree with the processor's to the accuracy of float64.
"""

import ctypes.util
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

DEVICE_SIDE = 512  # shorter matrices are done on the processor before they have arrived on the device

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


@cache
def device() -> Any | None:
    """The CUDA device, if there is one; torch is imported only where a driver is installed."""
    if ctypes.util.find_library("cuda") is None:
        return None
    import torch

    return torch.device("cuda") if torch.cuda.is_available() else None


def to_device(matrix: Matrix) -> Any:
    """The matrix as a float64 tensor on the device where that is faster, else as it is."""
    where = device() if matrix.ndim == 2 and min(matrix.shape) >= DEVICE_SIDE else None
    if where is None:
        return matrix
    import torch

    return torch.from_numpy(np.ascontiguousarray(matrix)).to(where)


def to_host(matrix: Any) -> Matrix:
    """The numpy array of what :func:`to_device` and operations on it gave."""
    return matrix if isinstance(matrix, np.ndarray) else matrix.cpu().numpy()


def svd(matrix: Matrix, rank: int | None = None) -> tuple[Matrix, Matrix, Matrix]:
    """Thin SVD ``u · diag(s) · vt`` of ``(m, n)``: the numerically non-zero triples, the largest ``rank`` of them.

    Returns:
        ``u (m, r)``, ``s (r,)`` falling, ``vt (r, n)``.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    placed = to_device(matrix)
    if isinstance(placed, np.ndarray):
        with one_thread():
            u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    else:
        import torch

        u, s, vt = (to_host(part) for part in torch.linalg.svd(placed, full_matrices=False))
    r = _numerical_rank(s, matrix.shape)
    if rank is not None:
        r = min(r, rank)
    return u[:, :r], s[:r], vt[:r]


def polar(matrix: Matrix) -> Matrix:
    """Nearest matrix with orthonormal columns or rows, ``u · vt`` (orthogonal Procrustes); zero on the null space."""
    u, _, vt = svd(matrix)
    return product(u, vt)


def product(*factors: Matrix) -> Matrix:
    """Matrix product from left to right: on the device if every factor is large enough, else on one BLAS thread."""
    placed = [to_device(factor) for factor in factors]
    if any(isinstance(factor, np.ndarray) for factor in placed):
        placed = list(factors)
    with one_thread():
        out = placed[0]
        for factor in placed[1:]:
            out = out @ factor
        return to_host(out)


def solve_right(numerator: Matrix, gram: Matrix) -> Matrix:
    """``X = numerator · gram⁺`` for a symmetric positive semi-definite ``gram (n, n)``; minimal norm on its null space.

    Eigenvalues below ``n · eps`` of the largest count as zero.
    """
    values, vectors = eigh((gram + gram.T) / 2)
    with one_thread():
        top = values[-1] if values.size else 0.0
        keep = values > max(top, 0.0) * gram.shape[0] * np.finfo(np.float64).eps
        vectors = vectors[:, keep]
        return ((numerator @ vectors) / values[keep]) @ vectors.T


def eigh(gram: Matrix) -> tuple[Matrix, Matrix]:
    """Eigenvalues, rising, and eigenvectors (columns) of a symmetric matrix."""
    placed = to_device(gram)
    if isinstance(placed, np.ndarray):
        with one_thread():
            return tuple(np.linalg.eigh(gram))
    import torch

    return tuple(to_host(part) for part in torch.linalg.eigh(placed))


def _numerical_rank(s: Matrix, shape: tuple[int, ...]) -> int:
    if s.size == 0 or s[0] == 0:
        return 0
    return int(np.count_nonzero(s > s[0] * max(shape) * np.finfo(np.float64).eps))
