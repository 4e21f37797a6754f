"""What the product survives: torn files, kills, servers away, a locked database, a full disk, load, hostile files.

A cell is a fault with its strength and a number of trials; ``failures`` counts trials after which something was lost,
doubled, wrong, or not said in one readable line. Flows are children of the ``transferopt`` command at size smoke on one
thread, killed with their whole process group. A cell that needs what is not here (root for a full disk) leaves no row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks import faults_access, faults_files, faults_flows, faults_outages, faults_readers
from benchmarks.faults_flows import CHEAPEST, FLOWS
from benchmarks.flow_process import ROOT
from core.evaluate.benchmark import Benchmark, Cell, Goal, main
from core.evaluate.rows import Row
from core.hashing import content_key, sha256_file

MODULES = ("core.state", "core.evolve.loop", "core.evaluate.rows")
KILLS, BLOCK = 20, 4  # a flow, and a cell
DEARER = [flow for flow in FLOWS if flow != CHEAPEST]
# What talks to the servers is no part of core: its rows count only for the code that they were measured with.
TALK = ("courier", "delivery", "embedded", "mlflow_store", "records", "spool", "tracking")
TALKING = {
    *("MLflow down", "MLflow killed", "database locked", "disk full", "load"),
    *("Prefect down", "Prefect killed", "Prefect gone", "scheduled"),
}


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Args:
        run: (seed, strength, flow or "") -> outcome; an empty one means that something needed is not here.
        goal: what must hold, with ``target`` trials and no failure.
    """

    run: Callable[[int, float, str], dict[str, float]]
    goal: str
    target: int


FAULTS = {
    "torn checkpoint": Fault(
        lambda s, n, _: faults_files.checkpoint(s, n), "a torn or bit-flipped checkpoint is refused by name", 400
    ),
    "torn cache": Fault(
        lambda s, n, _: faults_files.cache(s, n), "a torn or bit-flipped cached file is computed again, equal", 400
    ),
    "torn parquet": Fault(
        lambda s, n, _: faults_files.parquet(s, n), "a damaged parquet file is refused or has another hash", 200
    ),
    "torn asset": Fault(lambda s, n, _: faults_files.asset(s, n), "every damaged file of a fetched asset is named", 10),
    "long loop": Fault(lambda s, n, _: faults_files.memory(s, n), "", 2000),
    "torn results": Fault(
        lambda s, n, f: faults_flows.torn_results(f, s, n), "every damaged file of a flow's results is named", 100
    ),
    "kill": Fault(lambda s, n, f: faults_flows.kills(f, s, n), "", KILLS),
    "torn part": Fault(
        lambda s, n, f: faults_flows.torn_part(f, s, n), "damaged files of unfinished stages are refused or harmless", 4
    ),
    "two at once": Fault(
        lambda s, n, _: faults_flows.two_at_once(s, n), "equal runs in one place at once end equal", 2
    ),
    "same output": Fault(
        lambda s, n, _: faults_flows.same_output(s, n), "the second merge into a folder is told who holds it", 2
    ),
    "disk full": Fault(
        lambda s, n, _: faults_outages.disk_full(s, n), "disk full: one clear error, results whole, resumed equal", 2
    ),
    "MLflow down": Fault(
        lambda s, n, _: faults_outages.mlflow_down(s, n),
        "MLflow down at the start, back after 60 s: all arrives once",
        1,
    ),
    "MLflow killed": Fault(
        lambda s, n, _: faults_outages.mlflow_killed(s, n),
        "MLflow killed in a run, back after 60 s: all arrives once",
        1,
    ),
    "database locked": Fault(
        lambda s, n, _: faults_outages.locked(s, n), "MLflow's database locked for 30 s: all arrives once", 1
    ),
    "Prefect down": Fault(
        lambda s, n, _: faults_outages.prefect_down(s, n), "Prefect down at the start: embedded server, said so", 1
    ),
    "Prefect killed": Fault(
        lambda s, n, _: faults_outages.prefect_killed(s, n), "Prefect killed in a run, back within 5 minutes: equal", 2
    ),
    "Prefect gone": Fault(
        lambda s, n, _: faults_outages.prefect_gone(s, n), "Prefect gone for good: readable stop, next run continues", 1
    ),
    "scheduled": Fault(
        lambda s, n, _: faults_access.scheduled(s, n),
        "a deployment's run scheduled before a crash runs once after it",
        1,
    ),
    "exposed": Fault(
        lambda s, n, _: faults_access.exposed(s, n), "an address but loopback: refused, or only with the password", 1
    ),
    "random state": Fault(
        lambda s, n, f: faults_flows.another_state(f, s, n), "another global random state: equal rows and weights", 5
    ),
    "threads": Fault(lambda s, n, f: faults_flows.more_threads(f, s, n), "", 5),
    "load": Fault(lambda s, n, _: faults_outages.load(s, int(n), 42), "", 8),
}


