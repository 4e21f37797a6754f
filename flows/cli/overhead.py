"""What orchestration costs: a flow's wall time against the same stage bodies in a plain loop (``make overhead``).

The plain loop calls what the stages call, with the same configurations, into bare folders: no Prefect, no MLflow, no
hashes, no cache of stages. Flow and loop take turns in one warm process, each from an empty cache. Starting the
interpreter, the embedded server and Ray is measured apart. Fifty seeds are fanned out twice: in the flow's own process,
and on two worker processes, whose start the flow's time includes; the loop beside them is the same.
"""

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

from core.evaluate.benchmark import Benchmark, Cell, Goal, main
from core.evaluate.rows import Row
from core.evaluate.statistics import bootstrap_mean
from core.hashing import content_key
from core.state import MANIFEST, home, write_json
from core.transfer.experiment import DataSteps
from core.transfer.problem import Problem
from core.transfer.strategies import StrategyConfig
from flows.runtime import FLOWS
from tasks import courier, embedded, tracking
from tasks.adapt import AdaptConfig, adapt
from tasks.fan_out import Records, gather
from tasks.load_data import load_data
from tasks.load_model import load_model
from tasks.runner import VARIABLE, configured, prefect_runner, reachable_server
from tasks.stage import Artifact, Output, Stage

LIMIT = 1.05
LAYER = {name: version(name) for name in ("prefect", "mlflow")}
SEEDS, MODEL, TASK = 50, "all-minilm-l6-v2", "rt_plot"
PROBLEM = Problem(source=MODEL, target=TASK, knowledge="weights", domain=TASK, objective="accuracy", budget="50 fits")
# Flows by the length of their default run, the shortest first: there the same overhead weighs most.
CORE = {
    "transfer": ["core.transfer.experiment"],
    "search": ["core.nas.search"],
    "distill": ["core.distill.study"],
    "merge": ["core.merge.static", "core.merge.suite"],
}
SHORTEST = ["transfer", "search"]
RUNNERS = {"seeds": "threads", "seeds on workers": "processes:2"}
PAIRS = 3


@contextmanager
def plain() -> Iterator[None]:
    """Inside, a stage is its body and a folder."""
    number = count()

    def call(stage: Stage, config: Any, **inputs: Any) -> Artifact:
        key = f"{next(number)}-{stage.name}"
        out = Output(home() / "cache" / "plain" / key)
        out.folder.mkdir(parents=True)
        stage.body(out, config, **inputs)
        write_json(out.folder / MANIFEST, {"facts": {**out.facts, "run": ""}, "sha256": content_key(key)})
        return Artifact(name=stage.name, path=str(out.folder), sha256=content_key(key))

    nobody = tracking.Run("plain", "plain", "operation", Records(home()), PROBLEM)
    with patch.object(Stage, "__call__", call), patch.object(Stage, "submit", call), tracking.inside(nobody):
        yield


def seeds_body(seeds: int) -> dict[int, Artifact]:
    """One fit and evaluation of about a second for each seed."""
    model, data = load_model(MODEL), load_data(TASK)
    shared = {"strategy": "full", "source": MODEL, "target": TASK, "modality": "text", "sizes": (32,), "max_length": 64}
    shared |= {"steps": DataSteps(), "test_examples": 100, "training": StrategyConfig(examples=96, min_epochs=2)}
    return gather({s: adapt.submit(AdaptConfig(seeds=(s,), **shared), source=model, data=data) for s in range(seeds)})


@cache
def seeds_flow(runner: str) -> Callable[[int], None]:
    from prefect import flow

    @flow(name="fifty-seeds", task_runner=prefect_runner(configured(runner)))
    def run(seeds: int) -> None:
        with tracking.start("fifty-seeds", "operation", PROBLEM, None, {"flow": "fifty-seeds"}):
            seeds_body(seeds)

    def on_runner(seeds: int) -> None:
        with patch.dict(os.environ, {VARIABLE: runner}), reachable_server(configured(runner)):
            run(seeds)

    return on_runner


def works(cell: Cell, small: bool = False) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The cell's work as a flow and as a plain loop; ``small`` to warm up."""
    if cell.method in RUNNERS:
        seeds = 2 if small else cell.settings["seeds"]
        return lambda: seeds_flow(RUNNERS[cell.method])(seeds), lambda: seeds_body(seeds)
    flow = FLOWS.get(cell.method)
    form = flow.form(size="smoke" if small else cell.settings["size"])
    return lambda: flow.run(form), lambda: flow.body(form.resolved())


def timed(work: Callable[[], Any]) -> float:
    """Wall seconds from an empty cache."""
    shutil.rmtree(home() / "cache", ignore_errors=True)
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def pair(cell: Cell) -> list[Row]:
    """Flow and loop, one after the other; who begins alternates with the seed."""
    as_flow, as_loop = works(cell)
    if cell.method not in _warm:  # imports, kernels, server; not measured
        timed(works(cell, small=True)[0])
        _warm.add(cell.method)

    def loop() -> None:
        with plain():
            as_loop()

    order = [("flow_s", as_flow), ("plain_s", loop)]
    seconds = {name: timed(work) for name, work in (order if cell.seed % 2 == 0 else order[::-1])}
    values = {**seconds, "ratio": seconds["flow_s"] / seconds["plain_s"]}
    return [cell.row(name, value) for name, value in values.items()]


_warm: set[str] = set()


