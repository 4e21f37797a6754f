"""Counter-based random numbers: a word depends on seed, model, tensor and index alone.

Threads, shards and block sizes therefore cannot change a random merge. Philox4x32-10 (Salmon et al., "Parallel random
numbers: as easy as 1, 2, 3", SC 2011), in numpy or the native kernel with the same bits.
"""

import hashlib

import numpy as np

from core.merge import kernels

ROUNDS = 10
MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (0x9E3779B9, 0xBB67AE85)
LOW = np.uint64(0xFFFFFFFF)
SHIFT = np.uint64(32)


def stream_key(seed: int, model: int, tensor: str) -> tuple[int, int]:
    """The two 32-bit key words of one tensor of one model (its position among the models besides the base)."""
    digest = hashlib.sha256(f"{seed}/{model}/{tensor}".encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


def words(key: tuple[int, int], start: int, stop: int) -> np.ndarray:
    """Uniform 32-bit words of the elements ``[start, stop)`` (uint32)."""
    first, last = start // 4 * 4, -(-stop // 4) * 4
    native = kernels.library()
    if native is not None:
        out = np.empty(last - first, dtype=np.uint32)
        native.merge_philox(key[0], key[1], first, last - first, out.ctypes.data)
    else:
        out = philox(key, first // 4, (last - first) // 4)
    return out[start - first : stop - first]


def uniform(key: tuple[int, int], start: int, stop: int) -> np.ndarray:
    """Uniform numbers in [0, 1), float64 with 32 random bits."""
    return words(key, start, stop) * 2.0**-32


def philox(key: tuple[int, int], counter: int, n: int) -> np.ndarray:
    """Words of the counters ``counter`` to ``counter + n``: uint32 [4 n]."""
    index = np.arange(counter, counter + n, dtype=np.uint64)
    c0, c1 = index & LOW, index >> SHIFT
    c2, c3 = np.zeros_like(index), np.zeros_like(index)
    k0, k1 = key
    for _ in range(ROUNDS):
        p0, p1 = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1 = (p1 >> SHIFT) ^ c1 ^ np.uint64(k0), p1 & LOW
        c2, c3 = (p0 >> SHIFT) ^ c3 ^ np.uint64(k1), p0 & LOW
        k0, k1 = (k0 + WEYL[0]) & 0xFFFFFFFF, (k1 + WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32).reshape(-1)
