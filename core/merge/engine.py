"""The merge engine: streams tensors from shards to shards, never holds a model.

Every output tensor has its place in the output files before the first is computed, so threads and processes work in any
order and the bytes are the same. Work goes on in ``OUT.part``; a journal beside it names the finished tensors. A killed
merge is taken up by the next run of the same recipe on the same inputs; ``OUT`` appears whole, by one rename.

Journal entries count as long as the machine has not rebooted (a killed process loses nothing it handed to the system);
after a reboot those count that were put on the disk, which happens about every ``SYNC_S`` seconds.
"""

import fcntl
import json
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from core import __version__
from core.hashing import content_key
from core.merge import kernels
from core.merge.dtypes import encode
from core.merge.operators import OPERATORS, Group, block_ranges
from core.merge.output import MANIFEST, model_card, write_companions
from core.merge.plan import Input, Job, Plan, available_memory, check_space, default_threads, make_plan
from core.merge.provenance import Digests, engine_digest, parameter_files
from core.merge.rates import record
from core.merge.recipe import Recipe
from core.merge.tensors import FileSource, RowSource, ShardFiles, close, write_exactly
from core.progress import Progress, track
from core.state import StateError, write_bytes, write_json

SYNC_S = 60.0
MANIFEST_SCHEMA = 1


def merge(
    source: str | Path | dict | Recipe,
    out: str | Path,
    *,
    threads: int | None = None,
    part: tuple[int, int] | None = None,
) -> Path:
    """Merge as the recipe says into the folder ``out``.

    Args:
        source: recipe file, mapping or Recipe (see :func:`core.merge.plan.make_plan`).
        out: folder that will hold the model; must not exist, or be a finished merge of the same recipe and inputs.
        threads: workers; default the processors, at most 8. Any number gives the same bytes.
        part: ``(i, n)``: compute only the i-th of n shares (from 1) and leave the rest; several processes or machines
            on one file system may compute different shares at once. A run without ``part`` completes and finishes.

    Returns:
        ``out``, or the unfinished ``OUT.part`` for a share.

    Raises:
        ValueError: a recipe or inputs that cannot be merged, NaN or infinity, overflow, not enough disk or memory.
        StateError: ``out`` holds something else, or another process works on it.
    """
    out = Path(out)
    plan = make_plan(source)
    key = plan_key(plan)
    if out.exists():
        return _finished(out, key)
    check_space(plan, out)
    threads = affordable(plan, threads or default_threads())
    started = time.monotonic()
    with _Work(plan, out, key, part) as work:
        todo = work.todo(part)
        total = sum(plan.jobs[i].read_bytes + plan.layout.slots[plan.jobs[i].name].bytes for i in todo)
        with track(f"merge {plan.recipe.merge_method}", total, "B") as bar:
            digests = None if part else Digests(plan, work.files, work.done)
            _run(plan, work, todo, threads, bar, digests)
        if part:
            return work.folder
        _finish(plan, work, key, digests)
        os.replace(work.folder, out)
        work.forget()
    if len(todo) == len(plan.jobs):
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


def share(plan: Plan, part: tuple[int, int]) -> list[int]:
    """Numbers of the jobs of the i-th of n shares: tensors dealt out by size, the largest first, to the least loaded.

    Raises:
        ValueError: i is not in 1..n.
    """
    i, n = part
    if not 1 <= i <= n:
        raise ValueError(f"part {i}/{n}: the first number must be between 1 and the second")
    load, shares = [0] * n, [[] for _ in range(n)]
    for job in sorted(range(len(plan.jobs)), key=lambda j: (-plan.jobs[j].read_bytes, j)):
        least = load.index(min(load))
        load[least] += plan.jobs[job].read_bytes
        shares[least].append(job)
    return sorted(shares[i - 1])


