"""Where recurring benchmarks keep their results: one parquet file a run, written once and never changed.

A run's file appears whole or not at all, and files of different runs never touch each other, so two machines that share
the folder append without meeting. Inside a run a measurement is found by its ``key`` (level, set-up, method, metric,
settings, seed) and stands once.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import Field

from core.config import Config
from core.evaluate.rows import Row
from core.hashing import content_key
from core.state import StateError, atomic_path, exclusive, home

SCHEMA = 2
NAMED_IN_ROWS = {"distill": "task", "transfer": "target"}  # level -> what schema 1 also had in the set-up
VERSION = b"transferopt.schema"
TEXTS = ("run", "time", "commit", "hardware", "libraries", "level", "setup", "method", "metric", "settings", "oracle",
         "budget", "inputs", "version", "key")  # fmt: skip
COLUMNS = (*TEXTS, "seed", "value")


class RunFacts(Config):
    """What all rows of a run share."""

    run: str = Field(description="id of the run; the same again after a retry")
    time: datetime = Field(description="when it started, with time zone")
    commit: str = ""
    hardware: str = ""
    libraries: dict[str, str] = Field(default_factory=dict, description="library -> version")


@dataclass(frozen=True)
class Part:
    """Rows of one level. ``setup`` is what was asked for (size, tasks merged, settings), without the seed, and without
    the task where each task has a run of its own (rows name it): only rows of the same set-up are ever compared, and
    all tasks and seeds of a set-up are the pairs of one comparison."""

    level: str
    setup: Mapping[str, Any]
    rows: Sequence[Row]


def default_folder() -> Path:
    """``<home>/recurring``."""
    return home() / "recurring"


def records(facts: RunFacts, parts: Sequence[Part]) -> pd.DataFrame:
    """One line a measurement, columns ``COLUMNS``; an equal line that occurs again is left out.

    Raises:
        ValueError: the same measurement twice with different values.
    """
    shared = {
        "run": facts.run,
        "time": facts.time.isoformat(),
        "commit": facts.commit,
        "hardware": facts.hardware,
        "libraries": _text(facts.libraries),
    }
    found: dict[str, dict[str, Any]] = {}
    for part in parts:
        setup = _text(part.setup)
        for r in part.rows:
            key = content_key(part.level, setup, r.method, r.metric, r.settings, r.seed)
            line = {**shared, "level": part.level, "setup": setup, "key": key, **_line(r)}
            known = found.setdefault(key, line)
            if known["value"] != line["value"]:
                raise ValueError(
                    f"{part.level}: {r.method} {r.metric} {r.settings} seed {r.seed} was measured twice in run "
                    f"{facts.run}, as {known['value']} and {line['value']}"
                )
    return _typed(pd.DataFrame.from_records(list(found.values()), columns=list(COLUMNS)))


def _line(r: Row) -> dict[str, Any]:
    texts = {name: _text(getattr(r, name)) for name in ("settings", "budget", "inputs")}
    return {
        "method": r.method, "metric": r.metric, "value": r.value, "seed": r.seed, "oracle": r.oracle,
        "version": r.version, **texts,
    }  # fmt: skip


class Store:
    """The runs in a folder."""

    def __init__(self, folder: str | Path | None = None):
        self.folder = Path(folder) if folder is not None else default_folder()

    def append(self, table: pd.DataFrame) -> Path:
        """Write one run's records (see :func:`records`); the file. The same run with the same records is kept as it is.

        Raises:
            ValueError: no records, or records of several runs.
            StateError: this run is there with other records; a run is never changed.
        """
        runs = table["run"].unique()
        if len(runs) != 1:
            raise ValueError(f"append takes the records of one run, got {len(runs)}")
        stamp = datetime.fromisoformat(table["time"].iloc[0]).strftime("%Y%m%dT%H%M%S")
        with exclusive(self.folder / "append", wait_s=60):
            for path in self.folder.glob(f"*-{runs[0]}.parquet"):
                if not _same(_read(path), table):
                    raise StateError(f"run {runs[0]} is stored in {path} with other records; a run is never changed")
                return path
            path = self.folder / f"{stamp}-{runs[0]}.parquet"
            with atomic_path(path) as temporary:
                _write(temporary, table)
        return path

    def read(self) -> pd.DataFrame:
        """All records, oldest run first; an absent folder is an empty table.

        Raises:
            StateError: a file is damaged, foreign, or newer than this program.
        """
        tables = [_read(path) for path in sorted(self.folder.glob("*.parquet"))]
        if not tables:
            return _typed(pd.DataFrame(columns=list(COLUMNS)))
        table = pd.concat(tables, ignore_index=True)
        return table.sort_values(["time", "run"], kind="stable", ignore_index=True)


def fingerprint(table: pd.DataFrame) -> str:
    """Hash over what a table says (which run measured what), whatever the order of its lines."""
    return content_key(sorted(zip(table["run"], table["key"], map(repr, table["value"]), strict=True)))


def _write(path: Path, table: pd.DataFrame) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrow = pa.Table.from_pandas(_typed(table), preserve_index=False)
    arrow = arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), VERSION: str(SCHEMA).encode()})
    pq.write_table(arrow, path, compression="zstd", write_page_checksum=True)


def _read(path: Path) -> pd.DataFrame:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        arrow = pq.read_table(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise StateError(f"{path} is damaged ({error}); remove it, or restore it from a copy") from None
    version = (arrow.schema.metadata or {}).get(VERSION)
    if version is None or not set(COLUMNS) <= set(arrow.column_names):
        raise StateError(f"{path} is no results file of this program; remove it from {path.parent}")
    if int(version) > SCHEMA:
        raise StateError(f"{path} has schema version {int(version)}, this program reads up to {SCHEMA}; update it")
    table = _typed(arrow.to_pandas()[list(COLUMNS)])
    return _without_tasks(table) if int(version) == 1 else table


def _without_tasks(table: pd.DataFrame) -> pd.DataFrame:
    """Records of schema 1 as those of schema 2: their set-ups do not name the one task of a run."""
    setups = [
        _text({k: v for k, v in json.loads(setup).items() if k != NAMED_IN_ROWS.get(level)})
        for level, setup in zip(table["level"], table["setup"], strict=True)
    ]
    return table.assign(setup=setups)


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    kinds = dict.fromkeys(TEXTS, "object") | {"seed": "int64", "value": "float64"}
    return table.astype(kinds)


def _same(a: pd.DataFrame, b: pd.DataFrame) -> bool:
    return fingerprint(a) == fingerprint(b)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
