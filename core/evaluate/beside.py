"""Cells of a benchmark measured by another checkout of the project, on this machine.

Rows of other hardware cannot tell whether a change of code changed a value: the hardware did. So the code that the rows
stand for is run here as well, beside the present one, and the two are compared. Each has a cache of its own: what one
code trained would else be taken for what both train.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

from core.data.assets import asset_cache
from core.evaluate.rows import Row
from core.state import home

# Runs in the other checkout: a line for every row, of the cells that are asked for (null: one row of each, unmeasured).
PROGRAM = """
import importlib, json, sys
name, asked, out = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
benchmark, seen = importlib.import_module("benchmarks." + name).BENCHMARK, set()
with open(out, "w") as file:
    for size in ("smoke", "default", "full"):
        for cell in benchmark.cells(size):
            place = json.dumps([cell.method, dict(cell.settings), cell.seed, dict(cell.inputs)], sort_keys=True)
            if place in seen or (asked is not None and place not in asked):
                continue
            seen.add(place)
            for row in [cell.row("", None)] if asked is None else benchmark.measure(cell):
                file.write(json.dumps([place, row.model_dump(mode="json")]) + "\\n")
                file.flush()
"""


def place(row: Row) -> str:
    """Which cell a row is of, whatever code measured it, as :data:`PROGRAM` writes it."""
    return json.dumps([row.method, row.settings, row.seed, row.inputs], sort_keys=True)


@dataclass(frozen=True)
class Checkout:
    """A folder of the project at another commit, and the benchmark's name."""

    folder: Path
    name: str

    def __post_init__(self) -> None:
        if not (self.folder / "benchmarks" / f"{self.name}.py").is_file():
            raise SystemExit(
                f"{self.folder} is no checkout with the benchmark {self.name}; make one by: git worktree add"
            )

    @cached_property
    def versions(self) -> Mapping[str, str]:
        """Place of every cell of the other code -> its version there."""
        return {key: found[0].version for key, found in self.measuring(None).rows().items()}

    def measuring(self, asked: Sequence[str] | None) -> "Measuring":
        """Begin to measure the cells of ``asked`` places, one after the other (None: only name them all)."""
        out = tempfile.NamedTemporaryFile("r", suffix=".jsonl")  # noqa: SIM115 (read when the process has ended)
        command = [sys.executable, "-c", PROGRAM, self.name, json.dumps(asked), out.name]
        places = {"TRANSFEROPT_HOME": str(home() / "before"), "TRANSFEROPT_ASSETS": str(asset_cache().root)}
        environment = os.environ | {"PYTHONPATH": str(self.folder.resolve())} | places
        process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=subprocess.DEVNULL)
        return Measuring(process, out, self.folder)


@dataclass(frozen=True)
class Measuring:
    """A running measurement."""

    process: subprocess.Popen
    out: IO[str]
    folder: Path

    def rows(self) -> dict[str, list[Row]]:
        """Place -> rows, when all are measured.

        Raises:
            SystemExit: the other code failed.
        """
        if self.process.wait():
            raise SystemExit(f"the code in {self.folder} could not measure its cells (see above)")
        found: dict[str, list[Row]] = {}
        for line in self.out:
            key, row = json.loads(line)
            found.setdefault(key, []).append(Row(**row))
        return found

    def stop(self) -> None:
        """End it, where nobody waits for it any more."""
        self.process.kill()
        self.process.wait()
        self.out.close()
