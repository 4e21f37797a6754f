"""Lineage: a flow is a parent run, each stage a nested run, every input and output named by its sha256."""

import json
import logging
import os
import platform
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from core.config import Config
from core.evaluate.machine import commit, hardware
from core.evaluate.rows import Row
from core.hashing import content_key
from core.transfer.problem import Problem
from tasks import courier
from tasks.addresses import without_password
from tasks.spool import Spool, now_ms

LIBRARIES = ("torch", "transformers", "prefect", "mlflow", "numpy", "pandas", "datasets", "peft")
DELIVERY_S, LEAVING_S = 60.0, 3.0  # how long a finished run, and a cancelled one, waits for MLflow to take its records
NOTE = "mlflow.note.content"
ARTIFACT_LIMIT = "TRANSFEROPT_ARTIFACT_LIMIT_MB"
_current: ContextVar["Run | None"] = ContextVar("run", default=None)


@dataclass
class Run:
    """A tracked run. ``id`` is ours (stable, known before any server answers); the MLflow id is found by it."""

    id: str
    name: str
    experiment: str
    spool: Spool
    problem: Problem
    parent: "Run | None" = None
    inputs: dict[str, str] = field(default_factory=dict)

    def params(self, values: Mapping[str, Any]) -> None:
        self.spool.append("values", self.id, params={metric_name(k): v for k, v in flatten(values).items()})

    def tags(self, values: Mapping[str, Any]) -> None:
        self.spool.append("values", self.id, tags={k: str(v) for k, v in values.items()})

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log scalars as one batch."""
        time_ms = now_ms()
        points = [[metric_name(k), float(v), time_ms, step] for k, v in values.items()]
        self.spool.append("values", self.id, metrics=points)

    def curve(self, name: str, values: Iterable[tuple[int, float]]) -> None:
        """Log one metric over steps as one batch."""
        time_ms = now_ms()
        points = [[metric_name(name), float(v), time_ms, int(s)] for s, v in values]
        self.spool.append("values", self.id, metrics=points)

    def artifact(self, path: Path, at: str = "") -> None:
        """Log a file or folder; above ``TRANSFEROPT_ARTIFACT_LIMIT_MB`` (default 50) by reference only."""
        size = sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size
        if size > artifact_limit_bytes():
            self.tags({f"reference.{path.name}": json.dumps({"uri": path.as_uri(), "bytes": size})})
            path = path / "artifact.json"
            if not path.is_file():
                return
        self.spool.append("artifact", self.id, path=str(path), at=at)

    def dataset(
        self, name: str, sha256: str, source: Mapping[str, Any], schema: Mapping[str, Any], profile: Any
    ) -> None:
        """Log a data set by hash, schema and counts; never its rows."""
        fields = {"name": name, "sha256": sha256, "source": dict(source), "schema": dict(schema), "profile": profile}
        self.spool.append("dataset", self.id, **fields)

    def rows(self, rows: Iterable[Row]) -> None:
        """Log each row as a metric named ``method/<settings>/metric``; seeds are steps."""
        time_ms = now_ms()
        points = [[row_metric(r), r.value, time_ms, r.seed] for r in rows if r.value is not None]
        if points:
            self.spool.append("values", self.id, metrics=points)


def artifact_limit_bytes() -> float:
    """From what size on artifacts are logged by reference.

    Raises:
        ValueError: ``TRANSFEROPT_ARTIFACT_LIMIT_MB`` is no number of megabytes.
    """
    text = os.environ.get(ARTIFACT_LIMIT, "").strip() or "50"
    try:
        limit = float(text)
    except ValueError:
        limit = -1.0
    if not limit >= 0:
        raise ValueError(f"{ARTIFACT_LIMIT}={text}: give a number of megabytes, or unset it for 50")
    return 1e6 * limit


def row_metrics(rows: Iterable[Row]) -> dict[str, float]:
    """Metric name -> mean over seeds of the defined values."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if row.value is not None:
            values.setdefault(row_metric(row), []).append(row.value)
    return {name: sum(v) / len(v) for name, v in values.items()}


def row_metric(row: Row) -> str:
    """The MLflow metric name of a row."""
    settings = [f"{k}-{v}" for k, v in sorted(row.settings.items()) if isinstance(v, (str, int, float, bool))]
    return metric_name("/".join([row.method, *settings, row.metric]))


