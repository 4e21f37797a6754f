"""One registry for every family of methods: operators, losses, optimizers, spaces, oracles, scores, tasks.

A family is a :class:`Registry`. A method joins it with one line, ``@FAMILY.register("name")``, in a file of the
family's package; the files are imported on first use, so adding a method is adding a file. Third-party packages join
through the entry-point group ``transferopt``: each entry point names a module whose import registers its methods.
"""

import difflib
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any, Generic, TypeVar

ENTRY_POINT_GROUP = "transferopt"

T = TypeVar("T")

FAMILIES: dict[str, "Registry[Any]"] = {}
_plugins_loaded = False


def nearest(name: str, allowed: Iterable[str]) -> str:
    """``", did you mean 'x'?"`` for the closest allowed name, or an empty string."""
    close = difflib.get_close_matches(str(name), [str(a) for a in allowed], n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else "."


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A registered method: the object, its one-line summary and free facts (source, settings, units)."""

    name: str
    value: T
    summary: str
    facts: MappingProxyType = field(default_factory=lambda: MappingProxyType({}))


class Registry(Generic[T]):
    """Methods of one family by name.

    Args:
        family: singular noun used in messages, e.g. ``"merge operator"``.
        package: dotted package whose modules are imported on first look-up (each registers its methods).
    """

    def __init__(self, family: str, package: str | None = None):
        self.family = family
        self.package = package
        self._entries: dict[str, Entry[T]] = {}
        self._loaded = package is None
        FAMILIES[family] = self

    def register(self, name: str, summary: str | None = None, **facts: Any) -> Callable[[T], T]:
        """Decorator: register ``value`` under ``name``; the first docstring line is the summary unless given."""

        def add(value: T) -> T:
            known = self._entries.get(name)
            if known is not None and _origin(known.value) != _origin(value):
                raise ValueError(f"{self.family} {name!r} is registered twice: {known.value!r} and {value!r}")
            doc = (getattr(value, "__doc__", None) or "").strip().splitlines()
            self._entries[name] = Entry(name, value, summary or (doc[0] if doc else ""), MappingProxyType(facts))
            return value

        return add

    def load(self) -> None:
        """Import the family's package and the third-party entry points (once)."""
        if not self._loaded:
            self._loaded = True
            package = importlib.import_module(self.package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self.package}.{module.name}")
        load_plugins()

    def _load_file(self, name: str) -> None:
        """Import only the file that is named like the method, if there is one: the others may be slow to import."""
        file = name.replace("-", "_")
        if self._loaded or not file.isidentifier():
            return
        module = f"{self.package}.{file}"
        if importlib.util.find_spec(module) is not None:
            importlib.import_module(module)

    def entry(self, name: str) -> Entry[T]:
        """The entry called ``name``.

        Raises:
            ValueError: unknown name; the message gives the nearest one and all allowed ones.
        """
        if name not in self._entries:
            self._load_file(name)
        if name not in self._entries:
            self.load()
        if name not in self._entries:
            allowed = ", ".join(sorted(self._entries))
            raise ValueError(f"unknown {self.family} {name!r}{nearest(name, self._entries)} Allowed: {allowed}")
        return self._entries[name]

    def get(self, name: str) -> T:
        """The method called ``name`` (see :meth:`entry`)."""
        return self.entry(name).value

    def names(self) -> list[str]:
        """All names, sorted."""
        self.load()
        return sorted(self._entries)

    def __iter__(self) -> Iterator[Entry[T]]:
        self.load()
        return iter([self._entries[name] for name in sorted(self._entries)])

    def __contains__(self, name: str) -> bool:
        if name not in self._entries:
            self.load()
        return name in self._entries


def load_plugins() -> None:
    """Import every module named in the entry-point group (once a process)."""
    global _plugins_loaded
    if not _plugins_loaded:
        _plugins_loaded = True
        for point in entry_points(group=ENTRY_POINT_GROUP):
            point.load()


def _origin(value: Any) -> tuple[str | None, str | None]:
    return getattr(value, "__module__", None), getattr(value, "__qualname__", None)
