"""The merge engine: streams tensors from shards to shards, never holds a model.

Every output tensor has its place in the output files before the first is computed, so threads and processes work in any
order and the bytes are the same. Work goes on in ``OUT.part``; a journal beside it names the finished tensors and their
checksums. A killed merge is taken up by the next run of the same recipe on the same inputs, which reads again what it
takes over; ``OUT`` appears whole, by one rename.
"""

import json
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from core import __version__
from core.hashing import content_key, sha256_file
from core.merge.compute import run_job
from core.merge.journal import Work
from core.merge.output import MANIFEST, model_card, write_companions
from core.merge.plan import Plan, available_memory, check_space, default_threads, make_plan
from core.merge.provenance import Digests, engine_digest, parameter_files
from core.merge.rates import record
from core.merge.recipe import Recipe
from core.progress import Progress, track
from core.state import StateError, write_bytes, write_json

MANIFEST_SCHEMA = 1


def merge(
    source: str | Path | dict | Recipe,
    out: str | Path,
    *,
    threads: int | None = None,
    part: tuple[int, int] | None = None,
    replace: bool = False,
) -> Path:
    """Merge as the recipe says into the folder ``out``.

    Args:
        source: recipe file, mapping or Recipe (see :func:`core.merge.plan.make_plan`).
        out: folder that will hold the model; must not exist, or be a finished merge of the same recipe and inputs.
        threads: workers; default the processors, at most 8. Any number gives the same bytes.
        part: ``(i, n)``: compute only the i-th of n shares (from 1) and leave the rest; several processes or machines
            on one file system may compute different shares at once. A run without ``part`` completes and finishes.
        replace: remove an ``out`` that is anything but this merge, every byte of it as it was written, and merge again;
            otherwise it is refused.

    Returns:
        ``out``, or the unfinished ``OUT.part`` for a share.

    Raises:
        ValueError: a recipe or inputs that cannot be merged, NaN or infinity, overflow, not enough disk or memory.
        StateError: ``out`` holds something else or was changed since, or another process works on it.
    """
    out = Path(out)
    plan = make_plan(source)
    key = plan_key(plan)
    _check_place(plan, out)
    if os.path.lexists(out):
        trouble = _trouble(out, key)
        if trouble is None:
            return out
        if not replace:
            raise StateError(f"{trouble}; choose another folder, or remove {out} to merge again")
        print(f"transferopt: {trouble}; merging again")
        shutil.rmtree(out) if out.is_dir() and not out.is_symlink() else out.unlink()
    check_space(plan, out)
    threads = affordable(plan, threads or default_threads())
    started = time.monotonic()
    with Work(plan, out, key, part) as work:
        todo = work.todo(part)
        total = sum(plan.jobs[i].read_bytes + plan.layout.slots[plan.jobs[i].name].bytes for i in todo)
        with track(f"merge {plan.recipe.merge_method}", total, "B") as bar:
            digests = None if part else Digests(plan, work)
            _run(plan, work, todo, threads, bar, digests)
        if work.changed:
            print(
                f"transferopt: {len(work.changed)} of {len(work.claims)} finished tensors in {work.folder} were not as "
                f"they were written ({work.changed[0]!r}); merged again"
            )
        if part:
            return work.folder
        _finish(plan, work, key, digests)
        os.replace(work.folder, out)
        work.forget()
    if not work.claims:
        record(plan.recipe.merge_method, plan.read_bytes + plan.write_bytes, time.monotonic() - started)
    return out


def affordable(plan: Plan, threads: int) -> int:
    """As many of ``threads`` as the free memory allows.

    Raises:
        ValueError: not even one tensor at a time fits.
    """
    free = available_memory()
    while threads > 1 and plan.memory(threads) > free:
        threads -= 1
    if plan.memory(threads) > free:
        raise ValueError(
            f"{plan.recipe.merge_method} needs about {plan.memory(1) / 2**20:.0f} MiB for its largest tensor, "
            f"{free / 2**20:.0f} MiB are available; close other programs or use a streaming operator"
        )
    return threads


def plan_key(plan: Plan) -> str:
    """What the result depends on: recipe, program, and size, time and place of the input files."""
    files = {}
    for ref, checkpoint, adapter in zip(plan.references, plan.checkpoints, plan.adapters):
        files |= {f"{ref}/{f.name}": f for f in [*checkpoint.files, *(adapter.files if adapter else [])]}
    files |= {str(f): f for f in parameter_files(plan)}
    stats = {name: f.stat() for name, f in files.items()}
    seen = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
    return content_key(plan.recipe, seen, engine_digest(), __version__)


