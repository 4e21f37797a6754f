"""Files that are whole or absent: atomic writes, checksummed checkpoints, and the folder cache built on them.

A file is written aside, flushed to disk and renamed. A checkpoint carries its kind, schema version and sha256, so a
torn, foreign or newer file is refused and named. Nothing here unpickles: a payload is JSON, or JSON plus tensors in
safetensors.
"""

import hashlib
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from core.hashing import content_key, sha256_file

MAGIC = b"TROPT\x01\r\n"
MANIFEST = "artifact.json"
MANIFEST_SCHEMA = 1


class StateError(ValueError):
    """A stored file is torn, foreign or newer than this program; the message names it and the remedy."""


def home() -> Path:
    """Where caches, tracking database and results live: ``TRANSFEROPT_HOME``, default ``~/.transferopt``."""
    return Path(os.environ.get("TRANSFEROPT_HOME", "~/.transferopt")).expanduser()


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``path``; on success fsync it and rename it into place, on error remove it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as f:
            os.fsync(f.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        _fsync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON (sorted keys, indented) to ``path`` atomically."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def save_checkpoint(
    path: str | Path, payload: Any, *, kind: str, schema: int, arrays: Mapping[str, np.ndarray] | None = None
) -> None:
    """Write a JSON-able ``payload`` and named arrays as one checksummed file, atomically."""
    head = json.dumps({"kind": kind, "schema": schema, "payload": payload}).encode()
    blob = b""
    if arrays:
        from safetensors.numpy import save

        blob = save({name: np.ascontiguousarray(a) for name, a in arrays.items()})
    body = struct.pack("<QQ", len(head), len(blob)) + head + blob
    write_bytes(path, MAGIC + hashlib.sha256(body).digest() + body)


def load_checkpoint(path: str | Path, *, kind: str, schema: int) -> tuple[Any, dict[str, np.ndarray], int]:
    """Read what :func:`save_checkpoint` wrote: payload, arrays and the schema version found (``<= schema``).

    Raises:
        FileNotFoundError: no such file.
        StateError: torn or foreign file, another kind, or a schema newer than ``schema``.
    """
    data = Path(path).read_bytes()
    if not data.startswith(MAGIC):
        raise StateError(f"{path} is not a checkpoint of this program; remove it or give another path")
    digest, body = data[len(MAGIC) : len(MAGIC) + 32], data[len(MAGIC) + 32 :]
    if len(body) < 16 or hashlib.sha256(body).digest() != digest:
        raise StateError(f"{path} is damaged (checksum does not match); remove it to start this part anew")
    n_head, n_blob = struct.unpack("<QQ", body[:16])
    head = json.loads(body[16 : 16 + n_head])
    if head["kind"] != kind:
        raise StateError(f"{path} holds a {head['kind']!r} checkpoint, expected {kind!r}")
    if head["schema"] > schema:
        raise StateError(
            f"{path} has schema version {head['schema']}, this program reads up to {schema}; update transferopt"
        )
    arrays: dict[str, np.ndarray] = {}
    if n_blob:
        from safetensors.numpy import load

        arrays = load(body[16 + n_head : 16 + n_head + n_blob])
    return head["payload"], arrays, head["schema"]


@contextmanager
def exclusive(path: str | Path, wait_s: float = 0) -> Iterator[None]:
    """Hold ``path`` for this process; another holder is named in the error.

    Raises:
        StateError: somebody else holds it after ``wait_s`` seconds (negative waits forever).
    """
    lock_path = Path(f"{path}.lock")
    lock_path.parent.mkdir(parents=True, exist_ok=True)
    owner = Path(f"{path}.owner")
    lock = FileLock(lock_path)
    try:
        lock.acquire(timeout=wait_s)
    except Timeout:
        who = owner.read_text().strip() if owner.exists() else "another process"
        raise StateError(f"{path} is in use by {who}; wait for it or choose another folder") from None
    try:
        owner.write_text(f"process {os.getpid()} on {os.uname().nodename}\n")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def seal(folder: str | Path, facts: Mapping[str, Any] | None = None) -> str:
    """Write ``artifact.json`` (sha256 and size of every file, free facts) and return the folder's content hash."""
    root = Path(folder)
    files = {
        p.relative_to(root).as_posix(): {"sha256": sha256_file(p), "bytes": p.stat().st_size}
        for p in sorted(root.rglob("*"))
        if p.is_file() and p.name != MANIFEST
    }
    digest = content_key({name: f["sha256"] for name, f in files.items()})
    manifest = {"schema": MANIFEST_SCHEMA, "sha256": digest, "files": files, "facts": dict(facts or {})}
    write_json(root / MANIFEST, manifest)
    return digest


def verify(folder: str | Path) -> dict[str, Any]:
    """Check a sealed folder against its manifest and return the manifest.

    Raises:
        FileNotFoundError: the folder was never sealed.
        StateError: a file is missing, changed, or the manifest itself is damaged or newer.
    """
    root = Path(folder)
    text = (root / MANIFEST).read_text()
    try:
        manifest = json.loads(text)
        schema, files, expected = manifest["schema"], manifest["files"], manifest["sha256"]
    except (ValueError, KeyError, TypeError):
        raise StateError(f"{root / MANIFEST} is damaged; remove {root} to compute it anew") from None
    if schema > MANIFEST_SCHEMA:
        raise StateError(f"{root} was written by a newer version (schema {schema}); update transferopt")
    for name, f in files.items():
        path = root / name
        if not path.is_file() or path.stat().st_size != f["bytes"] or sha256_file(path) != f["sha256"]:
            raise StateError(f"{path} is missing or damaged (sha256 differs); remove {root} to compute it anew")
    if content_key({name: f["sha256"] for name, f in files.items()}) != expected:
        raise StateError(f"{root / MANIFEST} is damaged; remove {root} to compute it anew")
    return manifest


class Cache:
    """Folders computed once, found by content key: ``<root>/<kind>/<key>``.

    A folder appears whole (built in ``<key>.part`` and renamed) or not at all. The builder finds ``<key>.part`` as an
    earlier, killed attempt left it, so it can resume from its own checkpoints there. Damaged folders are recomputed.
    """

    def __init__(self, root: str | Path | None = None):
        self.root = Path(root) if root is not None else home() / "cache"

    def path(self, kind: str, key: str) -> Path:
        return self.root / kind / key

    def find(self, kind: str, key: str) -> Path | None:
        """The verified folder, or None. A damaged one is moved aside, never used."""
        folder = self.path(kind, key)
        if not folder.is_dir():
            return None
        try:
            verify(folder)
        except (StateError, FileNotFoundError):
            shutil.rmtree(folder)
            return None
        os.utime(folder)
        return folder

    def compute(self, kind: str, key: str, build: Callable[[Path], Mapping[str, Any] | None]) -> Path:
        """The folder under ``key``; ``build(folder)`` fills it when it is not there. One process at a time.

        What ``build`` returns (who made it, when, at what cost) is kept in the manifest beside the hash, not in it.
        """
        folder = self.path(kind, key)
        with exclusive(folder, wait_s=-1):
            found = self.find(kind, key)
            if found is not None:
                return found
            part = folder.with_name(f"{key}.part")
            part.mkdir(parents=True, exist_ok=True)
            seal(part, build(part))
            os.replace(part, folder)
            _fsync_folder(folder.parent)
        return folder


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
