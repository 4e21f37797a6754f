"""From a recipe and the headers of its models to a list of jobs, checked before anything is read.

Nothing here imports torch or reads a tensor: :func:`make_plan` takes well under a second, and everything that can be
refused is refused here (names, shapes, formats, parameters, space on disk, memory).
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.merge.jobs import Builder, Job, find_model
from core.merge.operators import BLOCK, OPERATORS, Contract, contract
from core.merge.output import known_template
from core.merge.rates import expected_seconds
from core.merge.recipe import ModelRef, Recipe, load_recipe
from core.merge.tensors import Checkpoint, Layout, lay_out, open_checkpoint
from core.registry import nearest

SPARE_DISK = 64 << 20


@dataclass(frozen=True)
class Plan:
    """All jobs of a merge and where their results go."""

    recipe: Recipe
    contract: Contract
    references: tuple[ModelRef, ...]
    checkpoints: tuple[Checkpoint, ...]
    adapters: tuple[Any, ...]
    jobs: tuple[Job, ...]
    layout: Layout
    config: Mapping[str, Any]
    vocabulary: Any = None
    template: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def read_bytes(self) -> int:
        """Bytes of the inputs, each counted once."""
        seen = {(i.info.file, i.info.offset): i.info.bytes for job in self.jobs for i in job.everything}
        return sum(seen.values())

    @property
    def write_bytes(self) -> int:
        """Bytes of the output shards."""
        return sum(self.layout.sizes)

    def memory(self, threads: int) -> int:
        """Estimated peak of resident memory in bytes: the process, and for each thread its largest tensor's needs."""
        largest = sorted((_job_memory(job, self.contract, self.adapters) for job in self.jobs), reverse=True)
        return (120 << 20) + sum(largest[:threads])


def _job_memory(job: Job, c: Contract, adapters: Sequence[Any]) -> int:
    """Blocks in flight; selections: candidates around a rank and one bit an element and model, or a band of them;
    whole-tensor operators: float64 copies."""
    n = len(job.everything)
    size = job.inputs[0].info.size
    if c.kind == "whole":
        return size * 8 * (2 * n + 3)
    blocks = (n + 2) * BLOCK * 8 * 3
    if c.kind != "selection":
        return blocks
    candidates = min(size, 5 * size // int(max(131072, size / 512) ** 0.5)) * 4
    return blocks + n * candidates + min(size // 8 * n, 128 << 20)


def make_plan(source: str | Path | Mapping[str, Any] | Recipe, out: str | Path | None = None) -> Plan:
    """Read the recipe and the headers, check everything, lay out the result.

    Args:
        source: recipe file, mapping or :class:`Recipe`. Relative model paths count from the file's folder, then from
            the working folder.
        out: where the result will go, to check the free space.

    Raises:
        ValueError: anything that cannot be merged; the message names the key, model or tensor and the remedy.
        FileNotFoundError: a model that is nowhere.
    """
    recipe = source if isinstance(source, Recipe) else load_recipe(source)
    c = contract(recipe.merge_method)
    if recipe.compat:
        from core.merge.compat import check_supported

        check_supported(recipe.merge_method)
    notes = list(_check_parameter_names(recipe, c))
    folder = Path(source).parent if isinstance(source, (str, Path)) else Path()
    references = tuple(recipe.references())
    checkpoints = tuple(open_checkpoint(find_model(ref.path, folder, ref.revision)) for ref in references)
    adapters = tuple(_open_adapter(ref, c, folder) for ref, c in zip(references, checkpoints))
    builder = Builder(recipe, c, references, checkpoints, adapters, folder)
    jobs = tuple(builder.jobs())
    if not jobs:
        raise ValueError("the recipe selects no tensor")
    if c.covers is not None:
        c.covers([([i.name for i in job.inputs], job.per_model) for job in jobs if not job.copy])
    layout = lay_out([(j.name, j.dtype, j.shape) for j in jobs], recipe.out_shard_size)
    plan = Plan(
        recipe, c, references, checkpoints, adapters, jobs, layout, builder.config(jobs), builder.vocabulary,
        known_template(recipe, checkpoints), (*notes, *builder.notes),
    )  # fmt: skip
    if out is not None:
        check_space(plan, Path(out))
    return plan


def _open_adapter(ref: ModelRef, checkpoint: Checkpoint, folder: Path) -> Any:
    if ref.lora is None:
        return None
    from core.merge.lora import open_adapter

    return open_adapter(find_model(ref.lora, folder)).bind(checkpoint)


def _check_parameter_names(recipe: Recipe, c: Contract) -> Iterator[str]:
    """Refuse parameters that no operator has; note those that this one does not use."""
    known = {name for entry in OPERATORS for name in entry.facts.get("parameters", {})}
    for where, name in recipe.parameter_names():
        if name in c.parameters:
            continue
        if name not in known:
            allowed = ", ".join(c.parameters) or "none"
            raise ValueError(
                f"unknown parameter {name!r} in {where}{nearest(name, [*c.parameters, *known])} "
                f"{recipe.merge_method} takes: {allowed}"
            )
        yield f"{where}: {recipe.merge_method} does not use {name!r}; ignored"


def check_space(plan: Plan, out: Path) -> None:
    """Refuse when the output does not fit on its disk.

    Raises:
        ValueError: with the bytes needed and free.
    """
    parent = out.absolute().parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    part = out.with_name(out.name + ".part")
    written = sum(f.stat().st_blocks * 512 for f in part.glob("*.safetensors")) if part.is_dir() else 0
    need = plan.write_bytes + SPARE_DISK - written
    if need > free:
        raise ValueError(
            f"not enough disk: {out} needs {need / 1e9:.2f} GB, {parent} has {free / 1e9:.2f} GB free; "
            "free some space or choose another folder"
        )


def default_threads() -> int:
    """Processors this process may use, at most 8."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def describe(plan: Plan, threads: int, out: Path | None = None) -> str:
    """What will be read and written, the memory, the time, and whether it fits, as lines."""
    memory = plan.memory(threads)
    seconds = expected_seconds(plan.recipe.merge_method, plan.contract.kind, plan.read_bytes + plan.write_bytes)
    available = available_memory()
    lines = [
        f"method   {plan.recipe.merge_method} ({plan.contract.kind}), {len(plan.jobs)} tensors",
        *[f"reads    {ref}  {sum(t.bytes for t in c.tensors.values()) / 1e9:.3f} GB in {len(c.files)} files"
          for ref, c in zip(plan.references, plan.checkpoints)],
        f"         {plan.read_bytes / 1e9:.3f} GB in all",
        f"writes   {plan.write_bytes / 1e9:.3f} GB in {len(plan.layout.files)} files"
        + (f" to {out}" if out else ""),
        f"memory   about {memory / 2**20:.0f} MiB with {threads} threads, {available / 2**20:.0f} MiB available",
        f"time     about {seconds:.1f} s at the rate of earlier merges here (cold disks: the disk's rate)",
    ]  # fmt: skip
    if out is not None:
        parent = next(p for p in [out.absolute().parent, *out.absolute().parents] if p.exists())
        free = shutil.disk_usage(parent).free
        lines.append(f"disk     {free / 1e9:.2f} GB free")
    lines.append("fits     yes" if memory <= available else "fits     no: not enough memory; use fewer threads")
    return "\n".join([*lines, *[f"note     {n}" for n in plan.notes]])


def available_memory() -> int:
    """Bytes that can be used without swapping."""
    if os.path.exists("/proc/meminfo"):
        with open("/proc/meminfo") as handle:
            for line in handle:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    import psutil

    return psutil.virtual_memory().available
