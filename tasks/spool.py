"""What runs have to tell MLflow, in a spool on disk: a run never waits for, or fails with, its tracking server.

Every record is first appended to ``<spool>/<run>/ops.jsonl``; a thread has records delivered in order, and beside them
lies how far delivery came and where to. What MLflow can never take is kept in ``<spool>/<run>/refused.jsonl``, counted
and listed.
"""

import errno
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from core.state import StateError, exclusive, home, write_bytes, write_json

log = logging.getLogger(__name__)
RETRY_S = 2.0
GATHER_S = 0.2  # how long a record waits for others, to be delivered with them


class NotDelivered(Exception):
    """The tracking server did not take a record; it stays in the spool."""


def spool_root() -> Path:
    return home() / "spool"


class Spool:
    """Records of one flow run. ``append`` is cheap and never fails because of the server.

    Args:
        deliver: takes the folder of a spool (None: those of earlier runs) and whether no delivery of it was broken off
            before; it is called again later when it raises NotDelivered.
    """

    def __init__(self, run: str, deliver: Callable[[Path | None, bool], None]):
        self._deliver = deliver
        self.folder = spool_root() / run
        self.folder.mkdir(parents=True, exist_ok=True)
        self._held = ExitStack()  # while this process lives, no other delivers this spool
        self._held.enter_context(exclusive(self.folder / "run"))
        self._lock = threading.Lock()
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def append(self, op: str, run: str, **fields: Any) -> None:
        """Record one operation of the run with local id ``run``.

        Raises:
            OSError: the disk is full; the record is not there, those before it are.
        """
        line = (json.dumps({"op": op, "run": run, **fields}, sort_keys=True) + "\n").encode()
        with self._lock, open(self.folder / "ops.jsonl", "ab", buffering=0) as f:
            before = f.tell()
            try:
                if f.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder))
                os.fsync(f.fileno())
            except OSError:
                os.truncate(f.fileno(), before)  # half a record would swallow the next one
                raise
        self._wake.set()

    def close(self, wait_s: float = 60) -> bool:
        """Deliver what is left, waiting at most ``wait_s``; True when nothing is left."""
        self._closing.set()
        self._wake.set()
        self._thread.join(wait_s)
        self._held.close()
        return pending(self.folder) == 0

    def _work(self) -> None:
        quiet, earlier, fresh = False, True, True
        while True:
            if self._wake.wait(RETRY_S) and not earlier:  # the run itself is told at once
                self._closing.wait(GATHER_S)
            self._wake.clear()
            last = self._closing.is_set()
            try:
                self._deliver(self.folder, fresh)
                quiet, fresh = False, True
                if earlier:
                    self._deliver(None, False)
                earlier = False
            except (NotDelivered, StateError, OSError) as error:
                if not quiet:
                    log.warning("tracking is kept on disk for now: %s", error)
                quiet, fresh = True, False
            if last:
                return


def pending(folder: Path) -> int:
    """Number of records not yet delivered."""
    return sum(1 for _ in undelivered(folder))


def folders() -> list[Path]:
    """The spools of all runs, in the order in which they were begun."""
    root = spool_root()
    found = [f for f in root.iterdir() if (f / "ops.jsonl").exists()] if root.is_dir() else []
    return sorted(found, key=lambda f: ((f / "ops.jsonl").stat().st_ctime_ns, f.name))


def waiting_paths(folder: Path) -> Iterator[Path]:
    """Files and folders that undelivered and refused records of a run name: MLflow gets them from there."""
    records = [op for _, op in undelivered(folder)] + [entry["record"] for entry in refused(folder)]
    yield from (Path(op["path"]) for op in records if "path" in op)


def undelivered(folder: Path) -> Iterator[tuple[int, dict]]:
    """(byte position after the record, record) of each undelivered complete line."""
    path = folder / "ops.jsonl"
    if not path.exists():
        return
    position = _read(folder / "delivered.json", 0)
    with open(path, "rb") as f:
        f.seek(position)
        for line in f:
            if not line.endswith(b"\n"):  # torn by a kill; the next append continues after it
                break
            position += len(line)
            try:
                op = json.loads(line)
            except ValueError:
                continue
            yield position, op


def begun(folder: Path) -> dict[str, str]:
    """Local id -> MLflow run id of the runs whose start has been delivered from this spool."""
    return _read(folder / "runs.json", {})


def begun_at(folder: Path) -> str | None:
    """Address of the store that they were begun in; None before the first."""
    return _read(folder / "server.json", None)


def delivered_id(folder: Path, local_id: str) -> str | None:
    """MLflow run id of a run whose start has been delivered from this spool, or None."""
    return begun(folder).get(local_id)


def note_begun(folder: Path, ids: dict[str, str], address: str) -> None:
    """Keep which runs are there now, and where."""
    write_json(folder / "runs.json", ids)
    write_json(folder / "server.json", address)


def note_delivered(folder: Path, position: int) -> None:
    """Keep that all up to this byte position has been delivered."""
    write_json(folder / "delivered.json", position)


def _read(path: Path, default: Any) -> Any:
    return json.loads(path.read_text()) if path.exists() else default


def refused(folder: Path) -> list[dict[str, Any]]:
    """What MLflow refused for good, in order: ``at`` (byte position), ``error``, ``record``."""
    path = folder / "refused.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return list({entry["at"]: entry for entry in map(json.loads, lines)}.values())


def forget_refused() -> None:
    """Drop what MLflow refused, of all runs."""
    for folder in folders():
        (folder / "refused.jsonl").unlink(missing_ok=True)


def retry_refused() -> int:
    """Put what MLflow refused behind the undelivered records of its run, in order; the number of records.

    A run that is going on keeps its own.
    """
    again = 0
    for folder in folders():
        entries = refused(folder)
        if not entries:
            continue
        try:
            with exclusive(folder / "run"), exclusive(folder / "delivery"), open(folder / "ops.jsonl", "ab") as f:
                # the line that a kill tore ends here, lest it swallow the first of these
                f.write(b"\n" + b"".join(json.dumps(e["record"], sort_keys=True).encode() + b"\n" for e in entries))
                f.flush()
                os.fsync(f.fileno())
                (folder / "refused.jsonl").unlink()
        except StateError as busy:
            log.info("%s: %s", folder.name, busy)
        else:
            again += len(entries)
    return again


def keep_refused(folder: Path, at: int, record: dict, error: str) -> None:
    """Append a refused record; whole or not at all."""
    entries = [*refused(folder), {"at": at, "error": error, "record": record}]
    write_bytes(folder / "refused.jsonl", "".join(json.dumps(e, sort_keys=True) + "\n" for e in entries).encode())


def now_ms() -> int:
    return int(time.time() * 1000)