class _Work:
    """``OUT.part`` and its journals, held by this process."""

    def __init__(self, plan: Plan, out: Path, key: str, part: tuple[int, int] | None):
        self.plan, self.key, self.folder = plan, key, out.with_name(out.name + ".part")
        self.prefix = f"{out.name}.part.journal"
        suffix = f".{part[0]}-of-{part[1]}" if part else ""
        self.path = out.with_name(self.prefix + suffix)
        self.alone = part is None
        self.done: set[str] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> "_Work":
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            self._journal = held.enter_context(open(self.path, "a+b"))
            _hold(self._journal, self.folder)
            for other in self.journals():
                if self.alone and other != self.path:
                    _hold(held.enter_context(open(other, "rb")), self.folder)
            self._take_up()
            self.files = ShardFiles(self.folder, self.plan.layout)
            held.callback(self.files.close)
            self._held = held.pop_all()
        self._synced = time.monotonic()
        return self

    def __exit__(self, *error: Any) -> None:
        self._held.close()

    def journals(self) -> list[Path]:
        """All journals of this output."""
        return sorted(self.folder.parent.glob(self.prefix + "*"))

    def _take_up(self) -> None:
        """Find what earlier runs finished; other recipes' or inputs' leftovers are removed."""
        found = {path: _read_journal(path) for path in self.journals()}
        stale = [path for path, (key, _) in found.items() if key not in (None, self.key)]
        if stale and not self.alone:
            raise StateError(f"{self.folder} belongs to another recipe or other inputs; remove it and {stale[0]}")
        if stale or (self.alone and not self.folder.exists()):
            shutil.rmtree(self.folder, ignore_errors=True)
            for path in found:
                if path != self.path:
                    path.unlink()
            self._journal.truncate(0)
            found = {}
        if self.folder.exists():
            self.done = set().union(*[names for key, names in found.values() if key == self.key], set())
        if found.get(self.path, (None, None))[0] != self.key:
            self._journal.truncate(0)
            self._write({"key": self.key, "boot": boot_id()})

    def _write(self, entry: dict) -> None:
        os.write(self._journal.fileno(), (json.dumps(entry) + "\n").encode())

    def finished(self, name: str) -> None:
        """Note that a tensor is written; now and then put everything on the disk."""
        with self._lock:
            self._write({"done": name})
            self.done.add(name)
            due = time.monotonic() - self._synced > SYNC_S
            if due:
                self._synced = time.monotonic()
        if due:
            with self._lock:
                known = sorted(self.done)
            self.files.sync()
            os.fsync(self._journal.fileno())
            with self._lock:
                self._write({"synced": known})

    def todo(self, part: tuple[int, int] | None) -> list[int]:
        """Numbers of the jobs that remain for this run."""
        mine = share(self.plan, part) if part else range(len(self.plan.jobs))
        return [i for i in mine if self.plan.jobs[i].name not in self.done]

    def forget(self) -> None:
        """Remove the journals of a finished merge."""
        for path in self.journals():
            path.unlink()


def boot_id() -> str:
    """Identifies the running system; empty where it cannot be told."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _hold(handle: Any, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise StateError(f"{folder} is being written by another process ({handle.name}); wait for it") from None


def _read_journal(path: Path) -> tuple[str | None, set[str]]:
    """Key and finished tensors of a journal; a torn last line is left out."""
    key, boot, done, synced = None, None, set(), set()
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if "key" in entry:
            key, boot, done, synced = entry["key"], entry["boot"], set(), set()
        elif "done" in entry:
            done.add(entry["done"])
        elif "synced" in entry:
            synced.update(entry["synced"])
    return key, (done if boot and boot == boot_id() else synced)


def _finished(out: Path, key: str) -> Path:
    """``out`` when it is this very merge."""
    manifest = out / MANIFEST
    if manifest.is_file():
        try:
            if json.loads(manifest.read_text())["key"] == key:
                return out
        except (ValueError, KeyError):
            raise StateError(f"{manifest} is damaged; remove {out} to merge again") from None
    raise StateError(f"{out} exists and is not the result of this recipe on these inputs; remove it or choose another")


def _run(plan: Plan, work: _Work, todo: Sequence[int], threads: int, bar: Progress, digests: Any) -> None:
    """Let ``threads`` workers take the jobs; the calling thread hashes what is complete. The first error stops all."""
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
                run_job(plan, job, work.files)
                work.finished(job.name)
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
            if digests is None or errors or not digests.advance():
                time.sleep(0.01)
    except BaseException as error:
        errors.append(error)
    for w in workers:
        w.join()
    if errors:
        raise errors[0]


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
    result = OPERATORS.get(group.method)(group)
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
        import ctypes

        ctypes.memmove(place.data + at, raw.ctypes.data, raw.nbytes)
    else:
        write_exactly(place.fd, raw, at)


def _copy(plan: Plan, job: Job, sources: Sequence[Any], fd: int, offset: int) -> None:
    """Take over a tensor's elements; several sources (integer buffers) must agree."""
    from core.merge.dtypes import RAW, decode

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


def _finish(plan: Plan, work: _Work, key: str, digests: Any) -> None:
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
        "recipe": plan.recipe.model_dump(mode="json", exclude_defaults=True),
        "method": plan.recipe.merge_method,
        "seed": plan.recipe.seed,
        "compat": plan.recipe.compat,
        "tensors": len(plan.jobs),
        "inputs": digests.inputs(),
        "outputs": digests.outputs(folder),
        "versions": {"transferopt": __version__, "numpy": np.__version__, "engine": engine_digest()},
        "notes": list(plan.notes),
    }
