"""sha256 of everything that went in and came out, computed beside the merge.

Input files keep their hash for as long as path, size and times stay the same, so an unchanged model is hashed once.
Output files are hashed by the main thread behind the workers, as their bytes become complete; the journal's checksums
of the tensors are taken from the same pieces while they are in memory.
"""

import hashlib
import threading
from functools import cache
from pathlib import Path
from typing import Any

from core.hashing import content_key, sha256_file
from core.merge.journal import Work, new_checksum
from core.merge.plan import Plan
from core.merge.tensors import read_exactly
from core.plugins import plugin_digest
from core.state import home, write_bytes

STEP = 1 << 20  # stays in a second-level cache from the read to the second hash


@cache
def engine_digest() -> str:
    """sha256 over the engine's own sources (this package) and third-party ones: the version for keys and manifests."""
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.py"), *folder.glob("operators/*.py"), *folder.glob("*.c")]):
        digest.update(path.name.encode() + path.read_bytes())
    digest.update(plugin_digest().encode())
    return digest.hexdigest()


class Digests:
    """Hashes of a merge's inputs and outputs. Thread-safe where workers call it."""

    def __init__(self, plan: Plan, work: Work):
        self._plan, self._work = plan, work
        self._paths = [_input_files(ref, c) for ref, c in zip(plan.references, plan.checkpoints)]
        self._adapters = [[] if a is None else list(a.files) for a in plan.adapters]
        self._known: dict[Path, str] = {}
        self._queue = [p for paths in [*self._paths, *self._adapters] for p in paths]
        self._queue += parameter_files(plan)
        self._lock = threading.Lock()
        self._slots = [[] for _ in plan.layout.files]
        for slot in plan.layout.slots.values():
            self._slots[slot.shard].append(slot)
        self._running = [hashlib.sha256() for _ in plan.layout.files]
        self._at = [0] * len(plan.layout.files)
        self._next = [0] * len(plan.layout.files)  # slot that is not complete yet
        self._current = [0] * len(plan.layout.files)  # slot whose bytes are hashed next
        self._buffer = memoryview(bytearray(STEP))
        self._sums = [new_checksum() for _ in plan.layout.files]

    def hash_inputs(self, errors: list) -> None:
        """Hash input files until none is left (several workers may call this)."""
        while not errors:
            with self._lock:
                if not self._queue:
                    return
                path = self._queue.pop(0)
            digest = file_digest(path)
            with self._lock:
                self._known[path] = digest

    def advance(self) -> bool:
        """Hash some more of the output's complete beginning; False when there is nothing to do now."""
        for shard in range(len(self._at)):
            end = self._complete(shard)
            if end > self._at[shard]:
                self._hash(shard, min(end, self._at[shard] + STEP))
                return True
        return False

    def _complete(self, shard: int) -> int:
        slots = self._slots[shard]
        while self._next[shard] < len(slots) and slots[self._next[shard]].name in self._work.done:
            self._next[shard] += 1
        if self._next[shard] == len(slots):
            return self._plan.layout.sizes[shard]
        return slots[self._next[shard]].offset

    def _hash(self, shard: int, end: int) -> None:
        start = self._at[shard]
        data = self._buffer[: end - start]
        read_exactly(self._work.files.fds[shard], data, start)
        self._checksums(shard, start, data)
        self._running[shard].update(data)
        self._at[shard] = end

    def _checksums(self, shard: int, start: int, data: memoryview) -> None:
        """Hand the checksums of the tensors that end in ``data`` (the shard's bytes from ``start``) to the journal."""
        slots, stop = self._slots[shard], start + len(data)
        while self._current[shard] < len(slots):
            slot = slots[self._current[shard]]
            first, last = slot.offset, slot.offset + slot.bytes
            if max(first, start) < min(last, stop):
                self._sums[shard].update(data[max(first - start, 0) : last - start])
            if last > stop or slot.name not in self._work.done:  # not done: an empty tensor behind the complete ones
                return
            self._work.vouch(slot.name, self._sums[shard].hexdigest())
            self._sums[shard] = new_checksum()
            self._current[shard] += 1

    def inputs(self) -> dict[str, Any]:
        """Model -> file name -> sha256; an adapter's files under ``adapter/``."""
        found: dict[str, Any] = {}
        for ref, paths, adapter in zip(self._plan.references, self._paths, self._adapters):
            found[str(ref)] = {p.name: self._known[p] for p in paths}
            found[str(ref)] |= {f"adapter/{p.name}": self._known[p] for p in adapter}
        for path in parameter_files(self._plan):
            found[str(path)] = {path.name: self._known[path]}
        return found

    def outputs(self, folder: Path) -> dict[str, str]:
        """File -> sha256 of everything in the folder."""
        while self.advance():
            pass
        shards = dict(zip(self._plan.layout.files, [d.hexdigest() for d in self._running]))
        others = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in shards]
        return shards | {p.relative_to(folder).as_posix(): sha256_file(p) for p in others if p.name != "merge.json"}


def _input_files(ref: Any, checkpoint: Any) -> list[Path]:
    config = checkpoint.path / "config.json"
    return [*checkpoint.files, *([config] if config.is_file() else [])]


def parameter_files(plan: Plan) -> list[Path]:
    """Files that parameters name (statistics)."""
    names = [n for n, p in plan.contract.parameters.items() if p.file]
    values = {str(v[n]) for job in plan.jobs for v in (job.shared, *job.per_model) for n in names if v.get(n)}
    return [Path(v) for v in sorted(values)] if names else []


def file_digest(path: Path) -> str:
    """sha256 of a file, remembered under its path, size, inode and times."""
    stat = path.stat()
    key = content_key(str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    memo = home() / "hashes" / key[:2] / key
    if memo.is_file():
        text = memo.read_text().strip()
        if len(text) == 64:
            return text
    digest = sha256_file(path)
    write_bytes(memo, (digest + "\n").encode())
    return digest
