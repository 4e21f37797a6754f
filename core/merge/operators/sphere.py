"""Interpolation on the sphere: slerp, nuslerp, multislerp, Karcher mean.

A result of these lies in the span of its inputs, so one walk over the tensors (their inner products) gives the
coefficients and a second one the weighted sum: two passes, no tensor in memory.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from core.merge.mixing import DeltaMix, Linear, gram
from core.merge.operators import OPERATORS, Block, Group, Parameter
from core.merge.selection import Mask

PARALLEL = 0.9995


@OPERATORS.register(
    "slerp",
    kind="element",
    base="required",
    max_models=1,
    parameters={"t": Parameter(float, description="0 gives the base, 1 the other model")},
    source="Shoemake 1985, Animating rotation with quaternion curves",
)
def slerp(group: Group) -> Linear:
    """(sin((1-t) theta) base + sin(t theta) x) / sin(theta), theta the angle between the flat tensors.

    Above abs(cos theta) = 0.9995 linear interpolation (Shoemake 1985).
    """
    t = group.shared["t"]
    products = gram(group, deltas=False, with_base=True)
    norms = [np.sqrt(products[i, i]) if np.sqrt(products[i, i]) > 1e-8 else 1.0 for i in (0, 1)]
    cosine = float(np.clip(products[0, 1] / norms[0] / norms[1], -1.0, 1.0))
    if abs(cosine) > PARALLEL:
        return Linear(group, [t, 1.0 - t], with_base=True)
    theta = np.arccos(cosine)
    return Linear(group, [np.sin(t * theta) / np.sin(theta), np.sin((1.0 - t) * theta) / np.sin(theta)], with_base=True)


@OPERATORS.register(
    "nuslerp",
    kind="element",
    base="optional",
    min_models=2,
    max_models=2,
    rows=True,
    parameters={
        "weight": Parameter(float, scope="model", description="weight of the model; t = w_2 / (w_1 + w_2)"),
        "nuslerp_flatten": Parameter(bool, True, description="one angle a tensor instead of one a vector"),
        "nuslerp_row_wise": Parameter(bool, False, description="unflattened: vectors along the first dimension"),
    },
    source="mergekit's NuSLERP",
)
def nuslerp(group: Group) -> Linear | DeltaMix | Callable[[Block], np.ndarray]:
    """Spherical interpolation of the two models, or with a base of their deltas, t = w_2 / (w_1 + w_2).

    (sin((1-t) theta) v_1 + sin(t theta) v_2) / sin(theta); collinear vectors (1 - cos^2 <= 1e-16) linearly. One angle
    for the flat tensor, or without ``nuslerp_flatten`` one for every vector along the last (``nuslerp_row_wise``: the
    first) dimension.
    """
    first, second = group.values("weight")
    t = 0.5 if abs(first + second) < 1e-6 else second / (first + second)
    delta = group.base_source is not None
    if group.shared["nuslerp_flatten"] or group.size == 0:
        c = _two_vectors(*_products(gram(group, deltas=delta)), t)
        return _span(group, [float(x) for x in c], delta)
    rows = len(group.shape) < 2 or not group.shared["nuslerp_row_wise"]
    return _vectorwise(group, t, delta, rows)


def _products(g: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return g[0, 0], g[1, 1], g[0, 1]


def _two_vectors(aa: np.ndarray, bb: np.ndarray, ab: np.ndarray, t: float) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of the two vectors from their inner products (arrays broadcast)."""
    norms = np.maximum(np.sqrt(aa), 1e-7) * np.maximum(np.sqrt(bb), 1e-7)
    cosine = np.clip(ab / norms, -1.0, 1.0)
    collinear = (1.0 - cosine * cosine) <= 1e-16
    theta = np.arccos(np.where(collinear, 0.0, cosine))
    sine = np.sin(theta)
    a = np.where(collinear, 1.0 - t, np.sin((1.0 - t) * theta) / sine)
    b = np.where(collinear, t, np.sin(t * theta) / sine)
    return a, b


def _vectorwise(group: Group, t: float, delta: bool, rows: bool) -> Callable[[Block], np.ndarray]:
    """Vectors along the last dimension (``rows``) or along the first (columns of the matrix [shape[0], rest])."""
    width = group.columns if rows else group.size // group.shape[0]
    sums = np.zeros((3, width))
    if not rows:
        for block in group.blocks(rows=True):
            place = np.arange(block.start, block.stop) % width
            a, b = block.deltas if delta else block.tensors
            for i, product in enumerate((a * a, b * b, a * b)):
                sums[i] += np.bincount(place, product, minlength=width)
        coefficients = _two_vectors(*sums, t)

    def merge(block: Block) -> np.ndarray:
        a, b = block.deltas if delta else block.tensors
        if rows:
            u, v = a.reshape(-1, width), b.reshape(-1, width)
            ca, cb = _two_vectors(*[(x * y).sum(axis=1, keepdims=True) for x, y in ((u, u), (v, v), (u, v))], t)
            result = (ca * u + cb * v).reshape(-1)
        else:
            place = np.arange(block.start, block.stop) % width
            result = coefficients[0][place] * a + coefficients[1][place] * b
        return block.base + result if delta else result

    return merge


