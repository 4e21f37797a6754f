"""Append what the levels measured to the results store of recurring benchmarks."""

import shutil
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import Field

from core.config import Config
from core.evaluate.curves import ends
from core.evaluate.machine import commit, hardware
from core.evaluate.rows import Row
from core.recurring.store import Part, RunFacts, Store, records
from tasks import tracking
from tasks.stage import Artifact, Output, stage

TABLE = "rows.parquet"


class PartConfig(Config):
    """What a part of the benchmark is."""

    level: str = Field(description="flow that was run")
    setup: dict[str, Any] = Field(description="what was asked of it, without the seed")


class RecordConfig(Config):
    """Which run appends."""

    run: str = Field(description="id of the benchmark run, the same after a retry")
    started: datetime = Field(description="when it started")
    parts: dict[str, PartConfig] = Field(description="name of a part -> what it is")


@stage("record-rows", modules=["core.recurring.store"])
def record_rows(out: Output, config: RecordConfig, results: Mapping[str, Artifact]) -> None:
    """Append the rows of all parts as one file of the store; hand on the ends of their curves as rows."""
    libraries = {k.removeprefix("version."): v for k, v in tracking.environment().items() if k.startswith("version.")}
    facts = RunFacts(
        run=config.run, time=config.started, commit=commit(), hardware=hardware(), libraries=libraries
    )  # fmt: skip
    parts = [Part(p.level, p.setup, results[name].rows()) for name, p in config.parts.items()]
    table = records(facts, parts)
    stored = Store().append(table)
    shutil.copyfile(stored, out.folder / TABLE)
    out.rows([_of_level(r, p.level) for p in parts for r in ends(p.rows)])
    out.metrics({"rows": len(table)})
    spent: dict[str, float] = {}
    for artifact in results.values():
        for unit, amount in largest(artifact.rows()).items():
            spent[unit] = spent.get(unit, 0.0) + amount
    out.budget(spent)


def _of_level(row: Row, level: str) -> Row:
    return row.model_copy(update={"settings": {"level": level, **row.settings}})


def largest(rows: list[Row]) -> dict[str, float]:
    """The largest amount of each budget unit: rows state what was spent up to them."""
    spent: dict[str, float] = {}
    for r in rows:
        for unit, amount in r.budget.items():
            spent[unit] = max(spent.get(unit, 0.0), amount)
    return spent
