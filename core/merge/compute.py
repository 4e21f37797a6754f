"""One output tensor: its sources are opened, its operator runs, its elements are rounded and put in their place."""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from core.merge import kernels
from core.merge.dtypes import RAW, decode, encode
from core.merge.jobs import Input, Job
from core.merge.operators import OPERATORS, Group, block_ranges, contract
from core.merge.plan import Plan
from core.merge.tensors import FileSource, RowSource, ShardFiles, close, write_exactly


def run_job(plan: Plan, job: Job, files: ShardFiles) -> None:
    """Compute one tensor and write it to its slot."""
    slot = plan.layout.slots[job.name]
    fd = files.fds[slot.shard]
    with ExitStack() as stack:
        if job.copy:
            _copy(plan, job, [open_input(plan, job, i, stack) for i in job.inputs], fd, slot.offset)
            return
        group = open_group(plan, job, stack)
        write_group(group, job.dtype, kernels.Tensor(None, slot.offset, fd), plan.recipe.compat, plan.recipe.dtype)


def open_input(plan: Plan, job: Job, i: Input, stack: ExitStack) -> Any:
    """The source of one input, its adapter and token rows applied; closed with ``stack``."""
    source: Any = FileSource(i.info)
    stack.callback(close, source)
    adapter = plan.adapters[i.model]
    if adapter is not None and adapter.touches(i.name):
        source = adapter.source(i.name, source)
        stack.callback(close, source)
    if job.vocabulary:
        source = RowSource(source, *plan.vocabulary.rows(i, job, plan))
    return source


def open_group(plan: Plan, job: Job, stack: ExitStack) -> Group:
    """The group of a job that is not a copy; its files are closed with ``stack``."""
    return Group(
        name=job.name,
        shape=job.shape,
        sources=tuple(open_input(plan, job, i, stack) for i in job.inputs),
        base_source=open_input(plan, job, job.base, stack) if job.base else None,
        shared=job.shared,
        per_model=job.per_model,
        seed=plan.recipe.seed,
        models=tuple(str(plan.references[i.model]) for i in job.inputs),
        method=plan.recipe.merge_method,
        names=tuple(i.name for i in job.inputs),
    )


def write_group(
    group: Group, dtype: str, place: kernels.Tensor, compat: str | None = None, work: str | None = None
) -> None:
    """Merge one tensor into a file or into memory.

    Args:
        dtype: output format (safetensors name).
        place: memory address or file and offset of the first element; its ``dtype`` is set here.
        compat: ``mergekit`` for its arithmetic, in the format ``work`` (default the inputs').

    Raises:
        ValueError: NaN or infinity in an input, overflow in the output; names the tensor.
    """
    if compat == "mergekit":
        from core.merge.compat import merge_like_mergekit

        _write_raw(merge_like_mergekit(group, dtype, work), place, 0)
        return
    result = (lambda block: block.base) if _untouched(group) else OPERATORS.get(group.method)(group)
    place.dtype = kernels.DTYPES[dtype]
    if hasattr(result, "native") and result.native(place):
        return
    if not callable(result):
        flat = np.asarray(result).reshape(-1)
        pieces: Iterator[tuple[int, np.ndarray]] = ((a, flat[a:b]) for a, b in block_ranges(group.size))
    else:
        rows = OPERATORS.entry(group.method).facts.get("rows", False)
        pieces = ((block.start, result(block)) for block in group.blocks(rows))
    for start, values in pieces:
        raw = encode(values, dtype)
        _check_finite(group.name, values, raw, dtype)
        _write_raw(raw, place, start)


def _untouched(group: Group) -> bool:
    """Whether no model moved this tensor, where its merge would be long: any merge of zero deltas is the base.

    A frozen embedding is often half of a model, and the decomposition of its zero delta most of the work.
    """
    c = contract(group.method)
    if c.kind != "whole" or c.base != "required":
        return False
    return all(not delta.any() for block in group.blocks() for delta in block.deltas)


def _check_finite(name: str, values: np.ndarray, raw: np.ndarray, dtype: str) -> None:
    """Refuse NaN and infinity in a result, before and after rounding."""
    if not np.isfinite(values).all():
        raise ValueError(f"tensor {name!r}: the merge gives NaN or infinity; check its parameters")
    infinite = ((raw & 0x7F80) == 0x7F80) if dtype == "BF16" else ~np.isfinite(raw)
    if infinite.any():
        raise ValueError(f"tensor {name!r}: the merged values overflow the output format; use a wider out_dtype")


def _write_raw(raw: np.ndarray, place: kernels.Tensor, start: int) -> None:
    raw = np.ascontiguousarray(raw)
    at = place.offset + start * raw.itemsize
    if place.data:
        ctypes.memmove(place.data + at, raw.ctypes.data, raw.nbytes)
    else:
        write_exactly(place.fd, raw, at)


def _copy(plan: Plan, job: Job, sources: Sequence[Any], fd: int, offset: int) -> None:
    """Take over a tensor's elements; several sources (integer buffers) must agree."""
    for start, stop in block_ranges(int(np.prod(job.shape, dtype=np.int64))):
        pieces = [s.read(start, stop) for s in sources]
        for i, other in enumerate(pieces[1:], 1):
            if not np.array_equal(pieces[0], other):
                names = [str(plan.references[job.inputs[k].model]) for k in (0, i)]
                raise ValueError(f"integer tensor {job.name!r} differs between {names[0]} and {names[1]}")
        raw = pieces[0]
        if job.dtype in RAW:
            values = decode(raw, sources[0].dtype)
            raw = raw if job.dtype == sources[0].dtype else encode(values, job.dtype)
            _check_finite(job.name, values, raw, job.dtype)
        write_exactly(fd, np.ascontiguousarray(raw), offset + start * raw.itemsize)
