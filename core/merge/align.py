"""Aligned heads: every task's head is fitted to answer on the merged encoder as its expert answers on its own.

Merging moves what a head reads more than it destroys it: the texts of a task lie elsewhere, and turned. A linear map
from merged to own embeddings brings them back; folded into the head it costs nothing to serve. Yang et al.
(Representation Surgery for Multi-Task Model Merging, ICML 2024) train such a module; here it is ridge regression on
unlabelled texts of the task, solved in closed form and shrunk towards the expert's own head.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.merge.linalg import one_thread
from core.merge.objectives import EncoderObjective, mixed_batches

FOLDS = 4
STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)  # of the ridge, relative to the mean variance of an embedding


@dataclass(frozen=True)
class Head:
    """A linear head: weight [C, H], bias [C]."""

    weight: np.ndarray
    bias: np.ndarray

    def logits(self, x: np.ndarray) -> np.ndarray:
        """[n, C] of embeddings [n, H]."""
        return x @ self.weight.T + self.bias


@dataclass(frozen=True)
class Aligned:
    """A fitted head, and its logits [n, C] on the texts of the fit, each from a fit without that text."""

    head: Head
    held_out: np.ndarray
    strength: float


def align(x: np.ndarray, wanted: np.ndarray, own: Head, seed: int = 0) -> Aligned:
    """Fit a head on embeddings ``x`` [n, H] to the logits ``wanted`` [n, C] that the expert gives for the same texts.

    Minimises ``mean |W x + b - wanted|^2 + strength · v · |W - W_own|^2``, v the mean variance of a coordinate of x;
    the strength is the one of least held-out error over ``FOLDS`` folds. No label is read.

    Raises:
        ValueError: fewer texts than folds.
    """
    if not np.isfinite(x).all():  # a broken candidate: its answers are NaN, which judges as failed
        return Aligned(own, np.full(np.shape(wanted), np.nan), STRENGTHS[-1])
    x, wanted = np.asarray(x, dtype=np.float64), np.asarray(wanted, dtype=np.float64)
    if len(x) < FOLDS:
        raise ValueError(f"{len(x)} texts to align a head on; at least {FOLDS} are needed")
    part = np.random.default_rng([seed, 23]).permutation(np.arange(len(x)) % FOLDS)
    held_out = np.empty((len(STRENGTHS), *wanted.shape))
    with one_thread():  # sums in another order would differ in the last bit
        for fold in range(FOLDS):
            kept = part != fold
            for k, head in enumerate(_ridge(x[kept], wanted[kept], own, STRENGTHS)):
                held_out[k, ~kept] = head.logits(x[~kept])
        best = int(np.argmin(((held_out - wanted) ** 2).mean(axis=(1, 2))))
        return Aligned(_ridge(x, wanted, own, STRENGTHS[best : best + 1])[0], held_out[best], STRENGTHS[best])


def _ridge(x: np.ndarray, wanted: np.ndarray, own: Head, strengths: Sequence[float]) -> list[Head]:
    """The minimiser for each strength, from one eigendecomposition."""
    middle, level = x.mean(axis=0), wanted.mean(axis=0)
    centred = x - middle
    residual = wanted - level - centred @ own.weight.T.astype(np.float64)
    values, vectors = np.linalg.eigh(centred.T @ centred / len(x))
    pull = vectors.T @ (centred.T @ residual / len(x))
    heads = []
    for strength in strengths:
        change = vectors @ (pull / (np.maximum(values, 0) + strength * max(values.mean(), 1e-12))[:, None])
        weight = own.weight + change.T
        heads.append(Head(weight.astype(np.float32), (level - weight @ middle).astype(np.float32)))
    return heads


def embed(encoder: Any, tasks: Mapping[str, EncoderObjective], batches: list[Any] | None = None) -> dict:
    """Embeddings [n, H] of all examples of every task, in one pass of the shared encoder.

    Args:
        batches: from :func:`core.merge.objectives.mixed_batches` for all examples, to reuse them.
    """
    from core.models.encoder import embed_batches

    everything = {t: np.arange(o.size) for t, o in tasks.items()}
    batches = mixed_batches(tasks, everything, encoder.device) if batches is None else batches
    names = sorted(tasks)
    sizes = [tasks[n].size for n in names]
    pooled = embed_batches(encoder, batches, sum(sizes))
    return dict(zip(names, np.split(pooled, np.cumsum(sizes)[:-1]), strict=True))
