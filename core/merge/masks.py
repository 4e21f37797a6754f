"""Per-task masks beside one merged vector: EMR-merging and TALL masks, one bit a weight.

A single merged model loses what only one task needs; a mask (and for EMR a factor) per task selects its part again:

    task model = base + rescale_i · (mask_i ⊙ unified)

:func:`write_masks` streams a recipe of operator ``emr`` or ``consensus`` once and writes one file; and
:func:`write_task_model` makes a task's model from base and that file, tensor by tensor. A task costs 1/16 of a 16-bit
model.
"""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from core.merge.compute import open_group
from core.merge.dtypes import decode, encode
from core.merge.operators import Group, block_ranges
from core.merge.operators.consensus import tall_mask
from core.merge.operators.emr import emr_delta, emr_mask
from core.merge.plan import make_plan
from core.merge.recipe import Recipe
from core.merge.tensors import (
    FileSource,
    ShardFiles,
    Slot,
    TensorInfo,
    lay_out,
    open_checkpoint,
    read_header,
    write_exactly,
)  # fmt: skip
from core.progress import progress
from core.state import write_json

METHODS = ("emr", "consensus")
WEIGHTS, FACTS = "masks.safetensors", "masks.json"
SCHEMA = 1
ONE_FILE = 1 << 62


