"""A stage: one Prefect task, one nested MLflow run, one folder found by content.

    @stage("merge", modules=["core.merge.engine"])
    def merge(out: Output, config: MergeConfig, base: Artifact, experts: list[Artifact]) -> None:
        ...write files into out.folder, call out.metrics(...), out.rows([...])...

    merged = merge(config, base=base, experts=experts)          # -> Artifact

The folder's key is the hash of stage name, configuration, input hashes and the source of the ``core`` modules named, so
equal work is a cache hit, a killed run continues where it stood (the body finds its own checkpoints in ``out.folder``),
and nothing half-written is ever seen. Under :func:`planning` nothing runs: stages only say whether they would.
"""

import functools
import json
import logging
import os
import resource
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from core.config import Config
from core.evaluate.rows import Row, read_rows, write_rows
from core.hashing import code_version, content_key
from core.heap import give_back
from core.plugins import plugin_digest
from core.progress import listen
from core.state import MANIFEST, Cache, home, verify, write_json
from tasks import tracking
from tasks.long_tags import split

log = logging.getLogger(__name__)
LONGEST_S = 12 * 3600.0
SHARE = 0.02  # of the time may be spent on telling progress
EVERY_S = 3.0  # between two tellings: each costs the server as much again, on cores that the work would use
LONG_S = 20.0  # after a stage that took longer, freed memory is given back; taking it again costs a short one too much
AWAY_S = 30.0  # how long no progress is shown after the server did not answer
ROWS, METRICS, CURVES, DATA = "rows.jsonl", "metrics.json", "curves.json", "data.json"


class Artifact(Config):
    """A reference to a sealed folder: what is handed from stage to stage."""

    name: str
    path: str = Field(description="folder")
    sha256: str = Field(description="content hash of the folder")
    run: str = Field("", description="id of the run that produced it; empty for a source")
    planned: bool = Field(False, description="true while planning, when the folder does not exist yet")

    @property
    def folder(self) -> Path:
        return Path(self.path)

    def rows(self) -> list[Row]:
        return read_rows(self.folder / ROWS)

    def facts(self) -> dict[str, Any]:
        """What its stage noted beside the content: budget, who made it."""
        return json.loads((self.folder / MANIFEST).read_text())["facts"]


@dataclass
class Output:
    """What a stage body writes to."""

    folder: Path
    facts: dict[str, Any] = field(default_factory=dict)
    _metrics: dict[str, float] = field(default_factory=dict)
    _curves: dict[str, list[list[float]]] = field(default_factory=dict)

    def metrics(self, values: Mapping[str, float]) -> None:
        self._metrics |= {k: float(v) for k, v in values.items()}
        write_json(self.folder / METRICS, self._metrics)

    def curve(self, name: str, values: Sequence[tuple[int, float]]) -> None:
        self._curves[name] = [[int(s), float(v)] for s, v in values]
        write_json(self.folder / CURVES, self._curves)

    def rows(self, rows: Sequence[Row]) -> None:
        write_rows(self.folder / ROWS, rows)

    def link(self, source: Path, name: str = "") -> None:
        """Take files from elsewhere into the folder without copying them where the file system allows."""
        target = self.folder / name if name else self.folder
        for path in sorted(p for p in source.rglob("*") if p.is_file() and p.name != MANIFEST):
            to = target / path.relative_to(source)
            to.parent.mkdir(parents=True, exist_ok=True)
            to.unlink(missing_ok=True)
            try:
                os.link(path.resolve(), to)
            except OSError:  # another file system
                shutil.copyfile(path, to)

    def budget(self, spent: Mapping[str, float]) -> None:
        """Record what was spent (unit -> amount)."""
        self.facts["budget"] = dict(spent)


@dataclass(frozen=True)
class Planned:
    """One line of a plan."""

    stage: str
    state: str  # "cached" | "run"
    seconds: float | None
    memory_mb: float | None
    disk_mb: float | None


_plan: ContextVar[list[Planned] | None] = ContextVar("plan", default=None)
_size: ContextVar[str] = ContextVar("size", default="")


@contextmanager
def planning() -> Iterator[list[Planned]]:
    """Inside, stages run nothing and are listed instead."""
    token = _plan.set([])
    try:
        yield _plan.get()
    finally:
        _plan.reset(token)


@contextmanager
def of_size(size: str) -> Iterator[None]:
    """Inside, what stages take is remembered, and foretold, for runs of this size."""
    token = _size.set(size)
    try:
        yield
    finally:
        _size.reset(token)


