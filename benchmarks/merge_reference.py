"""Float64 references of the streamed operators, written for clarity, and the distance of an output from them.

Selections take the largest magnitudes, among equal ones the lowest index; random masks are drawn with the numpy Philox.
Formulas follow the papers with mergekit's parameter names; all experts have the weights of the benchmark's recipes.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from core.merge.dtypes import decode, encode
from core.merge.random import philox, stream_key
from core.merge.tensors import FileSource, TensorInfo, open_checkpoint

Array = np.ndarray
CHECKED = ("layers.0.", "layers.1.self_attn", "model.norm")  # names of the tensors that are compared


def linear(name: str, base: Array, x: Sequence[Array], p: dict) -> Array:
    w = p["weights"]
    return sum(a * b for a, b in zip(w, x)) / sum(w)


def task_arithmetic(name: str, base: Array, x: Sequence[Array], p: dict) -> Array:
    return base + sum(w * (t - base) for w, t in zip(p["weights"], x))


def slerp(name: str, base: Array, x: Sequence[Array], p: dict) -> Array:
    a, b, t = base.ravel(), x[0].ravel(), p["t"]
    cosine = np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1, 1)
    if abs(cosine) > 0.9995:
        return ((1 - t) * a + t * b).reshape(base.shape)
    theta = np.arccos(cosine)
    return ((np.sin((1 - t) * theta) * a + np.sin(t * theta) * b) / np.sin(theta)).reshape(base.shape)


def ties(name: str, base: Array, x: Sequence[Array], p: dict) -> Array:
    kept = [_trim(t - base, max(1, int(p["density"] * base.size))) for t in x]
    return base + _elect(kept, p["weights"], normalize=True)


def breadcrumbs(name: str, base: Array, x: Sequence[Array], p: dict) -> Array:
    n = base.size
    keep, top = int(p["density"] * n), int(p["gamma"] * n)
    bottom = max(0, n - keep - top)
    kept = []
    for t in x:
        order = np.argsort(-np.abs(t - base).ravel(), kind="stable")
        mask = np.zeros(n, bool)
        mask[order[n - bottom - keep : n - bottom]] = True
        kept.append(np.where(mask.reshape(base.shape), t - base, 0.0))
    return base + sum(w * d for w, d in zip(p["weights"], kept))


def dare_ties(name: str, base: Array, x: Sequence[Array], p: dict) -> Array:
    kept = []
    for i, t in enumerate(x):
        mask = _words(i, name, base.size) < p["density"] * 2.0**32
        kept.append(_rescaled(t - base, mask.reshape(base.shape)))
    return base + _elect(kept, p["weights"], normalize=False)


def della(name: str, base: Array, x: Sequence[Array], p: dict) -> Array:
    low, epsilon = p["density"] - p["epsilon"], p["epsilon"]
    kept = []
    for i, t in enumerate(x):
        d = np.atleast_2d(t - base)
        descending = np.argsort(-np.abs(d), axis=1, kind="stable")
        rank = np.empty(d.shape)
        np.put_along_axis(rank, descending, np.arange(d.shape[1] - 1, -1, -1.0)[None], axis=1)
        chance = low + rank / (d.shape[1] - 1) * 2 * epsilon
        mask = _words(i, name, base.size).reshape(d.shape) < chance * 2.0**32
        kept.append(_rescaled(d, mask).reshape(base.shape))
    return base + _elect(kept, p["weights"], normalize=True)


def sce(name: str, base: Array, x: Sequence[Array], p: dict) -> Array:
    deltas = np.stack([t - base for t in x])
    variance = deltas.var(axis=0).ravel()
    k = int(np.count_nonzero(variance) * p["select_topk"])
    mask = np.zeros(base.size, bool)
    mask[np.argsort(-variance, kind="stable")[:k]] = True
    deltas = np.where(mask.reshape(base.shape), deltas, 0.0)
    energy = (deltas**2).reshape(len(x), -1).mean(axis=1)
    weights = energy / energy.sum() if energy.sum() >= 1e-6 else np.full(len(x), 1 / len(x))
    sign = np.where(deltas.sum(axis=0) >= 0, 1, -1)
    agree = np.sign(deltas) == sign
    total = sum(w * a for w, a in zip(weights, agree))
    return base + sum(d * w * a for d, w, a in zip(deltas, weights, agree)) / np.maximum(total, 1e-6)


REFERENCES: dict[str, Callable[[str, Array, Sequence[Array], dict], Array]] = {
    f.__name__: f for f in (linear, task_arithmetic, slerp, ties, breadcrumbs, dare_ties, della, sce)
}


def _trim(d: Array, k: int) -> Array:
    mask = np.zeros(d.size, bool)
    mask[np.argsort(-np.abs(d).ravel(), kind="stable")[:k]] = True
    return np.where(mask.reshape(d.shape), d, 0.0)


def _rescaled(d: Array, mask: Array) -> Array:
    kept = np.where(mask, d, 0.0)
    before, after = np.abs(d).sum(), np.abs(kept).sum()
    return kept * (before / after) if min(before, after) >= 1e-7 else kept


def _elect(deltas: Sequence[Array], weights: Sequence[float], normalize: bool) -> Array:
    weighted = np.stack([w * d for w, d in zip(weights, deltas)])
    sign = np.where(weighted.sum(axis=0) >= 0, 1, -1)
    agree = np.sign(weighted) == sign
    total = (weighted * agree).sum(axis=0)
    if not normalize:
        return total
    divisor = sum(w * a for w, a in zip(weights, agree))
    return total / np.where(divisor == 0, 1, divisor)


def _words(model: int, name: str, n: int) -> Array:
    return philox(stream_key(0, model, name), 0, -(-n // 4))[:n]


def distance(method: str, out: Path, models: Sequence[Path], base: Path, parameters: dict) -> dict[str, float]:
    """Compare the checked tensors of ``out``: share of elements that differ from the correctly rounded reference,
    the largest distance in units in the last place, and the elements compared."""
    merged, start = open_checkpoint(out).tensors, open_checkpoint(base).tensors
    experts = [open_checkpoint(m).tensors for m in models]
    total = differ = largest = 0
    for name in sorted(merged):
        if not any(part in name for part in CHECKED):
            continue
        exact = REFERENCES[method](name, _read(start[name]), [_read(e[name]) for e in experts], parameters)
        steps = np.abs(_order(encode(exact, "BF16")) - _order(_raw(merged[name])))
        total, differ, largest = total + steps.size, differ + int((steps > 0).sum()), max(largest, int(steps.max()))
    return {"differ_share": differ / total, "largest_ulp": float(largest), "elements": float(total)}


def _raw(info: TensorInfo) -> Array:
    source = FileSource(info)
    raw = source.read(0, info.size).reshape(info.shape)
    source.close()
    return raw


def _read(info: TensorInfo) -> Array:
    return decode(_raw(info), "BF16")


def _order(raw: Array) -> Array:
    """Integers in the order of the bfloat16 values."""
    bits = raw.astype(np.int32)
    return np.where(bits & 0x8000, -(bits & 0x7FFF), bits)