def cells(size: str) -> list[Cell]:
    found = [
        _cell("torn checkpoint", 300),
        _cell("torn cache", 50),
        _cell("torn parquet", 150),
        _cell("torn asset", 3),
        _cell("long loop", 2000),
        _cell("kill", BLOCK, CHEAPEST),
        _cell("two at once", 2),
        _cell("same output", 2),
        _cell("MLflow killed", 60),
        _cell("disk full", 0.5),
        _cell("Prefect killed", 30),
        _cell("MLflow down", 60),
        _cell("database locked", 30),
        _cell("Prefect down", 1),
        _cell("Prefect gone", 1),
        _cell("scheduled", 20),
        _cell("exposed", 1),
    ]
    if size == "smoke":
        return found[:4] + faults_readers.cells("smoke")
    found += [_cell("torn results", 2, CHEAPEST), _cell("torn part", 4, CHEAPEST), _cell("torn part", 4, "merge")]
    found.append(_cell("torn part", 4, "evolve-merge"))  # its search leaves most unfinished files
    found += [_cell("kill", BLOCK, flow) for flow in DEARER] + faults_readers.cells("default")
    found += [_cell("load", 8), _cell("disk full", 0.8), _cell("Prefect killed", 285)]
    found += [_cell("torn results", 2, flow) for flow in DEARER]
    found += [_cell(fault, 2, flow) for flow in FLOWS for fault in ("random state", "threads")]
    found += [_cell("kill", BLOCK, flow, seed) for seed in range(1, KILLS // BLOCK) for flow in FLOWS]
    return found if size == "default" else found + faults_readers.cells("full")


def _cell(fault: str, strength: float, flow: str = "", seed: int = 0) -> Cell:
    settings: dict[str, Any] = {"strength": strength, **({"flow": flow} if flow else {})}
    return Cell(fault, settings, seed, MODULES, {"delivery": _delivery()} if fault in TALKING else {})


@cache
def _delivery() -> str:
    """Hash of the code that talks to the servers."""
    return content_key([sha256_file(ROOT / "tasks" / f"{name}.py") for name in TALK])


def measure(cell: Cell) -> list[Row]:
    if cell.method in faults_readers.READERS:
        return faults_readers.measure(cell)
    outcome = FAULTS[cell.method].run(cell.seed, cell.settings["strength"], cell.settings.get("flow", ""))
    return [cell.row(metric, value) for metric, value in outcome.items()]


def goals(rows: Sequence[Row]) -> list[Goal]:
    found = []
    for flow in FLOWS:
        mine = [r for r in rows if r.method == "kill" and r.settings["flow"] == flow]
        found.append(_none(f"{flow}: kill -9, then resume: rows, weights and recipe equal", mine, KILLS, "kills"))
        twice = _sum(mine, "paid_twice")
        target = f"0 in {KILLS} kills"
        holds = twice == 0 and (_sum(mine, "trials") or 0) >= KILLS
        found.append(Goal(f"{flow}: no stage computed twice", target, twice, None, None, holds))
    for name, fault in FAULTS.items():
        if fault.goal:
            found.append(_none(fault.goal, [r for r in rows if r.method == name], fault.target, "trials"))
    growth = _sum([r for r in rows if r.method == "long loop"], "growth")
    flat = growth is not None and growth <= 0.05
    found.append(Goal("memory of a search, generations 200 to 2,000", "<= 5 % growth", growth, None, None, flat))
    differ = _sum([r for r in rows if r.method == "threads"], "rows_differ")
    held = differ == 0 and len({r.settings["flow"] for r in rows if r.method == "threads"}) == len(FLOWS)
    found.append(Goal("one and two threads: rows that differ", "0 in 5 flows", differ, None, None, held))
    heavy = [r for r in rows if r.method == "load"]
    lost = _sum(heavy, "failures")
    enough = (_sum(heavy, "points") or 0) >= 10_000 and (_sum(heavy, "task_runs") or 0) >= 1000
    target = "0 faults; >= 10,000 metrics, >= 1,000 task runs"
    found.append(Goal("eight flows at once against one server", target, lost, None, None, lost == 0 and enough))
    return found + faults_readers.goals(rows)


def _none(goal: str, rows: Sequence[Row], trials: int, word: str) -> Goal:
    failures, done = _sum(rows, "failures"), _sum(rows, "trials") or 0
    holds = failures == 0 and done >= trials
    return Goal(goal, f"0 failures in {trials} {word}", failures, None, None, holds)


def _sum(rows: Sequence[Row], metric: str) -> float | None:
    values = [r.value for r in rows if r.metric == metric and r.value is not None]
    return sum(values) if values else None


def page(rows: Sequence[Row], folder: Path) -> str:
    lines = ["| fault | strength | flow | trials | failures | more |", "|---|---|---|---|---|---|"]
    done: dict[tuple, list[Row]] = {}
    for r in rows:
        if r.method in FAULTS:
            done.setdefault((r.method, r.settings["strength"], r.settings.get("flow", "")), []).append(r)
    for (fault, strength, flow), mine in done.items():
        names = dict.fromkeys(r.metric for r in mine if r.metric not in ("trials", "failures"))
        more = ", ".join(f"{n.replace('_', ' ')} {_sum(mine, n):.4g}" for n in names)
        trials, failures = _sum(mine, "trials"), _sum(mine, "failures")
        lines.append(f"| {fault} | {strength:g} | {flow} | {trials:.0f} | {failures:.0f} | {more} |")
    note = (
        "Strength: damages a file, kills a cell, seconds away or locked, share of the needed disk, runs at once. "
        "A disk or Prefect fault is one run a trial. Trials and failures are summed over seeds."
    )
    return "\n".join(lines) + f"\n\n{note}\n\n" + faults_readers.page(rows, folder)


# Not compared by VERIFY: memory; what depends on the moment of a fault or on a file's bytes (a results file has times,
# each of its lengths is a trial); and how many drawn files happened to be sound: hypothesis draws constants of the
# project's modules too, of those that are loaded by then.
MEMORY = frozenset({"megabytes_early", "megabytes_end", "growth"})
MOMENT = frozenset({"chains", "kept", "points", "task_runs", "trials"})
SOUND = frozenset({"accepted", "refused"})
BENCHMARK = Benchmark("faults", "Faults: what is survived", cells, measure, goals, page, MEMORY | MOMENT | SOUND)

if __name__ == "__main__":
    main(BENCHMARK)
