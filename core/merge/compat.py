"""``compat: mergekit``: the arithmetic of mergekit 0.1.5, in the tensors' own format, operation by operation.

mergekit subtracts, weights and adds in the tensors' format (usually bfloat16) where this program computes in float64.
For a result that must equal an earlier one bit for bit, these functions do the same operations in the same order with
torch. Its random masks cannot be repeated: DARE and DELLA take this program's draws. multislerp, karcher and
arcee_fusion, whose results hang on the order of long reductions and on sampling, have no such form. Whole tensors are
held in memory.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from core.merge.dtypes import LONG_NAMES, promote
from core.merge.operators import Group
from core.merge.operators.task_arithmetic import SETTINGS
from core.merge.selection import random_masks, rank_random_masks
from core.registry import nearest

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 1024 * 1024


def merge_like_mergekit(group: Group, dtype: str, work: str | None = None) -> np.ndarray:
    """One merged tensor as raw elements of ``dtype``.

    Args:
        work: format of the arithmetic (the recipe's ``dtype``); None for the inputs' own.

    Raises:
        ValueError: an operator that mergekit does not have.
    """
    check_supported(group.method)
    import torch

    sources = [*group.sources, *([group.base_source] if group.base_source is not None else [])]
    kind = getattr(torch, work or LONG_NAMES[promote([s.dtype for s in sources])])
    tensors = [_tensor(s, group).to(kind) for s in group.sources]
    base = _tensor(group.base_source, group).to(kind) if group.base_source is not None else None
    merged = FUNCTIONS[group.method](group, tensors, base).to(kind).to(getattr(torch, LONG_NAMES[dtype])).contiguous()
    if not torch.isfinite(merged).all():
        raise ValueError(f"tensor {group.name!r}: the merge gives NaN or infinity in mergekit's arithmetic")
    if dtype == "BF16":
        return merged.view(torch.int16).numpy().view(np.uint16).reshape(-1)
    return merged.numpy().reshape(-1)


def check_supported(method: str) -> None:
    """Raise ValueError unless mergekit has the operator."""
    if method not in FUNCTIONS:
        allowed = ", ".join(sorted(FUNCTIONS))
        raise ValueError(f"compat: mergekit does not know {method!r}{nearest(method, FUNCTIONS)} Allowed: {allowed}")


def _tensor(source: Any, group: Group) -> "Tensor":
    import torch

    group.decoded(source, 0, group.size, "an input")  # refuses NaN and infinity
    raw = np.array(source.read(0, group.size)).reshape(group.shape)
    if source.dtype == "BF16":
        return torch.from_numpy(raw.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(raw)


def _linear(group: Group, tensors: "Sequence[Tensor]", base: "Tensor | None") -> "Tensor":
    import torch

    wide = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    weights = torch.tensor([group.values("weight").tolist()], dtype=torch.float64).to(wide)
    shape = (1,) + (1,) * tensors[0].ndim
    result = torch.zeros((1, *tensors[0].shape), dtype=wide)
    for i, tensor in enumerate(tensors):
        result.addcmul_(tensor.unsqueeze(0), weights[:, i].reshape(shape))
    if group.shared["normalize"]:
        result.div_(weights.sum(dim=1).reshape(shape))
    return result[0]


def _passthrough(group: Group, tensors: "Sequence[Tensor]", base: "Tensor | None") -> "Tensor":
    scale = group.per_model[0]["scale"]
    return tensors[0] if scale is None else tensors[0] * scale


def _slerp(group: Group, tensors: "Sequence[Tensor]", base: "Tensor | None") -> "Tensor":
    """Norms and cosine from chunks in float32, then the two coefficients."""
    import torch

    wide = torch.float64 if base.dtype == torch.float64 else torch.float32
    a, b = base.reshape(1, -1), tensors[0].reshape(1, -1)
    t = torch.tensor([[group.shared["t"]]], dtype=wide)
    starts = range(0, a.shape[1], CHUNK)

    def pieces(x: "Tensor") -> "list[Tensor]":
        return [x[:, s : s + CHUNK].to(wide) for s in starts]

    def norm(x: "Tensor") -> "Tensor":
        parts = torch.stack([torch.linalg.vector_norm(p, dim=1, keepdim=True) for p in pieces(x)])
        n = torch.linalg.vector_norm(parts, dim=0)
        return torch.where(n > 1e-8, n, 1)

    na, nb = norm(a), norm(b)
    products = [((p / na) * (q / nb)).sum(dim=1, keepdim=True) for p, q in zip(pieces(a), pieces(b))]
    dot = torch.stack(products).sum(dim=0).clamp(-1, 1)
    straight = dot.abs() > 0.9995
    theta = torch.acos(torch.where(straight, 0, dot))
    sine = torch.sin(theta)
    ca = torch.where(straight, 1 - t, torch.sin((1 - t) * theta) / sine)
    cb = torch.where(straight, t, torch.sin(t * theta) / sine)
    result = torch.empty_like(a)
    for s, p, q in zip(starts, pieces(a), pieces(b)):
        result[:, s : s + CHUNK] = ca * p + cb * q
    return result.reshape(base.shape)


def _task_vectors(group: Group, tensors: "Sequence[Tensor]", base: "Tensor | None") -> "Tensor":
    """Task arithmetic and its sparse relatives: deltas, masks, weights, signs and sums in the tensors' format."""
    import torch

    setting = SETTINGS[group.method]
    deltas = torch.stack([_sparsify(group, i, t - base, setting.sparsify) for i, t in enumerate(tensors)])
    weights = torch.tensor(group.values("weight").tolist(), dtype=deltas.dtype)
    weights = weights.reshape(-1, *[1] * base.ndim)
    deltas = deltas * weights
    if setting.consensus:
        mask = _agreeing(deltas)
        mixed = (deltas * mask).sum(dim=0)
        divisor = (weights * mask).sum(dim=0)
        divisor[divisor == 0] = 1
    else:
        mixed, divisor = deltas.sum(dim=0), weights.sum(dim=0)
        divisor[divisor.abs() < 1e-8] = 1
    if group.shared["normalize"]:
        mixed = mixed / divisor
    if group.shared["lambda"] != 1:
        mixed = mixed * group.shared["lambda"]
    return base + mixed


def _agreeing(deltas: "Tensor") -> "Tensor":
    """Where a delta's sign is that of the sum, zero sums counting as plus."""
    sign = deltas.sign()
    return sign == (deltas.sum(dim=0) >= 0).to(deltas.dtype) * 2 - 1


def _sparsify(group: Group, i: int, delta: "Tensor", how: str) -> "Tensor":
    import torch

    density = group.per_model[i]["density"]
    if not how or density >= 1 or delta.numel() == 0:
        return delta
    n = delta.numel()
    magnitude = delta.abs().reshape(-1).float()
    mask = torch.zeros(n, dtype=delta.dtype)
    if how == "magnitude":
        if density <= 0:
            return torch.zeros_like(delta)
        mask[torch.argsort(magnitude, descending=True)[: max(1, int(density * n))]] = 1
    elif how == "outliers":
        keep, top = int(density * n), int(group.per_model[i]["gamma"] * n)
        bottom = max(0, n - keep - top)
        mask[torch.sort(magnitude, descending=False).indices[bottom : bottom + keep]] = 1
    else:
        mask[:] = torch.from_numpy(_draw(group, i, density, how)).to(delta.dtype)
    kept = delta * mask.reshape(delta.shape)
    if not group.shared["rescale"]:
        return kept
    before, after = delta.abs().sum(), kept.abs().sum()
    return kept if before < 1e-7 or after < 1e-7 else kept * (before / after)


def _draw(group: Group, i: int, density: float, how: str) -> np.ndarray:
    """This program's random mask of one model, as flat booleans."""
    densities = [float(d) for d in group.values("density")]
    if how == "random":
        mask = random_masks(group, densities)[i][0]
    else:
        mask = rank_random_masks(group, densities, [float(e) for e in group.values("epsilon")])[i][0]
    return np.unpackbits(mask.bits, bitorder="little")[: group.size].astype(bool)


def _nuslerp(group: Group, tensors: "Sequence[Tensor]", base: "Tensor | None") -> "Tensor":
    import torch

    first, second = (float(w) for w in group.values("weight"))
    t = 0.5 if abs(first + second) < 1e-6 else second / (first + second)
    a, b = (x - base if base is not None else x for x in tensors)
    shape, swap = a.shape, False
    if group.shared["nuslerp_flatten"]:
        a, b = a.reshape(-1), b.reshape(-1)
    elif group.shared["nuslerp_row_wise"]:
        a, b, swap = a.transpose(0, -1), b.transpose(0, -1), True
    unit = [x / torch.norm(x, dim=-1, keepdim=True).clamp(min=1e-7) for x in (a, b)]
    cosine = torch.sum(unit[0] * unit[1], dim=-1, keepdim=True).clamp(-1, 1)
    straight = (1 - cosine.square()) <= 1e-16
    theta = torch.acos(torch.where(straight, 0, cosine))
    mixed = (torch.sin((1 - t) * theta) * a + torch.sin(t * theta) * b) / torch.sin(theta)
    mixed = torch.where(straight, (1 - t) * a + t * b, mixed)
    mixed = (mixed.transpose(0, -1) if swap else mixed).reshape(shape)
    return base + mixed if base is not None else mixed


def _model_stock(group: Group, tensors: "Sequence[Tensor]", base: "Tensor | None") -> "Tensor":
    import torch

    shape, k = base.shape, len(tensors)
    rows = group.shared["filter_wise"]

    def view(x: "Tensor") -> "Tensor":
        return (x.unsqueeze(0) if x.dim() == 1 else x) if rows else x.reshape(-1)

    start, models = view(base), [view(t) for t in tensors]
    offsets = [m - start for m in models]
    cosines = []
    for i, a in enumerate(offsets):
        for b in offsets[i + 1 :]:
            norms = torch.norm(a, dim=-1) * torch.norm(b, dim=-1)
            cosines.append(((a * b).sum(dim=-1) / norms.clamp(min=1e-6)).clamp(-1, 1))
    cosine = torch.stack(cosines).mean(dim=0).unsqueeze(-1)
    below = 1 + (k - 1) * cosine
    singular = below.abs() < 1e-6
    t = torch.where(
        singular, torch.zeros_like(cosine), (k * cosine) / torch.where(singular, torch.ones_like(below), below)
    )
    return (t * (sum(models) / k) + (1 - t) * start).reshape(shape)


def _sce(group: Group, tensors: "Sequence[Tensor]", base: "Tensor | None") -> "Tensor":
    import torch

    deltas = torch.stack([t - base for t in tensors], dim=0)
    share = group.shared["select_topk"]
    if share < 1:
        variance = torch.var(deltas, dim=0, unbiased=False)
        k = int(torch.count_nonzero(variance) * share) if share > 0 else 0
        mask = torch.zeros_like(variance)
        if k:
            mask.view(-1)[torch.topk(variance.abs().view(-1), k=k, largest=True)[1]] = 1
        deltas = deltas * mask.unsqueeze(0)
    weights = deltas.square().reshape(len(tensors), -1).mean(dim=1)
    everything = torch.sum(weights).item()
    weights = torch.ones_like(weights) / len(tensors) if abs(everything) < 1e-6 else weights / everything
    weights = weights.reshape(-1, *[1] * base.ndim) * _agreeing(deltas)
    return base + (deltas * weights).sum(dim=0) / weights.sum(dim=0).clamp(min=1e-6)


def _nearswap(group: Group, tensors: "Sequence[Tensor]", base: "Tensor | None") -> "Tensor":
    near = (group.shared["t"] / (base - tensors[0]).abs().clamp(min=1e-6)).clamp(min=0, max=1)
    return near * tensors[0] + (1 - near) * base


FUNCTIONS: "dict[str, Callable[[Group, Sequence[Tensor], Tensor | None], Tensor]]" = {
    "linear": _linear,
    "passthrough": _passthrough,
    "slerp": _slerp,
    "nuslerp": _nuslerp,
    "model_stock": _model_stock,
    "sce": _sce,
    "nearswap": _nearswap,
    **dict.fromkeys(SETTINGS, _task_vectors),
}
