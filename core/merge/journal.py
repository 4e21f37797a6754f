"""Who works on a merge and what is finished: ``OUT.part``, its journals and shares.

A journal holds the key of the merge, then a line for every finished tensor with the checksum of its bytes. A line is a
claim: the next run reads the tensor and merges it again where the checksum differs, so a damaged or lost shard, or a
line that reached the disk before its data when the power went, costs time and never a wrong byte. About every
``SYNC_S`` seconds the data, then the journal, are put on the disk; that bounds what a power cut takes.
"""

import fcntl
import json
import os
import shutil
import time
from collections import deque
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import xxhash

from core.merge.plan import Plan
from core.merge.tensors import ShardFiles, Slot, read_exactly
from core.state import StateError

SYNC_S = 60.0
LAG_S = 2.0  # a written tensor that waits longer for its turn in its file is read back for its checksum
PIECE = 1 << 20
CHECKSUM = "xxh3_128"


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


class Work:
    """``OUT.part`` and its journals, held by this process.

    Attributes:
        done: tensors that are in their place: written by this run, or read and found as their journal says.
        changed: tensors that a journal names but that were not as it says.
    """

    def __init__(self, plan: Plan, out: Path, key: str, part: tuple[int, int] | None):
        self.plan, self.key, self.folder = plan, key, out.with_name(out.name + ".part")
        self.prefix = f"{out.name}.part.journal"
        suffix = f".{part[0]}-of-{part[1]}" if part else ""
        self.path = out.with_name(self.prefix + suffix)
        self.alone = part is None
        self.claims: dict[str, str] = {}
        self.done: set[str] = set()
        self.changed: list[str] = []
        self._vouched: set[str] = set()
        self._written: deque[tuple[float, str]] = deque()

    def __enter__(self) -> "Work":
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
        return sorted(p for p in self.folder.parent.iterdir() if p.name.startswith(self.prefix))

    def _take_up(self) -> None:
        """Find what earlier runs claim to have finished; other recipes' or inputs' leftovers are removed."""
        found = {path: _read_journal(path) for path in self.journals()}
        foreign = [path for path, (key, _) in found.items() if key not in (None, self.key)]
        if foreign and not self.alone:
            raise StateError(
                f"{self.folder} belongs to another recipe, other inputs or another version of this program; remove it "
                f"and {foreign[0]}"
            )
        known = any(key == self.key for key, _ in found.values())
        if self.alone and (foreign or not known or not self.folder.exists()):
            self._start_anew([path for path in found if path != self.path])
            found = {}
        if self.folder.exists():
            for key, claims in found.values():
                self.claims |= claims if key == self.key else {}
            if self.alone:
                self._remove_others()
        if found.get(self.path, (None, {}))[0] != self.key:
            self._journal.truncate(0)
            self._write({"key": self.key})
        else:
            os.write(self._journal.fileno(), b"\n")  # ends a line that a kill may have torn

    def _start_anew(self, journals: list[Path]) -> None:
        if self.folder.exists():
            print(
                f"transferopt: {self.folder} was left by another recipe, other inputs or another version of this "
                "program; starting anew"
            )
            shutil.rmtree(self.folder)
        for path in journals:
            path.unlink()

    def _remove_others(self) -> None:
        """Remove what is no shard: an interrupted end leaves unfinished companions, which would join the result."""
        for path in self.folder.iterdir():
            if path.name not in self.plan.layout.files:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def _write(self, entry: dict) -> None:
        line = memoryview((json.dumps(entry) + "\n").encode())
        while line:
            line = line[os.write(self._journal.fileno(), line) :]

    def todo(self, part: tuple[int, int] | None) -> list[int]:
        """Numbers of the jobs of this run."""
        return share(self.plan, part) if part else list(range(len(self.plan.jobs)))

    def holds(self, name: str) -> bool:
        """Whether an earlier run finished this tensor and its bytes still are what the journal says. Thread-safe."""
        if name not in self.claims:
            return False
        if self._checksum(name) != self.claims[name]:
            self.changed.append(name)
            return False
        self._vouched.add(name)
        self.done.add(name)
        return True

    def written(self, name: str) -> None:
        """Note that a tensor is in its place. Thread-safe; it is journalled by :meth:`vouch`."""
        self.done.add(name)
        self._written.append((time.monotonic(), name))

    def vouch(self, name: str, checksum: str) -> None:
        """Journal a written tensor with its checksum; now and then put everything on the disk. For one thread."""
        if name in self._vouched:
            return
        self._vouched.add(name)
        self._write({"done": name, CHECKSUM: checksum})
        if time.monotonic() - self._synced > SYNC_S:
            self._synced = time.monotonic()
            self.files.sync()
            os.fsync(self._journal.fileno())

    def vouch_next(self, lag_s: float = LAG_S) -> bool:
        """Read back a tensor written ``lag_s`` seconds ago and not journalled since, and journal it; False if none."""
        while self._written and time.monotonic() - self._written[0][0] >= lag_s:
            name = self._written.popleft()[1]
            if name not in self._vouched:
                self.vouch(name, self._checksum(name))
                return True
        return False

    def vouch_rest(self) -> None:
        """Journal all that is written."""
        while self.vouch_next(lag_s=0):
            pass

    def _checksum(self, name: str) -> str:
        slot = self.plan.layout.slots[name]
        return checksum(self.files.fds[slot.shard], slot)

    def forget(self) -> None:
        """Remove the journals of a finished merge."""
        for path in self.journals():
            path.unlink()


def new_checksum() -> Any:
    """A running checksum (``update``, ``hexdigest``): XXH3, tens of times as fast as sha256, against accidents only."""
    return xxhash.xxh3_128()


def checksum(fd: int, slot: Slot) -> str:
    """Checksum of the bytes that are in a tensor's place."""
    found, buffer = new_checksum(), memoryview(bytearray(min(slot.bytes, PIECE)))
    for start in range(0, slot.bytes, PIECE):
        piece = buffer[: min(PIECE, slot.bytes - start)]
        read_exactly(fd, piece, slot.offset + start)
        found.update(piece)
    return found.hexdigest()


def _hold(handle: Any, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise StateError(f"{folder} is being written by another process ({handle.name}); wait for it") from None


def _read_journal(path: Path) -> tuple[str | None, dict[str, str]]:
    """Key of a journal and the checksums of the tensors it calls finished; torn lines are left out."""
    key, claims = None, {}
    for line in path.read_bytes().split(b"\n"):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if not isinstance(entry, dict):
            continue
        if "key" in entry:
            key, claims = entry["key"], {}
        elif "done" in entry and CHECKSUM in entry:
            claims[entry["done"]] = entry[CHECKSUM]
    return key, claims
