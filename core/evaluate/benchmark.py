"""Benchmarks: a long table that grows over runs and machines, and goals computed from it.

A benchmark is a list of cells (method, settings, seed, inputs) and a function that measures a cell. Rows are appended
to ``docs/results/NAME.jsonl``; a cell whose rows are there with the same method version is not computed again. Rows of
earlier code count where ``NAME.carried.json`` says so (:mod:`core.evaluate.carry`). From rows alone ``NAME.md`` and
``NAME.goals.json`` are rewritten.
"""

import json
import math
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from core.evaluate.beside import Checkout, place
from core.evaluate.carry import Carried, anonymous, by_cell, draw, latest, read_carried, write_carried
from core.evaluate.machine import commit, hardware
from core.evaluate.rows import Row, read_rows, write_rows
from core.evaluate.verify import DisagreementError, compared
from core.hashing import code_version
from core.progress import track
from core.state import exclusive, write_bytes, write_json

RESULTS = Path("docs/results")
SIZES = ("smoke", "default", "full")


@dataclass(frozen=True)
class Cell:
    """One unit of work of a benchmark. ``modules``: the core modules whose code decides the result."""

    method: str
    settings: Mapping[str, Any]
    seed: int
    modules: Sequence[str]
    inputs: Mapping[str, str] = field(default_factory=dict)

    def row(self, metric: str, value: float | None, budget: Mapping[str, float] | None = None, oracle: str = "") -> Row:
        """A row of this cell; an undefined value is None."""
        if value is not None and not math.isfinite(value):
            value = None
        return Row(
            method=self.method,
            metric=metric,
            value=value,
            seed=self.seed,
            settings=dict(self.settings),
            budget=dict(budget or {}),
            oracle=oracle,
            inputs=dict(self.inputs),
            version=code_version(self.modules),
            commit=commit(),
            hardware=hardware(),
        )


@dataclass(frozen=True)
class Goal:
    """A numeric goal of the project: its literal target and what the rows say.

    ``holds`` is None-proof: a goal without rows has value None and does not hold.
    """

    goal: str
    target: str
    value: float | None
    low: float | None
    high: float | None
    holds: bool

    def as_dict(self) -> dict[str, Any]:
        found = {k: getattr(self, k) for k in ("goal", "target", "value", "low", "high", "holds")}
        return found | {"holds": bool(self.holds)}  # comparisons of arrays give numpy's own bool, which JSON refuses


