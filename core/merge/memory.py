"""Merging in memory: the engine's operators and rounding on dictionaries of tensors, with the same bytes."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from core.merge import kernels
from core.merge.compute import write_group
from core.merge.dtypes import NAMES, RAW
from core.merge.operators import ArraySource, make_group, output_dtype

Tensors = Mapping[str, Any]


def merge_tensors(
    method: str,
    models: Sequence[Tensors],
    base: Tensors | None = None,
    *,
    shared: Mapping[str, Any] | None = None,
    per_model: Sequence[Mapping[str, Any]] | None = None,
    out_dtype: str | None = None,
    seed: int = 0,
    compat: str | None = None,
) -> dict[str, Any]:
    """Merge state dictionaries tensor by tensor, as the engine would write them.

    Args:
        models: for each model but the base, name -> torch tensor (on the CPU) or numpy array.
        base: the base model, where the operator needs one.
        shared, per_model: parameters of the operator.
        out_dtype: ``bfloat16`` and the like; default the format of the inputs.
        seed: of random operators (with the tensor's name and the model's position it keys their draws).
        compat: ``mergekit`` for its arithmetic.

    Returns:
        name -> merged tensor, of the kind (torch or numpy) of the first model's; bfloat16 numpy arrays are ``uint16``.

    Raises:
        ValueError: missing tensors, shapes that differ, and everything the operator refuses.
    """
    everything = [*models, *([base] if base is not None else [])]
    names = list(everything[-1] if base is not None else everything[0])
    for i, m in enumerate(everything):
        if set(m) != set(names):
            lost = sorted(set(m) ^ set(names))
            raise ValueError(f"model {i} does not have the tensors of the others: {', '.join(lost[:3])}")
    merged = {}
    for name in names:
        sources = [_source(m[name]) for m in models]
        start = _source(base[name]) if base is not None else None
        group = make_group(method, sources, start, shared=shared, per_model=per_model, name=name, seed=seed)
        dtype = NAMES[out_dtype] if out_dtype else output_dtype(group)
        out = np.empty(group.shape, dtype=RAW[dtype])
        write_group(group, dtype, kernels.Tensor(out.ctypes.data, 0, -1), compat)
        merged[name] = _like(out, dtype, everything[0][name])
    return merged


def _source(tensor: Any) -> ArraySource:
    """A torch tensor or numpy array as a source, without a copy where it is contiguous."""
    if isinstance(tensor, np.ndarray):
        return ArraySource(tensor, "BF16" if tensor.dtype == np.uint16 else None)
    torch = sys.modules["torch"]
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return ArraySource(tensor.view(torch.int16).numpy().view(np.uint16), "BF16")
    return ArraySource(tensor.numpy())


def _like(raw: np.ndarray, dtype: str, example: Any) -> Any:
    if isinstance(example, np.ndarray):
        return raw
    torch = sys.modules["torch"]
    if dtype == "BF16":
        return torch.from_numpy(raw.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(raw)