def size() -> str:
    """The size of the flow that this code runs for; empty outside any."""
    return _size.get()


def is_planning() -> bool:
    return _plan.get() is not None


class Stage:
    """A stage made by :func:`stage`; call it with a configuration and its input artifacts."""

    def __init__(
        self, name: str, body: Callable, modules: Sequence[str], retries: int, timeout_s: float | None, keep: str
    ):
        from prefect import task
        from prefect.cache_policies import NO_CACHE

        self.name, self.body, self.modules, self.keep = name, body, tuple(modules), keep
        functools.update_wrapper(self, body)
        self.prefect_task = functools.partial(
            task,
            name=name,
            description=(body.__doc__ or "").strip() or None,
            retries=retries,
            retry_delay_seconds=5,
            timeout_seconds=timeout_s,
            cache_policy=NO_CACHE,  # ours is by content and survives the Prefect server
            persist_result=False,
        )
        self._task = self.prefect_task(self.compute)

    def __reduce__(self):
        """To another process a stage is the name it is found under, not its code."""
        return _find, (self.__module__, self.__qualname__)

    def __call__(self, config: Config, **inputs: Any) -> Artifact:
        if is_planning():
            return self._planned(config, inputs)
        return self._task(config, inputs)

    def submit(self, config: Config, **inputs: Any):
        """Start on the configured runner; collect with :func:`tasks.fan_out.gather`."""
        from tasks.fan_out import start

        if is_planning():
            return self._planned(config, inputs)
        return start(self, config, inputs)

    def key(self, config: Config, inputs: Mapping[str, Any]) -> str:
        others = [plugin_digest()] if plugin_digest() else []  # without third-party methods keys stay as they are
        return content_key(self.name, config, _hashes(inputs), code_version(self.modules), *others)

    def _planned(self, config: Config, inputs: Mapping[str, Any]) -> Artifact:
        unknown = any(a.planned for a in _artifacts(inputs))
        key = self.key(config, inputs)
        folder = None if unknown else Cache().find(self.name, key)
        past = history(self.name)
        known = (past.get("seconds"), past.get("memory_mb"), past.get("disk_mb"))
        _plan.get().append(Planned(self.name, "cached", 0, 0, 0) if folder else Planned(self.name, "run", *known))
        if folder:
            return _artifact(self.name, folder)
        return Artifact(name=self.name, path="", sha256=key, planned=True)

    def compute(self, config: Config, inputs: Mapping[str, Any]) -> Artifact:
        """The artifact, found or made, as a run below the current one."""
        tags = {"stage": self.name, **_input_tags(inputs)}
        with tracking.nested(self.name, config, tags) as run:
            started = time.monotonic()
            built = []

            def build(folder: Path) -> dict[str, Any]:
                built.append(True)
                out = Output(folder)
                with _progress_in_prefect(self.name):
                    self.body(out, config, **inputs)
                return {"run": run.id, "stage": self.name, **out.facts}

            key = self.key(config, inputs)
            folder = Cache().compute(self.name, key, build)
            artifact = _artifact(self.name, folder)
            seconds = time.monotonic() - started
            run.tags({"key": key, "cache": "miss" if built else "hit", "output.sha256": artifact.sha256})
            run.tags({"output.path": artifact.path, "output.run": artifact.run, "seconds": f"{seconds:.2f}"})
            _record(run, folder, self.keep)
            if built:
                _remember(self.name, key, seconds, folder)
                if seconds > LONG_S:
                    give_back()
        return artifact


def stage(
    name: str,
    *,
    modules: Sequence[str],
    retries: int = 0,
    timeout_s: float = LONGEST_S,
    keep: str = "small",
) -> Callable[[Callable], Stage]:
    """Make a stage of ``body(out: Output, config: Config, **inputs: Artifact | list[Artifact])``.

    Args:
        modules: the core modules whose code decides the result (part of the content key).
        timeout_s: the stage is ended after this long, and can be resumed.
        retries: only where a retry can help (network); computing again gives the same error.
        keep: what MLflow gets of the folder: "small" (all files up to the size limit) or "nothing" (only hashes,
            for folders that hold users' texts).
    """
    return lambda body: Stage(name, body, modules, retries, timeout_s, keep)


def _find(module: str, name: str) -> Stage:
    import importlib

    return getattr(importlib.import_module(module), name)


def _artifact(name: str, folder: Path) -> Artifact:
    manifest = json.loads((folder / MANIFEST).read_text())
    return Artifact(name=name, path=str(folder), sha256=manifest["sha256"], run=manifest["facts"].get("run", ""))


