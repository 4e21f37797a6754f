"""Components: what one expert adds to a merge, by operator and density, so that weights act on them linearly.

A component is named ``basis`` or ``basis@density``: a basis of :mod:`core.merge.basis` (raw task vectors, TSV-M's
orthogonalised ones and so on) or ``ties`` (signs elected once, with equal votes), of which the ``density`` share of
largest magnitudes is kept. Each expert's is computed once from all experts' deltas; after that a merge is
``base + sum_i weight_i · component_i``, whichever component each expert takes.
"""

from collections.abc import Sequence

import numpy as np

from core.merge.basis import BASES
from core.registry import nearest

TIES = "ties"
Component = tuple[str, float]  # basis and density


def kinds() -> tuple[str, ...]:
    """Names that a component may have, without a density."""
    return (*BASES.names(), TIES)


def component_named(name: str) -> Component:
    """Basis and density of ``basis`` or ``basis@density``.

    Raises:
        ValueError: unknown basis, or a density that is not above 0 and at most 1.
    """
    basis, at, density = name.partition("@")
    if basis not in kinds():
        raise ValueError(
            f"unknown component {name!r}{nearest(basis, kinds())} Allowed: {', '.join(kinds())}, each @density"
        )
    try:
        share = float(density) if at else 1.0
    except ValueError:
        share = float("nan")
    if not 0 < share <= 1:
        raise ValueError(f"component {name!r}: the density after @ is the share kept, above 0 and at most 1")
    return basis, share


def components(deltas: Sequence[np.ndarray], basis: str, density: float = 1.0) -> list[np.ndarray]:
    """One tensor's component of every expert, float64 arrays of its shape.

    Args:
        deltas: the experts' task vectors of the tensor.
        density: share of the elements kept, largest magnitudes first (of equal ones the earlier), unscaled: what the
            rest would weigh is the weight's business. ``ties`` trims before it elects, as published.
    """
    if basis == TIES:
        return elected([kept(np.asarray(d, dtype=np.float64), density) for d in deltas])
    return [kept(c, density) for c in BASES.get(basis)(deltas)]


def kept(component: np.ndarray, density: float) -> np.ndarray:
    """The component with all but the ``density`` share of largest magnitudes set to zero (one element at least)."""
    if density >= 1 or not component.size:
        return component
    flat = component.ravel()
    order = np.argsort(-np.abs(flat), kind="stable")[: max(1, int(density * flat.size))]
    out = np.zeros_like(flat)
    out[order] = flat[order]
    return out.reshape(component.shape)


def elected(trimmed: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Each expert's share of TIES with equal weights (Yadav et al., NeurIPS 2023, Eq. 3-4): the shares sum to it.

    The sign of an element is that of the sum (zero counts as +); an expert that disagrees gives nothing, the others
    their value divided by how many agree.
    """
    positive = sum(trimmed) >= 0
    agree = [np.where(positive, t > 0, t < 0) for t in trimmed]
    voters = np.maximum(np.sum(agree, axis=0), 1)
    return [np.where(a, t, 0.0) / voters for a, t in zip(agree, trimmed, strict=True)]
