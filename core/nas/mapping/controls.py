"""Controls of the latent map: none, random, and the identity of a shared latent space."""

import numpy as np

from core.nas.mapping import MAPPINGS, Map, check_pairs, fit_width


@MAPPINGS.register("none")
def none(source: np.ndarray, target: np.ndarray, seed: int = 0) -> Map:
    """Source latents as they are, cut or padded to the target's width."""
    check_pairs(source, target)
    return lambda z: fit_width(np.asarray(z, dtype=np.float64), target.shape[1])


@MAPPINGS.register("random")
def random(source: np.ndarray, target: np.ndarray, seed: int = 0) -> Map:
    """Latents of random target cells, whatever the source says."""
    check_pairs(source, target)

    def apply(z: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng([seed, len(z)])
        return target[rng.integers(0, len(target), len(z))].astype(np.float64)

    return apply


@MAPPINGS.register("shared")
def shared(source: np.ndarray, target: np.ndarray, seed: int = 0) -> Map:
    """For one encoder over both spaces: move by the difference of the means, turn nothing."""
    check_pairs(source, target)
    if source.shape[1] != target.shape[1]:
        raise ValueError(f"a shared latent space has one width, got {source.shape[1]} and {target.shape[1]}")
    shift = target.mean(0) - source.mean(0)
    return lambda z: np.asarray(z, dtype=np.float64) + shift