def starts(cell: Cell) -> list[Row]:
    """Seconds until the interpreter has the flows, the embedded server answers, a local Ray has run a first task."""
    programs = {
        "interpreter": "import flows.merge",
        "server": "import tasks, time; from prefect.server.api.server import SubprocessASGIServer as S; "
        "t = time.perf_counter(); S().start(); print(time.perf_counter() - t); S().stop()",
        "ray": "import tasks, ray, time; t = time.perf_counter(); "
        "ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False); ray.get(ray.remote(lambda: 1).remote()); "
        "print(time.perf_counter() - t)",
    }
    rows = []
    for name, program in programs.items():
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
        whole = time.perf_counter() - started
        if done.returncode:
            print(f"{name} was not measured: {(done.stderr.splitlines() or [''])[-1]}")
            continue
        rows.append(cell.row(f"{name}_s", float(done.stdout.split()[-1]) if done.stdout.strip() else whole))
    return rows


def cells(size: str) -> list[Cell]:
    """smoke: does it run; default: the two shortest flows and 50 seeds, three pairs each; full: every flow."""
    modules = {**CORE, **{name: ["core.transfer.experiment"] for name in RUNNERS}}

    def pairs(method: str, number: int, **settings: Any) -> list[Cell]:
        return [Cell(method, settings, seed, modules[method], LAYER) for seed in range(number)]

    if size == "smoke":
        return [*pairs("transfer", 1, size="smoke"), *pairs("seeds", 1, seeds=2)]
    start = Cell("start", {}, 0, ["core.state"], LAYER)
    flows = list(CORE) if size == "full" else SHORTEST
    fanned = [c for name in RUNNERS for c in pairs(name, PAIRS, seeds=SEEDS)]
    measured = [*fanned, *(c for f in flows for c in pairs(f, PAIRS, size="default"))]
    return [start, *sorted(measured, key=lambda c: c.seed)]  # a pair of everything before a second of anything


def measure(cell: Cell) -> list[Row]:
    try:
        return starts(cell) if cell.method == "start" else pair(cell)
    finally:
        sys.stdout.flush()


def of(rows: Sequence[Row], method: str, settings: Mapping[str, Any], metric: str) -> list[float]:
    return [r.value for r in rows if (r.method, r.settings, r.metric) == (method, settings, metric)]


def works_shown(rows: Sequence[Row]) -> list[tuple[str, str, dict[str, Any]]]:
    """Name, method and settings: 50 seeds, the shortest flows, and the others that were measured."""
    flows = [f for f in CORE if f in SHORTEST or of(rows, f, {"size": "default"}, "ratio")]
    named = [(f"flow {f} at default size", f, {"size": "default"}) for f in flows]
    fanned = [(f"{SEEDS} seeds fanned out ({runner})", method, {"seeds": SEEDS}) for method, runner in RUNNERS.items()]
    return [*fanned, *named]


def goals(rows: Sequence[Row]) -> list[Goal]:
    """The ratio of the medians, with the interval of the pairs' mean ratio."""
    found = []
    for name, method, settings in works_shown(rows):
        flow, loop, ratios = (of(rows, method, settings, m) for m in ("flow_s", "plain_s", "ratio"))
        text = f"{name}: wall time of the flow over that of the same core calls in a plain loop"
        if not ratios:
            found.append(Goal(text, f"<= {LIMIT}", None, None, None, False))
            continue
        value = statistics.median(flow) / statistics.median(loop)
        interval = bootstrap_mean(ratios)
        found.append(Goal(text, f"<= {LIMIT}", value, interval.low, interval.high, value <= LIMIT))
    return found


def page(rows: Sequence[Row], folder: Path) -> str:
    lines = ["Flow and plain loop take turns in one warm process, each from an empty cache.", ""]
    if not rows:
        return "\n".join([*lines, "Nothing was measured with these versions of Prefect and MLflow yet."])
    lines += ["| work | pairs | flow s (median) | plain loop s (median) | difference s |", "|---|---|---|---|---|"]
    for name, method, settings in works_shown(rows):
        flow, loop = (of(rows, method, settings, m) for m in ("flow_s", "plain_s"))
        if flow:
            a, b = statistics.median(flow), statistics.median(loop)
            lines.append(f"| {name} | {len(flow)} | {a:.1f} | {b:.1f} | {a - b:.1f} |")
    lines += ["", "Start-up, not in the ratios:", "", "| what | s |", "|---|---|"]
    words = {
        "interpreter_s": "interpreter with a flow imported",
        "server_s": "embedded Prefect server",
        "ray_s": "Ray on this machine, to its first result",
    }
    lines += [f"| {words[r.metric]} | {r.value:.1f} |" for r in rows if r.method == "start"]
    hardware, commits = sorted({r.hardware for r in rows}), sorted({r.commit for r in rows})
    return "\n".join([*lines, "", f"Hardware: {', '.join(hardware)}. Commits: {', '.join(commits)}."])


BENCHMARK = Benchmark(
    name="overhead",
    title="Orchestration overhead",
    cells=cells,
    measure=measure,
    goals=goals,
    page=page,
    timing_metrics=frozenset({"flow_s", "plain_s", "ratio", "interpreter_s", "server_s", "ray_s"}),
)

if __name__ == "__main__":
    if not os.environ.get("TRANSFEROPT_HOME"):
        sys.exit("call `make overhead`: it gives the runs a home of their own, whose cache is emptied between them")
    courier.begin()  # as the command does: MLflow is told by a process beside the flow
    try:
        main(BENCHMARK)
    finally:
        embedded.stop()
        courier.stop()
