"""Readers of files from elsewhere against broken and hostile input: never a hang, a crash or a wrong answer.

Part of the table of :mod:`benchmarks.faults`. Each reader gets generated files: valid ones, valid ones with flipped,
cut, doubled or inserted bytes, and structures of the right form with absurd values. The same readers are then fuzzed
with guidance by coverage, where atheris is installed.
"""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.fuzz_coverage import READERS as FUZZED
from benchmarks.fuzz_coverage import available, fuzz_guided
from benchmarks.fuzzing import fuzz
from core.evaluate.benchmark import Cell, Goal
from core.evaluate.rows import Row

CASES = {"smoke": 500, "default": 10_000, "full": 100_000}
GUIDED = ", guided by coverage"
READERS = FUZZED | {name + GUIDED: reader for name, reader in FUZZED.items()}


def cells(size: str) -> list[Cell]:
    return [
        Cell(name, {"cases": CASES[size]}, seed=0, modules=(*reader.modules, "core.config"))
        for name, reader in READERS.items()
    ]


def measure(cell: Cell) -> list[Row]:
    guided = cell.method.endswith(GUIDED)
    if guided and not available():
        return []
    outcome = (fuzz_guided if guided else fuzz)(READERS[cell.method], cell.settings["cases"], cell.seed)
    if outcome.failure:
        print(f"{cell.method}: {outcome.failure}")
    return [
        cell.row("cases", outcome.cases),
        cell.row("accepted", outcome.accepted),
        cell.row("failures", float(bool(outcome.failure))),
    ]


def goals(rows: Sequence[Row]) -> list[Goal]:
    found = []
    for name in READERS:
        mine = [r for r in rows if r.method == name and r.settings["cases"] >= CASES["default"]]
        cases = sum(r.value or 0 for r in mine if r.metric == "cases")
        failures = sum(r.value or 0 for r in mine if r.metric == "failures")
        holds = bool(mine) and failures == 0 and cases >= CASES["default"]
        target = f"{CASES['default']:,} cases, 0 failures"
        value = None if not mine else failures
        found.append(Goal(f"{name}: no hang, crash, half output or wrong answer", target, value, None, None, holds))
    return found


def page(rows: Sequence[Row], _folder: Path) -> str:
    lines = ["| reader | cases | accepted | failures |", "|---|---|---|---|"]
    for name in READERS:
        for cases in sorted({r.settings["cases"] for r in rows if r.method == name}):
            value = {r.metric: r.value for r in rows if r.method == name and r.settings["cases"] == cases}
            lines.append(f"| {name} | {value['cases']:.0f} | {value['accepted']:.0f} | {value['failures']:.0f} |")
    return "\n".join(lines)