def metric_name(text: str) -> str:
    """``text`` as MLflow takes it: at most 250 characters, letters and digits of ASCII and a few signs.

    What is replaced or cut gives way to a hash of the whole, lest two names (of tasks in another script) become one.
    """
    taken = "".join(c if (c.isascii() and c.isalnum()) or c in "_-. /" else "_" for c in text)
    return taken if taken == text and len(text) <= 250 else f"{taken[:241]}~{content_key(text)[:8]}".replace("~", "-")


def current() -> Run:
    """The run in whose context this code executes.

    Raises:
        RuntimeError: outside any run.
    """
    run = _current.get()
    if run is None:
        raise RuntimeError("no tracked run here; call stages inside a flow")
    return run


@contextmanager
def start(
    name: str, experiment: str, problem: Problem, config: Config | None, tags: Mapping[str, str]
) -> Iterator[Run]:
    """A parent run: opened now, ended FINISHED or FAILED; the rest of the spool is delivered before it returns."""
    run_id = uuid.uuid4().hex
    spool = Spool(run_id, courier.deliver)
    run = Run(run_id, name, experiment, spool, problem)
    patience = DELIVERY_S
    try:
        with _recorded(run, config, tags):
            yield run
    except BaseException as error:
        patience = DELIVERY_S if isinstance(error, Exception) else LEAVING_S
        raise
    finally:
        spool.close(patience)


@contextmanager
def inside(run: Run) -> Iterator[Run]:
    """Make ``run``, which another process holds, the current one here."""
    token = _current.set(run)
    try:
        yield run
    finally:
        _current.reset(token)


@contextmanager
def nested(name: str, config: Config | None, tags: Mapping[str, str], problem: Problem | None = None) -> Iterator[Run]:
    """A run below the current one, for a stage or for a flow inside a flow (which has a problem of its own)."""
    parent = current()
    run = Run(uuid.uuid4().hex, name, parent.experiment, parent.spool, problem or parent.problem, parent)
    with _recorded(run, config, tags):
        yield run


@contextmanager
def _recorded(run: Run, config: Config | None, tags: Mapping[str, str]) -> Iterator[Run]:
    everything = {**run.problem.tags(), **environment(), **tags}
    parent = run.parent.id if run.parent else None
    run.spool.append(
        "start", run.id, name=run.name, experiment=run.experiment, parent=parent, tags=everything, time=now_ms()
    )
    if config is not None:
        run.params(config.model_dump(mode="json"))
    token = _current.set(run)
    status = "FAILED"
    log = RunLog(run)
    try:
        yield run
        status = "FINISHED"
    except BaseException as error:
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        said = without_password(f"{type(error).__name__}: {error}")[:4000]
        # the note is what MLflow shows at the top of a run
        run.tags({"error": said, NOTE: f"**{status.lower()}: {said}**\n\n{tags.get(NOTE, '')}"})
        raise
    finally:
        log.close()
        _current.reset(token)
        run.spool.append("end", run.id, status=status, time=now_ms())


class RunLog(logging.Handler):
    """What ``core``, ``tasks`` and ``flows`` log during a run, kept as its artifact ``log.txt``."""

    LOGGERS = ("core", "tasks", "flows")

    def __init__(self, run: Run):
        super().__init__(logging.INFO)
        self.run, self.path = run, run.spool.folder / f"{run.id}-log" / "log.txt"
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        for name in self.LOGGERS:
            logging.getLogger(name).addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Append one line; nested runs write to the innermost run only."""
        if _current.get() is self.run:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a") as f:
                f.write(self.format(record) + "\n")

    def close(self) -> None:
        for name in self.LOGGERS:
            logging.getLogger(name).removeHandler(self)
        super().close()
        if self.path.exists():
            self.run.artifact(self.path)


@cache
def environment() -> dict[str, str]:
    """Commit, hardware and library versions, as tags."""
    found = {"commit": commit(), "hardware": hardware(), "python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[f"version.{library}"] = version(library)
        except PackageNotFoundError:
            continue
    return found


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested configuration as dotted names."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value if isinstance(value, str) else json.dumps(value)
    return flat
