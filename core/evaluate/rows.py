"""Results are rows. Tables, plots and statistics are pure functions of rows."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import Field

from core.config import Config
from core.hashing import content_key
from core.state import StateError, write_bytes

SCHEMA = 1


class Row(Config):
    """One measured value and everything needed to compare or repeat it."""

    method: str
    metric: str
    value: float | None = Field(description="None when undefined")
    seed: int = 0
    settings: dict[str, Any] = Field(default_factory=dict, description="what else distinguishes the run: task, n, K")
    budget: dict[str, float] = Field(default_factory=dict, description="unit -> amount spent on this value")
    oracle: str = Field("", description="what answered: split, epochs, single run or mean")
    inputs: dict[str, str] = Field(default_factory=dict, description="input name -> sha256")
    version: str = Field("", description="sha256 over the core modules of the method")
    commit: str = ""
    hardware: str = ""
    schema_version: int = SCHEMA

    def key(self) -> str:
        """Rows with equal keys measure the same thing: method + settings + seed + inputs + version."""
        return content_key(self.method, self.settings, self.seed, self.inputs, self.version)


def write_rows(path: str | Path, rows: Iterable[Row]) -> None:
    """Write rows as JSON lines, atomically."""
    text = "".join(json.dumps(r.model_dump(mode="json"), sort_keys=True) + "\n" for r in rows)
    write_bytes(path, text.encode())


def read_rows(path: str | Path) -> list[Row]:
    """Read JSON-lines rows; an absent file is an empty list.

    Raises:
        StateError: a line is damaged or newer than this program.
    """
    path = Path(path)
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            data = json.loads(line)
            newer = data.get("schema_version", 1) > SCHEMA
        except (ValueError, AttributeError):
            raise StateError(f"{path} line {number} is damaged; remove the line to compute it again") from None
        if newer:
            raise StateError(f"{path} line {number} was written by a newer version; update transferopt")
        rows.append(Row(**data))
    return rows


def frame(rows: Iterable[Row]) -> pd.DataFrame:
    """Rows as a table: settings become columns ``settings.NAME``, budget ``budget.UNIT``."""
    records = []
    for r in rows:
        record = {"method": r.method, "metric": r.metric, "value": r.value, "seed": r.seed, "oracle": r.oracle}
        record |= {f"settings.{k}": v for k, v in r.settings.items()}
        record |= {f"budget.{k}": v for k, v in r.budget.items()}
        records.append(record)
    return pd.DataFrame.from_records(records)