def source(name: str, folder: Path) -> Artifact:
    """An artifact that no stage made (an asset folder); it must be sealed."""
    return Artifact(name=name, path=str(folder), sha256=verify(folder)["sha256"])


def _artifacts(inputs: Mapping[str, Any]) -> list[Artifact]:
    found = []
    for value in inputs.values():
        if isinstance(value, Artifact):
            found.append(value)
        elif isinstance(value, Mapping):
            found += _artifacts(value)
        elif isinstance(value, (list, tuple)):
            found += [v for v in value if isinstance(v, Artifact)]
    return found


def _hashes(inputs: Mapping[str, Any]) -> dict[str, Any]:
    def of(value: Any) -> Any:
        if isinstance(value, Artifact):
            return value.sha256
        if isinstance(value, Mapping):
            return {k: of(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [of(v) for v in value]
        raise TypeError(
            f"a stage takes Artifacts (or lists and dicts of them) beside its config, got {type(value).__name__}"
        )

    return {name: of(value) for name, value in inputs.items()}


def _input_tags(inputs: Mapping[str, Any]) -> dict[str, str]:
    listed = [{"name": a.name, "sha256": a.sha256, "run": a.run, "path": a.path} for a in _artifacts(inputs)]
    return split("inputs", listed)


def _record(run: tracking.Run, folder: Path, keep: str) -> None:
    """Send a sealed folder's metrics, curves, rows, budget and small files to MLflow."""
    if (folder / METRICS).exists():
        run.metrics(json.loads((folder / METRICS).read_text()))
    if (folder / CURVES).exists():
        for name, values in json.loads((folder / CURVES).read_text()).items():
            run.curve(name, values)
    run.rows(read_rows(folder / ROWS))
    if (folder / DATA).exists():
        run.dataset(**json.loads((folder / DATA).read_text()))
    facts = json.loads((folder / MANIFEST).read_text())["facts"]
    if "budget" in facts:
        run.tags({"budget.spent": json.dumps(facts["budget"])})
        run.metrics({f"budget.{unit}": amount for unit, amount in facts["budget"].items()})
    run.artifact(folder if keep == "small" else folder / MANIFEST)


@contextmanager
def _progress_in_prefect(name: str) -> Iterator[None]:
    """Inside, what takes longer than a second has a progress artifact in the Prefect UI.

    It only shows: when the server is away the work goes on without it, and telling it takes at most :data:`SHARE` of
    the time.
    """
    import httpx
    from prefect.artifacts import create_progress_artifact, update_progress_artifact
    from prefect.context import TaskRunContext
    from prefect.exceptions import PrefectException

    ids: dict[str, Any] = {}
    due: dict[str, float] = {}

    def tell(description: str, fraction: float) -> None:
        now = time.monotonic()
        try:
            if description not in ids:
                ids[description] = create_progress_artifact(100 * fraction, description=f"{name}: {description}")
            else:
                update_progress_artifact(ids[description], 100 * fraction)
            due[description] = now + max(EVERY_S, (time.monotonic() - now) / SHARE)
        except (httpx.HTTPError, PrefectException) as error:
            due[description] = now + AWAY_S
            log.warning("Prefect shows no progress of %s for now: %s", name, type(error).__name__)

    def show(description: str, fraction: float) -> None:
        now = time.monotonic()
        if TaskRunContext.get() is not None and now >= due.setdefault(description, now + 1):
            tell(description, fraction)

    with listen(show):
        yield
    for description in list(ids):
        tell(description, 1)


def _remember(name: str, key: str, seconds: float, folder: Path) -> None:
    disk = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    taken = {"seconds": seconds, "memory_mb": memory, "disk_mb": disk}
    line = json.dumps({"stage": name, "key": key, "size": size(), **taken})
    path = home() / "history.jsonl"
    with open(path, "a") as f:
        f.write(line + "\n")


def history(name: str) -> dict[str, float]:
    """Median seconds, memory and disk of earlier runs of a stage in flows of this size; empty without any."""
    path = home() / "history.jsonl"
    if not path.exists():
        return {}
    wanted = ("seconds", "memory_mb", "disk_mb")
    found = []
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
            if entry["stage"] == name and entry.get("size", "") == size():
                found.append([float(entry[key]) for key in wanted])
        except (ValueError, KeyError, TypeError):  # torn by a kill; it only held times
            continue
    return dict(zip(wanted, map(statistics.median, zip(*found)))) if found else {}