def _check_place(plan: Plan, out: Path) -> None:
    """Refuse an output where a folder cannot be, or that is or holds one of the inputs."""
    for parent in out.parents:
        if parent.exists() and not parent.is_dir():
            raise ValueError(f"{out} cannot be made: {parent} is a file; choose another folder")
    part, whole = out.with_name(out.name + ".part"), out.resolve()
    if part.is_symlink() or (part.exists() and not part.is_dir()):
        raise StateError(
            f"{part} is where the unfinished merge goes, but is no folder; remove it or choose another name"
        )
    for ref, checkpoint in zip(plan.references, plan.checkpoints):
        place = checkpoint.path.resolve()
        if whole == place or whole in place.parents:
            raise StateError(f"{out} holds {ref}, which is to be merged; choose another folder")


def _trouble(out: Path, key: str) -> str | None:
    """Why ``out`` is not this very merge as it was written; None when it is."""
    path = out / MANIFEST
    try:
        written = json.loads(path.read_bytes())
        found, outputs = written["key"], dict(written["outputs"])
    except (FileNotFoundError, NotADirectoryError):
        found, outputs = None, {}
    except (ValueError, KeyError, TypeError):
        return f"{path} is damaged"
    if found != key:
        return f"{out} exists and is not the result of this recipe on these inputs"
    for name, digest in outputs.items():
        if not (out / name).is_file():
            return f"{out / name} is missing"
        if sha256_file(out / name) != digest:
            return f"{out / name} is not as the merge wrote it (sha256 differs)"
    return None


def _run(plan: Plan, work: Work, todo: Sequence[int], threads: int, bar: Progress, digests: Any) -> None:
    """Let ``threads`` workers take the jobs; the calling thread hashes and journals. The first error stops all."""
    queue = deque(todo)
    errors: list[BaseException] = []
    lock = threading.Lock()

    def worker() -> None:
        while not errors:
            with lock:
                if not queue:
                    break
                job = plan.jobs[queue.popleft()]
            try:
                if not work.holds(job.name):
                    run_job(plan, job, work.files)
                    work.written(job.name)
                with lock:
                    bar.advance(job.read_bytes + plan.layout.slots[job.name].bytes)
            except BaseException as error:  # handed to the calling thread, which raises it
                errors.append(error)
        if digests is not None:
            digests.hash_inputs(errors)

    workers = [threading.Thread(target=worker, daemon=True) for _ in range(max(1, threads))]
    for w in workers:
        w.start()
    try:
        while any(w.is_alive() for w in workers):
            if errors or not ((digests is not None and digests.advance()) or work.vouch_next()):
                time.sleep(0.01)
    except BaseException as error:
        errors.append(error)
    for w in workers:
        w.join()
    if errors:
        with suppress(OSError):  # a full disk takes no lines; tensors without one are merged again
            work.vouch_rest()
        raise errors[0]
    if digests is None:
        work.vouch_rest()


def _finish(plan: Plan, work: Work, key: str, digests: Any) -> None:
    """Write everything beside the weights; the manifest last."""
    donor = plan.checkpoints[0].path
    write_companions(work.folder, plan.config, donor, plan.layout.index(), plan.vocabulary, plan.template)
    names = [str(r) for r in plan.references]
    title = plan.recipe.name or f"{plan.recipe.merge_method} merge"
    card = model_card(plan.recipe, title, names, plan.contract.source, __version__)
    write_bytes(work.folder / "README.md", card.encode())
    write_json(work.folder / MANIFEST, manifest(plan, work.folder, key, digests))


def manifest(plan: Plan, folder: Path, key: str, digests: Any) -> dict[str, Any]:
    """What the result is and what it was made from; the same bytes for the same merge."""
    return {
        "schema": MANIFEST_SCHEMA,
        "key": key,
        "recipe": plan.recipe.written(),
        "method": plan.recipe.merge_method,
        "seed": plan.recipe.seed,
        "compat": plan.recipe.compat,
        "tensors": len(plan.jobs),
        "inputs": digests.inputs(),
        "outputs": digests.outputs(folder),
        "versions": {"transferopt": __version__, "numpy": np.__version__, "engine": engine_digest()},
        "notes": list(plan.notes),
    }