@dataclass(frozen=True)
class Benchmark:
    """A table and its goals.

    Args:
        name: files are ``docs/results/<name>.*``.
        title: headline of the page.
        cells: size ("smoke", "default", "full") -> cells in the order they should be computed.
        measure: cell -> rows (made with :meth:`Cell.row`).
        goals: current rows -> goals; must give every goal also when rows are missing.
        page: current rows -> Markdown below the goals table (tables, links to plots it wrote next to the page).
        timing_metrics: metrics that a VERIFY or CARRY run does not compare (seconds, ratios of seconds).
    """

    name: str
    title: str
    cells: Callable[[str], Sequence[Cell]]
    measure: Callable[[Cell], Sequence[Row]]
    goals: Callable[[Sequence[Row]], Sequence[Goal]]
    page: Callable[[Sequence[Row], Path], str]
    timing_metrics: frozenset[str] = frozenset()

    def run(
        self,
        size: str = "default",
        verify: int = 0,
        folder: Path = RESULTS,
        minutes: float | None = None,
        prune: bool = False,
        carry: int = 0,
        before: Path | None = None,
    ) -> None:
        """Compute missing cells (at most about ``minutes``), append their rows, rewrite page and goals.

        Another process may work on the same table: rows are added to what is stored by then, and those of a cell that
        it has measured meanwhile stand once.

        Args:
            prune: first drop the rows of older code, which count for nothing. Only where the data of every cell are: a
                cell whose inputs are missing has another key.
            carry: first measure this many cells of every method of older code again; where all their values agree, all
                rows of that code count for the present one.
            before: a checkout of the code that the rows stand for. Then ``carry`` compares what that code measures here
                with what the present code does: for rows of other hardware, which rounds otherwise.

        Raises:
            SystemExit: a cell measured again by ``verify`` or ``carry`` has another value (``verify`` of rows that were
                measured on other hardware: one that no further seed would give).
        """
        if size not in SIZES:
            raise ValueError(f"unknown size {size!r}; allowed: {', '.join(SIZES)}")
        rows = read_rows(self._path(folder))
        if carry and before is not None:
            self._carry_beside(rows, carry, folder, Checkout(before, self.name))
        elif carry:
            rows = self._carry(rows, carry, folder)
        if prune:
            rows = self._store(folder, lambda stored: self.current(stored, folder))
        cells = list(self.cells(size))
        known = self._counted(rows, folder).keys()
        todo = [c for c in cells if _key(c) not in known]
        if verify:
            self._verify(cells, rows, verify, folder)
        stop = None if minutes is None else time.monotonic() + 60 * minutes
        with track(f"bench {self.name}", max(len(todo), 1), "cell") as bar:
            for cell in todo:
                if stop is not None and time.monotonic() > stop:
                    break
                made = self.measure(cell)
                rows = self._store(folder, partial(_with, made, cell.row("", None)))
                bar.advance()
        self.render(rows, folder)

    def current(self, rows: Sequence[Row], folder: Path = RESULTS) -> list[Row]:
        """Rows that count for the present code: those of the cells of the full table."""
        every = {_key(c) for size in SIZES for c in self.cells(size)}
        found = self._counted(rows, folder)
        counted = {id(r) for key in every & found.keys() for r in found[key]}
        return [r for r in rows if id(r) in counted]

    def render(self, rows: Sequence[Row], folder: Path = RESULTS) -> None:
        """Rewrite ``NAME.md`` and ``NAME.goals.json`` from rows."""
        current = self.current(rows, folder)
        goals = list(self.goals(current))
        write_json(folder / f"{self.name}.goals.json", [g.as_dict() for g in goals])
        lines = [f"# {self.title}", "", f"{len(current)} rows of the present code. `make bench-{self.name}`", ""]
        lines += self._on_carried(current, folder) + self._on_others(rows, current)
        lines += ["| goal | target | value | 95 % interval | holds |", "|---|---|---|---|---|"]
        for g in goals:
            value = "no rows" if g.value is None else f"{g.value:.4g}"
            interval = "" if g.low is None or g.high is None else f"{g.low:.4g} to {g.high:.4g}"
            lines.append(f"| {g.goal} | {g.target} | {value} | {interval} | {'yes' if g.holds else 'no'} |")
        body = self.page(current, folder)
        write_bytes(folder / f"{self.name}.md", ("\n".join(lines) + "\n\n" + body.strip() + "\n").encode())

    def _path(self, folder: Path) -> Path:
        return folder / f"{self.name}.jsonl"

    def _store(self, folder: Path, change: Callable[[list[Row]], list[Row]]) -> list[Row]:
        """Change the rows as they are stored now, which another process may have done since they were read."""
        with exclusive(self._path(folder), wait_s=-1):
            rows = change(read_rows(self._path(folder)))
            write_rows(self._path(folder), rows)
        return rows

    def _counted(self, rows: Sequence[Row], folder: Path) -> dict[str, list[Row]]:
        return by_cell(rows, self._carried(folder), self.timing_metrics)

    def _carried(self, folder: Path) -> list[Carried]:
        return read_carried(folder / f"{self.name}.carried.json")

    def _on_carried(self, current: Sequence[Row], folder: Path) -> list[str]:
        now = {c.row("", None).version for size in SIZES for c in self.cells(size)}
        older = [r for r in current if r.version not in now]
        if not older:
            return []
        versions = {r.version for r in older}
        found = [f for f in self._carried(folder) if f.old in versions and f.new in now]
        again = len({cell for f in found for cell in f.cells})
        where = (
            " (by both codes on one machine, whose hardware is not that of the rows)"
            if any(f.beside for f in found)
            else ""
        )
        return [
            f"{len(older)} of them were measured by earlier code (`version` and `commit` of a row say which); "
            f"{again} of its cells, drawn at random, were measured again by the present code{where} and agree in every "
            "value.",
            "",
        ]

    def _on_others(self, rows: Sequence[Row], current: Sequence[Row]) -> list[str]:
        """What is stored of the table's cells and does not count, lest an empty table be taken for a lost one."""
        counted = {anonymous(r) for r in current}
        asked = {anonymous(c.row("", None)) for size in SIZES for c in self.cells(size)}
        waiting = [r for r in rows if anonymous(r) in asked - counted]
        if not waiting:
            return []
        commits = ", ".join(dict.fromkeys(r.commit for r in waiting if r.commit))
        return [
            f"{len(waiting)} further rows were measured by earlier code ({commits}) and do not count: nothing has "
            "shown yet that the present code gives the same (`CARRY=1`).",
            "",
        ]

    def _carry(self, rows: list[Row], per_method: int, folder: Path) -> list[Row]:
        """Measure cells of older code again; once all agree, return the rows with theirs in place of the old ones.

        A run that is stopped in between keeps what it measured, and the next one goes on from there.
        """
        findings = self._carried(folder)
        for (old, new), found in self._older(rows, findings).items():
            both = [(cell, before, after) for cell, before, after in found if after]
            rest = [(cell, before) for cell, before, after in found if not after]
            for cell, before, after in both:
                self._compare(cell, before, after)
            for i in draw([(c.method, c.seed) for c, _ in rest], per_method, [c.method for c, _, _ in both]):
                cell, before = rest[i]
                after = list(self.measure(cell))
                self._compare(cell, before, after)
                self._store(folder, partial(_with, after, cell.row("", None)))
                both.append((cell, before, after))
            gone = {r.model_dump_json() for _, before, _ in both for r in before}
            count = sum(len(before) for _, before, _ in found)
            told = [f"{c.method} {dict(c.settings)} seed {c.seed}" for c, _, _ in both]
            findings.append(Carried(old=old, new=new, commit=commit(), rows=count, cells=told))
            write_carried(folder / f"{self.name}.carried.json", findings)
            rows = self._store(folder, partial(_without, gone))
            print(f"{count} rows of {len(found)} cells of code {old[:8]} count for {new[:8]}")
        return rows

    def _carry_beside(self, rows: Sequence[Row], per_method: int, folder: Path, old: Checkout) -> None:
        """Measure cells by old and new code on this machine; where all agree, rows of the old count for the new.

        The stored rows stay: what was measured here is evidence alone, lest a table mix hardware without need.
        """
        findings = self._carried(folder)
        standing = self._counted(rows, folder)
        groups: dict[tuple[str, str], list[tuple[Cell, list[Row]]]] = {}
        for cell in {_key(c): c for size in SIZES for c in self.cells(size)}.values():
            asked = cell.row("", None)
            version = old.versions.get(place(asked), asked.version)
            before = standing.get(asked.model_copy(update={"version": version}).key(), [])
            if asked.key() not in standing and any(r.metric not in self.timing_metrics for r in before):
                groups.setdefault((version, asked.version), []).append((cell, before))
        for (version, new), found in groups.items():
            drawn = [found[i] for i in draw([(c.method, c.seed) for c, _ in found], per_method)]
            theirs = old.measuring([place(cell.row("", None)) for cell, _ in drawn])
            try:
                after = [self.measure(cell) for cell, _ in drawn]
                again = theirs.rows()
            finally:
                theirs.stop()
            for (cell, _), mine in zip(drawn, after, strict=True):
                self._compare(cell, again[place(cell.row("", None))], mine)
            told = [f"{c.method} {dict(c.settings)} seed {c.seed}" for c, _ in drawn]
            for stored in dict.fromkeys(r.version for _, before in found for r in before):
                count = sum(r.version == stored for _, before in found for r in before)
                beside = f"{version[:8]} in {commit(old.folder)}, {hardware()}"
                findings.append(Carried(old=stored, new=new, commit=commit(), rows=count, cells=told, beside=beside))
            write_carried(folder / f"{self.name}.carried.json", findings)
            print(f"rows of {len(found)} cells of code {version[:8]} count for {new[:8]}")

    def _older(
        self, rows: Sequence[Row], findings: Sequence[Carried]
    ) -> dict[tuple[str, str], list[tuple[Cell, list[Row], list[Row]]]]:
        """(old version, present version) -> cells with their rows of each; those of the present one may be missing."""
        settled = {(f.old, f.new) for f in findings}
        stored: dict[str, list[Row]] = {}
        for r in rows:
            stored.setdefault(anonymous(r), []).append(r)
        groups: dict[tuple[str, str], list[tuple[Cell, list[Row], list[Row]]]] = {}
        for cell in {_key(c): c for size in SIZES for c in self.cells(size)}.values():
            asked = cell.row("", None)
            mine = stored.get(anonymous(asked), [])
            before, after = ([r for r in mine if (r.version == asked.version) is now] for now in (False, True))
            before = latest(before)
            # A timing says nothing about other code.
            if all(r.metric in self.timing_metrics for r in before) or (before[0].version, asked.version) in settled:
                continue
            groups.setdefault((before[0].version, asked.version), []).append((cell, before, after))
        return groups

    def _verify(self, cells: Sequence[Cell], rows: Sequence[Row], count: int, folder: Path) -> None:
        known = self._counted(rows, folder)
        done = [c for c in cells if _key(c) in known]
        counted = [r for found in known.values() for r in found]
        for cell in random.SystemRandom().sample(done, min(count, len(done))):
            self._compare(cell, known[_key(cell)], self.measure(cell), counted)

    def _compare(self, cell: Cell, before: Sequence[Row], after: Sequence[Row], seeds: Sequence[Row] = ()) -> None:
        name = f"{cell.method} {dict(cell.settings)} seed {cell.seed}"
        try:
            told = compared([r for r in before if r.metric not in self.timing_metrics], after, hardware(), seeds)
        except DisagreementError as error:
            raise SystemExit(f"{self.name}: {name} {error}") from None
        print(f"verified {name}: {told}")