def _span(group: Group, coefficients: Sequence[float], delta: bool) -> Linear | DeltaMix:
    if delta:
        return DeltaMix(group, [Mask(weight=c) for c in coefficients])
    return Linear(group, coefficients)


def _weights_not_zero(shared: Mapping[str, Any], each: Sequence[Mapping[str, Any]]) -> None:
    weights = [p["weight"] for p in each]
    if shared["normalize_weights"] and abs(sum(weights)) < 1e-8:
        raise ValueError(f"the weights {weights} sum to zero; change them or set normalize_weights: false")


@OPERATORS.register(
    "multislerp",
    kind="element",
    base="optional",
    parameters={
        "weight": Parameter(float, scope="model", description="weight of the model"),
        "normalize_weights": Parameter(bool, True, description="divide the weights by their sum"),
        "eps": Parameter(float, 1e-8, low=0, description="added to norms"),
    },
    check=_weights_not_zero,
    source="https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
)
def multislerp(group: Group) -> Linear | DeltaMix:
    """Barycentre on the sphere in the tangent space at the normalised weighted mean, times the weighted mean norm.

    With unit vectors u_i, m = sum w_i u_i / norm and v = sum w_i (u_i - <u_i, m> m):
    cos(norm v) m + sin(norm v) v / norm v.
    """
    eps, n = group.shared["eps"], len(group.sources)
    if n == 1:
        return Linear(group, [1.0])
    delta = group.base_source is not None
    weights = group.values("weight")
    if group.shared["normalize_weights"]:
        weights = weights / weights.sum()
    g = gram(group, deltas=delta)
    norms = np.sqrt(np.diag(g))
    units = np.diag(1.0 / (norms + eps))
    mean = weights @ units
    length = np.sqrt(max(mean @ g @ mean, 0.0))
    if length < eps:
        if n == 2:
            return _span(group, weights.tolist(), delta)
        raise ValueError(f"tensor {group.name!r}: the weighted directions cancel; multislerp needs other weights")
    mean = mean / length
    tangent = weights @ (units - np.outer(units @ g @ mean, mean))
    angle = np.sqrt(max(tangent @ g @ tangent, 0.0)) + eps
    result = (mean * np.cos(angle) + tangent * (np.sin(angle) / angle)) * (norms @ weights)
    return _span(group, result.tolist(), delta)


@OPERATORS.register(
    "karcher",
    kind="element",
    base="ignored",
    parameters={
        "max_iter": Parameter(int, 10, low=1, description="iterations at most"),
        "tol": Parameter(float, 1e-5, low=0, description="norm of the tangent step below which it stops"),
    },
    source="Karcher 1977, Riemannian center of mass; https://arxiv.org/abs/2603.04972",
)
def karcher(group: Group) -> Linear:
    """Riemannian mean of the directions on the unit sphere times the mean norm, by fixed-point iteration.

    m <- exp_m(sum alpha_i log_m(u_i)) with log_m(u) = theta / sin(theta) (u - <m, u> m), until the step is below tol.
    """
    n, tol = len(group.sources), group.shared["tol"]
    if n == 1:
        return Linear(group, [1.0])
    g = gram(group, deltas=False)
    norms = np.sqrt(np.diag(g))
    valid = norms > tol
    if not valid.any():
        return Linear(group, [0.0] * n)
    units = np.diag(np.where(valid, 1.0 / np.where(valid, norms, 1.0), 0.0))[valid]
    mean = units.mean(axis=0)
    length = np.sqrt(max(mean @ g @ mean, 0.0))
    mean = units[0].copy() if length < tol else mean / length
    for _ in range(group.shared["max_iter"]):
        step = np.zeros(n)
        for unit in units:
            dot = np.clip(mean @ g @ unit, -1.0, 1.0)
            theta = np.arccos(dot)
            if theta >= tol:
                step += (theta / np.sin(theta)) * (unit - dot * mean) / len(units)
        length = np.sqrt(max(step @ g @ step, 0.0))
        if length < tol:
            break
        mean = np.cos(length) * mean + np.sin(length) * step / length
        size = np.sqrt(max(mean @ g @ mean, 0.0))
        mean = mean / size if size > tol else mean
    return Linear(group, (norms.mean() * mean).tolist())
