"""Third-party packages that add methods: which there are, and a hash of their code for content keys.

They join through the entry-point group of :mod:`core.registry`. What a stage computed with other code of theirs is
another result, as with other code of ours.
"""

import importlib.util
import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from core.hashing import code_version, content_key, sha256_file
from core.registry import ENTRY_POINT_GROUP


def plugins() -> list[EntryPoint]:
    """The entry points of installed packages, by name."""
    return sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: (point.name, point.value))


@cache
def plugin_digest() -> str:
    """Hash over the Python files of every package with an entry point; empty without one. Nothing is imported."""
    roots = {point.module.partition(".")[0] for point in plugins()}
    hashes = {name: _files(name) for name in sorted(roots)}
    return content_key(hashes) if hashes else ""


def method_version(modules: Iterable[str]) -> str:
    """Version of the methods that ``modules`` define, for content keys: of ours, and of those of others.

    Ours count with what they import (:func:`core.hashing.code_version`), others' with their own file, a script's too,
    and with every package that has an entry point.
    """
    ours = sorted({m for m in modules if m.partition(".")[0] == "core"})
    others = sorted(set(modules) - set(ours))
    places = {m: getattr(sys.modules.get(m), "__file__", None) for m in others}
    files = {m: sha256_file(place) for m, place in places.items() if place and Path(place).is_file()}
    return content_key(code_version(ours) if ours else "", files, plugin_digest() if others else "")


def _files(package: str) -> dict[str, str]:
    spec = importlib.util.find_spec(package)
    if spec is None:
        return {}
    folders = [Path(f) for f in spec.submodule_search_locations or ()]
    files = sorted(f for folder in folders for f in folder.rglob("*.py")) or [Path(spec.origin)] * bool(spec.origin)
    return {str(f.relative_to(folders[0]) if folders else f.name): sha256_file(f) for f in files}
