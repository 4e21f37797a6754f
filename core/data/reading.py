"""Rows of a task's source: one table, folders of tables, of dialogues or of images, hub, bundled."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from core.data.assets import AssetError, data_folders, find_local, resolve
from core.data.derive import DERIVATIONS
from core.data.examples import ALL, TaskError
from core.data.tables import FORMATS, check_cells, format_of, read_table, strings
from core.registry import nearest

SHARD = re.compile(r"-\d{4,}-of-\d{4,}(-[0-9a-f]+)?$")  # of a split that is stored in several files
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".ppm")
BUNDLED = {
    "digits": "load_digits",
    "iris": "load_iris",
    "wine": "load_wine",
    "breast_cancer": "load_breast_cancer",
    "diabetes": "load_diabetes",
}


def read_source(source: Any, where: str, seed: int = 0, columns: Sequence[str] = ()) -> dict[str, pd.DataFrame]:
    """The source's rows by split name; ``{"all": rows}`` when it has no splits of its own.

    Args:
        source: a :class:`core.data.tasks.Source`.
        where: name of the task, for messages.
        columns: those that hold texts and labels; lists and records in them are refused.

    Raises:
        TaskError, AssetError: missing file, unknown format, damaged rows, no access.
    """
    if source.hub:
        frames = _from_hub(source.hub, source.config, where)
        for name, rows in frames.items():
            check_cells(rows, columns, f"{where}: {source.hub}, split {name}")
    elif source.bundled:
        frames = {ALL: _bundled(source.bundled, where)}
    else:
        frames = _from_disk(locate(source, where), source, where, columns)
    frames = {name: _filtered(rows, source.where, where) for name, rows in frames.items()}
    for name, settings in source.derive.items():
        frames = {split: derive(name, rows, seed, settings, where) for split, rows in frames.items()}
    return frames


def derive(name: str, rows: pd.DataFrame, seed: int, settings: Mapping[str, Any], where: str) -> pd.DataFrame:
    """Run a registered derivation; its missing columns and unknown settings are named."""
    try:
        return DERIVATIONS.get(name)(rows, seed, **settings)
    except KeyError as error:
        raise TaskError(f"{where}: {name} needs column {error}; the source has {', '.join(map(str, rows))}") from None
    except TypeError as error:
        raise TaskError(f"{where}: {name} with {settings}: {error}") from None


def locate(source: Any, where: str) -> Path:
    """The file or folder on this disk that the source names; an asset is fetched if need be."""
    if source.local:
        found = find_local(source.local)
        if found is None:
            folders = ", ".join(map(str, data_folders())) or "not set"
            raise TaskError(
                f"task {where} reads {source.local!r} from a local data folder (TRANSFEROPT_DATA: {folders}); set "
                "TRANSFEROPT_DATA to a folder that holds it, or choose a task that reads a registry archive"
            )
        return found
    if source.asset:
        root = resolve(source.asset).path
        path = root / source.member if source.member else root
        if not path.exists() and not list(root.glob(source.member)):
            members = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
            raise TaskError(f"{where}: asset {source.asset} has no {source.member!r}{nearest(source.member, members)}")
        return path
    path = Path(source.path).expanduser()
    if not path.exists():
        near = nearest(path.name, (p.name for p in path.parent.iterdir())) if path.parent.is_dir() else "."
        raise TaskError(f"{where}: {path} does not exist{near} Give an existing file or folder as source.path")
    return path


def state_of(source: Any, where: str) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of every file of a source on disk, so that a changed file is read again."""
    if source.hub or source.bundled or source.asset:
        return ()
    path = locate(source, where)
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return tuple((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files)


def _from_disk(path: Path, source: Any, where: str, columns: Sequence[str]) -> dict[str, pd.DataFrame]:
    if path.is_file():
        return {ALL: read_table(path, source.format, source.options, where, columns)}
    inside = path.iterdir() if path.is_dir() else path.parent.glob(path.name)
    names = ("dataset_info.json", "artifact.json")
    files = [p for p in sorted(inside) if p.is_file() and p.name not in names and not p.name.startswith(".")]
    tables = _by_split([p for p in files if format_of(p) not in ("", "dialogues")], where)
    if tables:
        frames = {
            name: [read_table(p, source.format, source.options, where, columns) for p in parts]
            for name, parts in tables.items()
        }
        return {name: pd.concat(f, ignore_index=True) if len(f) > 1 else f[0] for name, f in frames.items()}
    folders = [path / name for name in source.options.get("folders", ())] or [path]
    dialogues = [
        read_table(p, "dialogues", where=where)
        for folder in folders
        for p in sorted(folder.glob("*.y*ml"))
        if b"conversations:" in p.read_bytes()
    ]
    if dialogues:
        return {ALL: pd.concat(dialogues, ignore_index=True)}
    return _image_folders(path, where)


def _by_split(files: Sequence[Path], where: str) -> dict[str, list[Path]]:
    """The tables of a folder by the split that they are named after, the parts of one in order."""
    found: dict[str, list[Path]] = {}
    for p in files:
        found.setdefault(SHARD.sub("", p.name.split(".")[0]), []).append(p)
    for name, parts in found.items():
        whole = [p.name for p in parts if not SHARD.search(p.name.split(".")[0])]
        if whole and len(parts) > 1:
            raise TaskError(
                f"{where}: {parts[0].parent} holds {len(parts)} tables for the split {name!r} "
                f"({', '.join(p.name for p in parts)}); leave one there, or give the one as source.path"
            )
    return found


def _image_folders(path: Path, where: str) -> dict[str, pd.DataFrame]:
    """``<class>/<image>`` or ``<split>/<class>/<image>`` as columns ``image`` (path) and ``label``."""
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGES)
    if not found:
        raise TaskError(f"{where}: {path} holds neither tables ({', '.join(FORMATS)}) nor images ({' '.join(IMAGES)})")
    frames: dict[str, list[dict[str, str]]] = {}
    for p in found:
        parts = p.relative_to(path).parts
        if len(parts) not in (2, 3):
            raise TaskError(f"{where}: {p}: an image folder holds class/image or split/class/image")
        frames.setdefault(parts[0] if len(parts) == 3 else ALL, []).append({"image": str(p), "label": parts[-2]})
    return {name: pd.DataFrame(rows) for name, rows in frames.items()}