@dataclass(frozen=True)
class Masks:
    """A folder of masks: ``tasks`` in the recipe's order and the factor of each task's masked vector."""

    path: Path
    method: str
    tasks: tuple[str, ...]
    rescale: tuple[float, ...]

    def mask(self, name: str, task: int, size: int) -> np.ndarray:
        """A task's mask of a tensor, bool ``(size,)``."""
        packed = self._read(f"{name}.{task}", 0, -(-size // 8))
        return np.unpackbits(packed.astype(np.uint8), count=size, bitorder="little").astype(bool)

    def unified(self, name: str, start: int, stop: int) -> np.ndarray:
        """Elements of the unified delta, float64."""
        return self._read(name, start, stop)

    def covers(self, name: str) -> bool:
        """Whether the tensor has a unified delta."""
        return f"{name}.0" in self._header

    @cached_property
    def _header(self) -> dict[str, TensorInfo]:
        return read_header(self.path / WEIGHTS)

    def _read(self, name: str, start: int, stop: int) -> np.ndarray:
        with closing(FileSource(self._header[name])) as source:
            return decode(source.read(start, stop), source.dtype)


def write_masks(source: str | Path | Mapping[str, Any] | Recipe, out: str | Path) -> Masks:
    """Write unified delta (float32), masks and factors of an ``emr`` or ``consensus`` recipe into the folder ``out``.

    EMR (Huang et al. 2024, Eq. 3-4): ``mask_i = [delta_i · unified > 0]``,
    ``rescale_i = sum |delta_i| / sum |mask_i ⊙ unified|`` over the whole model. TALL masks (Wang et al. 2024, Eq. 4):
    ``mask_i = [|delta_i| > tall_lambda |unified - delta_i|]`` with the summed deltas as unified vector, no factor.
    Weights of the recipe scale the deltas as in the operator; its ``lambda`` is not used.

    Raises:
        ValueError: another operator, or ``out`` exists.
    """
    plan, out = make_plan(source), Path(out)
    method = plan.recipe.merge_method
    if method not in METHODS:
        raise ValueError(f"masks belong to {' and '.join(METHODS)}; the recipe says {method!r}")
    if out.exists():
        raise ValueError(f"{out} exists; choose another folder")
    jobs = [job for job in plan.jobs if not job.copy]
    tasks = tuple(str(plan.references[i.model]) for i in jobs[0].inputs)
    entries = []
    for job in jobs:
        packed = (-(-int(np.prod(job.shape, dtype=np.int64)) // 8),)
        entries += [(job.name, "F32", job.shape), *((f"{job.name}.{i}", "U8", packed) for i in range(len(tasks)))]
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    layout = lay_out(entries, ONE_FILE)
    sums = np.zeros((2, len(tasks)))
    with closing(ShardFiles(part, layout)) as files:
        for job in progress(jobs, f"masks {method}"):
            with ExitStack() as stack:
                sums += _write_tensor(files.fds[0], layout.slots, open_group(plan, job, stack), method)
        files.sync()
    os.replace(part / layout.files[0], part / WEIGHTS)
    rescale = sums[0] / np.where(sums[1] > 0, sums[1], 1.0) if method == "emr" else np.ones(len(tasks))
    write_json(part / FACTS, {"schema": SCHEMA, "method": method, "tasks": tasks, "rescale": rescale.tolist()})
    os.replace(part, out)
    return open_masks(out)


def open_masks(path: str | Path) -> Masks:
    """Open what :func:`write_masks` wrote.

    Raises:
        ValueError: not there, damaged or newer.
    """
    path = Path(path)
    try:
        facts = json.loads((path / FACTS).read_text())
        schema, method = facts["schema"], facts["method"]
        tasks, rescale = tuple(facts["tasks"]), tuple(map(float, facts["rescale"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no masks ({error}); write them with write_masks") from None
    if schema > SCHEMA:
        raise ValueError(f"{path} has schema {schema}, this program reads up to {SCHEMA}; update transferopt")
    return Masks(path, method, tasks, rescale)


def write_task_model(masks: Masks, base: str | Path, task: int, out: str | Path) -> Path:
    """Write ``base + rescale · (mask ⊙ unified)`` of one task as a model folder in the base's formats.

    Raises:
        ValueError: no such task, or ``out`` exists.
    """
    base, out = Path(base), Path(out)
    if not 0 <= task < len(masks.tasks):
        raise ValueError(f"task {task} is not among the {len(masks.tasks)} tasks of {masks.path}, counted from 0")
    if out.exists():
        raise ValueError(f"{out} exists; choose another folder")
    tensors = open_checkpoint(base).tensors
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    layout = lay_out([(n, t.dtype, t.shape) for n, t in tensors.items()], ONE_FILE)
    with closing(ShardFiles(part, layout)) as files:
        for name in progress(list(tensors), "task model"):
            offset = layout.slots[name].offset
            for raw in _task_tensor(masks, name, tensors[name], task):
                write_exactly(files.fds[0], raw, offset)
                offset += raw.nbytes
        files.sync()
    for path in base.iterdir() if base.is_dir() else ():
        if path.is_file() and ".safetensors" not in path.name:
            shutil.copyfile(path, part / path.name)
    os.replace(part, out)
    return out


def _write_tensor(fd: int, slots: Mapping[str, Slot], group: Group, method: str) -> np.ndarray:
    """Write one tensor's unified delta and masks; returns per task the sums of |delta| and |mask ⊙ unified|."""
    weights = group.values("weight")
    sums = np.zeros((2, len(weights)))
    for block in group.blocks():  # blocks start at multiples of eight
        deltas = [w * d for w, d in zip(weights, block.deltas, strict=True)]
        unified = emr_delta(deltas) if method == "emr" else sum(deltas)
        write_exactly(fd, encode(unified, "F32"), slots[group.name].offset + 4 * block.start)
        for i, delta in enumerate(deltas):
            mask = (
                emr_mask(delta, unified) if method == "emr" else tall_mask(delta, unified, group.shared["tall_lambda"])
            )
            packed = np.packbits(mask, bitorder="little")
            write_exactly(fd, packed, slots[f"{group.name}.{i}"].offset + block.start // 8)
            sums[:, i] += np.abs(delta).sum(), np.abs(unified[mask]).sum()
    return sums


def _task_tensor(masks: Masks, name: str, info: TensorInfo, task: int) -> Iterable[np.ndarray]:
    """Raw pieces of a task model's tensor, in order."""
    mask = masks.mask(name, task, info.size) if masks.covers(name) else None
    with closing(FileSource(info)) as source:
        for start, stop in block_ranges(info.size):
            raw = source.read(start, stop)
            if mask is not None:
                own = np.where(mask[start:stop], masks.unified(name, start, stop), 0.0)
                raw = encode(decode(raw, info.dtype) + masks.rescale[task] * own, info.dtype)
            yield np.ascontiguousarray(raw)
