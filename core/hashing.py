"""Content hashes: what a thing is, independent of where it lies."""

import ast
import hashlib
import importlib.util
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel


def sha256_file(path: str | Path) -> str:
    """Hex sha256 of a file's bytes, read in blocks."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_folder(folder: str | Path) -> str:
    """Hex sha256 over the sorted (relative path, file sha256) pairs of a folder."""
    root = Path(folder)
    files = {p.relative_to(root).as_posix(): sha256_file(p) for p in sorted(root.rglob("*")) if p.is_file()}
    return content_key(files)


def content_key(*parts: Any) -> str:
    """Hex sha256 of JSON-able parts (configs, dicts, lists, numbers, paths as strings), stable over processes."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=_jsonable)
    return hashlib.sha256(text.encode()).hexdigest()


def _jsonable(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no stable content key; give str, int, float, dict, list or a Config")


def code_version(modules: Iterable[str]) -> str:
    """Hex sha256 over the source of the given ``core`` modules and of every ``core`` module they import.

    A method's version: rows and caches computed by other code are not mixed with it. The closure is read from the
    source (no import happens); package ``__init__`` files count only where a name is imported from them.
    """
    seen: dict[str, str] = {}
    todo = sorted(modules)
    while todo:
        module = todo.pop()
        path = _module_path(module)
        if path is None or module in seen:
            continue
        seen[module], imports = _digest_and_imports(path, module)
        todo.extend(sorted(set(imports) - seen.keys()))
    if not seen:
        raise ValueError(f"none of {sorted(modules)} is a module of this project")
    return content_key(sorted(seen.items()))


@cache
def _module_path(module: str) -> Path | None:
    if not module.startswith("core"):
        return None
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    return Path(spec.origin) if spec and spec.origin else None


@cache
def _digest_and_imports(path: Path, module: str) -> tuple[str, tuple[str, ...]]:
    source = path.read_text(encoding="utf-8")
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    imports: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imports += [alias.name for alias in node.names if alias.name.startswith("core.")]
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                base = package.split(".")[: len(package.split(".")) - node.level + 1]
                origin = ".".join([*base, *([origin] if origin else [])])
            if origin.split(".")[0] == "core":
                for alias in node.names:
                    child = f"{origin}.{alias.name}"
                    imports.append(child if _module_path(child) else origin)
    return hashlib.sha256(source.encode()).hexdigest(), tuple(imports)
