"""Maps from a source's latent space to a target's, one a file.

``MAPPINGS.get(name)(source, target, seed)`` takes latents ``[n, d_s]`` and ``[n, d_t]``, both in order of their value
(worst first, paired by rank), and returns a function from latents ``[m, d_s]`` to ``[m, d_t]``.
"""

from collections.abc import Callable

import numpy as np

from core.registry import Registry

Map = Callable[[np.ndarray], np.ndarray]
MAPPINGS: Registry[Callable[[np.ndarray, np.ndarray, int], Map]] = Registry("latent mapping", "core.nas.mapping")


def check_pairs(source: np.ndarray, target: np.ndarray) -> None:
    """Raise ValueError unless both are finite matrices with the same number of rows, at least two."""
    for name, z in (("source", source), ("target", target)):
        if z.ndim != 2 or not np.isfinite(z).all():
            raise ValueError(f"{name} latents must be a finite matrix [n, d], got shape {z.shape}")
    if len(source) != len(target) or len(source) < 2:
        raise ValueError(f"rank pairing needs equally many latents of both spaces, got {len(source)} and {len(target)}")


def fit_width(z: np.ndarray, width: int) -> np.ndarray:
    """Cut or pad with zeros to ``[n, width]``."""
    out = np.zeros((len(z), width), dtype=z.dtype)
    out[:, : min(width, z.shape[1])] = z[:, :width]
    return out
