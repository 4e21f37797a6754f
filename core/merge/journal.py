"""Who works on a merge and what is finished: ``OUT.part``, its journals and shares.

A journal holds the key of the merge, then a line for every finished tensor. Entries count as long as the machine has
not rebooted (a killed process loses nothing it handed to the system); after a reboot those count that were put on the
disk, which happens about every ``SYNC_S`` seconds.
"""

import fcntl
import json
import os
import shutil
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from core.merge.plan import Plan
from core.merge.tensors import ShardFiles
from core.state import StateError

SYNC_S = 60.0


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
    """``OUT.part`` and its journals, held by this process."""

    def __init__(self, plan: Plan, out: Path, key: str, part: tuple[int, int] | None):
        self.plan, self.key, self.folder = plan, key, out.with_name(out.name + ".part")
        self.prefix = f"{out.name}.part.journal"
        suffix = f".{part[0]}-of-{part[1]}" if part else ""
        self.path = out.with_name(self.prefix + suffix)
        self.alone = part is None
        self.done: set[str] = set()
        self._lock = threading.Lock()

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
