"""Load a table of measured architectures of a user's own: the file becomes an artifact, its hash part of every key."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from core.config import Config
from core.data.assets import content_hash
from core.hashing import code_version, sha256_file
from core.nas.oracles import get_oracle
from core.state import write_json
from tasks.stage import DATA, Artifact, Output, stage

SUFFIXES = (".parquet", ".csv")
MODULES = ["core.nas.oracles.table"]


class OwnTable(Config):
    """A file of genotypes, and the column that answers."""

    path: str = Field(description="parquet or csv file with a column genotype")
    space: str = Field(description="space of the genotypes")
    metric: str = Field(description="column that answers")
    minimise: bool = Field(False, description="the metric is better when smaller; answers are its negative")
    test: str = Field("", description="column that only reports see, empty without one")

    @property
    def file(self) -> str:
        return Path(self.path).name

    @property
    def answer(self) -> str:
        """What an answer is, in words."""
        return f"minus {self.metric}" if self.minimise else self.metric

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the oracle ``table`` but for the path: a result depends on what the file holds, not on where.

        Without a test column the metric is itself the score, so nothing else can tell a lucky run: it is called
        noise-free, and the best answer is kept.
        """
        told = {"reference": [self.test], "noise": "single run"} if self.test else {"noise": "none"}
        return {"space": self.space, "metric": self.metric, "minimise": self.minimise, **told}


@dataclass(frozen=True)
class Checked:
    """A table that was read whole: its rows and the sha256 of the file."""

    table: OwnTable
    rows: int
    sha256: str

    def __str__(self) -> str:
        t = self.table
        return f"{t.file} ({t.space}, {t.answer}, {self.rows:,} cells, sha256 {self.sha256[:12]})"


class LoadTableConfig(Config):
    """Which table, and what identifies its bytes."""

    table: OwnTable
    rows: int = Field(description="cells of the table")
    sha256: str = Field(description="hash of the file")


def is_table(name: str) -> bool:
    """Whether ``name`` is that of a table file, there or not."""
    return Path(name).suffix in SUFFIXES


def check_table(table: OwnTable, least: int, use: str) -> Checked:
    """Read the table whole, so that what is wrong with it is said before any work.

    Raises:
        ValueError: no such file or column, a row that cannot be used, or fewer than the ``least`` rows of ``use``.
    """
    path = Path(table.path).expanduser()
    oracle = get_oracle("table", path=str(path), **table.settings)
    rows = len(oracle.answers)
    if rows < least:
        raise ValueError(f"{table.path} has {rows} cells, but {use} needs {least}")
    return Checked(table, rows, content_hash(path))


def load_table(checked: Checked) -> Artifact:
    """The artifact of a table."""
    return _load(LoadTableConfig(table=checked.table, rows=checked.rows, sha256=checked.sha256))


@stage("load-table", modules=MODULES, keep="nothing")
def _load(out: Output, config: LoadTableConfig) -> None:
    """Copy the file and describe it; MLflow gets hash, columns and counts, no row.

    A copy and no link: whoever appends a row to the file in place would change the artifact of earlier runs.
    """
    table = config.table
    copy = out.folder / table.file
    shutil.copyfile(Path(table.path).expanduser(), copy)
    if sha256_file(copy) != config.sha256:
        raise ValueError(f"{table.path} changed while it was loaded; run again")
    # the code that reads rows belongs to what is handed on: no later stage names it among its modules
    source = {"file": table.file, "reader": code_version(MODULES)}
    schema = {"genotype": table.space, "metric": table.metric, "answer": table.answer, "test": table.test}
    described = {"name": table.file, "sha256": config.sha256, "source": source, "schema": schema}
    write_json(out.folder / DATA, {**described, "profile": {"rows": config.rows}})
    out.metrics({"rows": config.rows})


def path_in(artifact: Artifact | None) -> dict[str, str]:
    """The setting ``path`` of an oracle that answers from a loaded table; nothing for one that has data of its own."""
    return {} if artifact is None else {"path": str(artifact.folder / described(artifact)["name"])}


def described(artifact: Artifact) -> dict[str, Any]:
    """Name, hash, columns and rows of a loaded table."""
    return json.loads((artifact.folder / DATA).read_text())