def _bundled(name: str, where: str) -> pd.DataFrame:
    """A set that scikit-learn carries: feature columns and ``label`` (class name, or the target value)."""
    from sklearn import datasets

    if name not in BUNDLED:
        raise TaskError(f"{where}: unknown bundled set {name!r}{nearest(name, BUNDLED)} Allowed: {', '.join(BUNDLED)}")
    loaded = getattr(datasets, BUNDLED[name])()
    rows = pd.DataFrame(loaded.data, columns=[str(f) for f in loaded.feature_names])
    names = getattr(loaded, "target_names", None)
    rows["label"] = [str(names[t]) for t in loaded.target] if names is not None else loaded.target
    return rows


def _from_hub(repository: str, config: str, where: str) -> dict[str, pd.DataFrame]:
    from datasets import load_dataset
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    name, _, revision = repository.partition("@")
    try:
        HfApi().dataset_info(name, revision=revision or None, timeout=5)
        loaded = load_dataset(name, config or None, revision=revision or None)
    except (OSError, HfHubHTTPError, HFValidationError, *_connection_errors()) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise AssetError(
            f"{where}: cannot read {name!r} from the Hugging Face hub ({reason}); check the network, or give a local "
            "file as source.path"
        ) from None
    return {split: rows.to_pandas() for split, rows in loaded.items()}


def _connection_errors() -> tuple[type[Exception], ...]:
    """What the installed huggingface_hub raises when there is no network: its HTTP client's base error."""
    from huggingface_hub import errors

    base = [c for c in errors.HfHubHTTPError.__mro__ if c.__module__.split(".")[0] in ("httpx", "httpx2", "requests")]
    return tuple(base)


def _filtered(rows: pd.DataFrame, where: Mapping[str, Any], task: str) -> pd.DataFrame:
    for column, allowed in where.items():
        if column not in rows:
            raise TaskError(f"{task}: source.where names column {column!r}{nearest(column, rows)} Has: {list(rows)}")
        values = {str(v) for v in (allowed if isinstance(allowed, list) else [allowed])}
        rows = rows[[v in values for v in strings(rows[column])]]
    return rows