def _key(cell: Cell) -> str:
    return cell.row("", None).key()


def _with(made: Sequence[Row], cell: Row, stored: list[Row]) -> list[Row]:
    """``stored`` and what a cell gave, unless the same cell is there already."""
    # a key is a hash, so it is asked of few rows
    alike = (r for r in stored if (r.method, r.seed, r.version) == (cell.method, cell.seed, cell.version))
    return stored if any(r.key() == cell.key() for r in alike) else [*stored, *made]


def _without(gone: Set[str], stored: list[Row]) -> list[Row]:
    """``stored`` but for rows that read, as JSON, like one of ``gone``."""
    return [r for r in stored if r.model_dump_json() not in gone]


def main(benchmark: Benchmark) -> None:
    """Run from the environment: ``SIZE``, ``VERIFY``, ``MINUTES``, ``PRUNE=1``, ``CARRY``, ``BEFORE``."""
    minutes = os.environ.get("MINUTES")
    benchmark.run(
        os.environ.get("SIZE", "default"),
        int(os.environ.get("VERIFY", "0") or 0),
        Path(os.environ.get("RESULTS", RESULTS)),
        float(minutes) if minutes else None,
        os.environ.get("PRUNE") == "1",
        int(os.environ.get("CARRY", "0") or 0),
        Path(os.environ["BEFORE"]) if os.environ.get("BEFORE") else None,
    )
    folder = Path(os.environ.get("RESULTS", RESULTS))
    for g in json.loads((folder / f"{benchmark.name}.goals.json").read_text()):
        value = "no rows" if g["value"] is None else f"{g['value']:.4g}"
        print(f"{'holds ' if g['holds'] else 'misses'}  {g['goal']}: {value} (target {g['target']})")
    print(f"page: {folder / (benchmark.name + '.md')}")
