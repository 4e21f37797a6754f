"""The merge engine against the disk, against mergekit and against float64. ``make bench-merge``

Synthetic models (``benchmarks/merge_models.py``): small has 0.35, big 1.1 billion parameters, a base and four experts
in bfloat16. Every timed figure is a whole command, start-up included, and the median of runs that alternate with the
yardstick L (read all inputs once, write the output once, page cache warm, no fsync) and with the peer.

Models lie in ``BENCH_WORK`` (default ``.scratch/merge``); the big ones are removed afterwards unless ``KEEP=1``.
``PEER_VENV`` names an existing environment with mergekit; otherwise one is made.
"""

import os
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path

import yaml

from benchmarks.merge_models import EXPERTS, SHAPES, generate
from benchmarks.merge_reference import distance
from benchmarks.merge_runs import PEER, clear, ours, peer, run, yardstick
from core.evaluate.benchmark import Benchmark, Cell, Goal, main
from core.evaluate.rows import Row
from core.hashing import content_key

WORK = Path(os.environ.get("BENCH_WORK", ".scratch/merge")).absolute()
WEIGHTS = (0.4, 0.3, 0.2, 0.1)
MODULES = ("core.merge.engine", "core.merge.plan", "core.merge.mixing", "core.merge.selection", "core.merge.kernels")
METHODS: dict[str, dict] = {
    "linear": {},
    "task_arithmetic": {},
    "slerp": {"t": 0.5},
    "ties": {"density": 0.5},
    "dare_ties": {"density": 0.5},
    "della": {"density": 0.5, "epsilon": 0.1},
    "breadcrumbs": {"density": 0.9, "gamma": 0.01},
    "sce": {"select_topk": 0.5},
}
LIMITS = {"linear": 2.5, "task_arithmetic": 2.5, "slerp": 2.5} | dict.fromkeys(
    ("ties", "dare_ties", "della", "breadcrumbs", "sce"), 6.0
)
SPEEDUPS = {"linear": 4.0, "task_arithmetic": 4.0, "dare_ties": 12.0, "ties": 20.0}
MEMORY_MB, DIFFER_SHARE, REFUSAL_S = 600.0, 0.0002, 1.0
REPEATS = {"tiny": 2, "small": 5, "big": 5}
PEER_REPEATS = {"linear": 3, "task_arithmetic": 3}  # the slow ones once


def recipe(method: str, size: str) -> dict:
    """The recipe of a cell, in mergekit's words."""
    experts = [str(WORK / size / f"expert{i}") for i in range(EXPERTS)]
    settings, shared = dict(METHODS[method]), {}
    if method == "slerp":
        return {"merge_method": method, "models": [{"model": e} for e in experts[:2]], "base_model": experts[0],
                "parameters": settings, "dtype": "bfloat16"}  # fmt: skip
    if method == "sce":
        shared, settings = settings, {}
    weights = [{} if method == "sce" else {"weight": w} for w in WEIGHTS]
    models = [{"model": e, "parameters": w | settings} for e, w in zip(experts, weights)]
    more = {} if method == "linear" else {"base_model": str(WORK / size / "base")}
    return {"merge_method": method, "models": models, **more, "parameters": shared, "dtype": "bfloat16"}


def cells(size: str) -> list[Cell]:
    """Exactness and speed of every method; on the real sizes against the peer too."""
    modules = [*MODULES, *[f"core.merge.operators.{m}" for m in ("linear", "task_arithmetic", "sphere", "sce")]]
    found = []
    for models in ("tiny",) if size == "smoke" else ("small", "big"):
        inputs = {"shape": content_key(vars(SHAPES[models])), "peer": content_key(PEER)}
        for method in METHODS:
            settings = {"method": method, "models": models}
            found.append(Cell("speed", settings, 0, modules, inputs))
            if models != "big":
                found.append(Cell("exactness", settings, 0, modules, inputs))
            if models == "small" and method in SPEEDUPS:
                found.append(Cell("speedup", settings, 0, modules, inputs))
    return [Cell("refusal", {"models": "tiny"}, 0, modules, {}), *found]


def measure(cell: Cell) -> list[Row]:
    """Rows of one cell."""
    size = cell.settings["models"]
    generate(WORK / size, size)
    if cell.method == "refusal":
        return _refusal(cell)
    method = cell.settings["method"]
    config, out = WORK / f"{method}.{size}.yml", WORK / f"out-{method}-{size}"
    config.write_text(yaml.safe_dump(recipe(method, size), sort_keys=False))
    try:
        step = {"speed": _speed, "speedup": _speedup, "exactness": _exactness}[cell.method]
        return step(cell, method, size, config, out)
    finally:
        clear(out)


def _inputs(method: str, size: str) -> tuple[list[Path], int]:
    """Files a recipe reads and the bytes it writes."""
    data = recipe(method, size)
    named = [m["model"] for m in data["models"]] + [data[k] for k in ("base_model",) if k in data]
    folders = dict.fromkeys(named)
    files = [f for folder in folders for f in sorted(Path(folder).glob("*.safetensors"))]
    return files, sum(f.stat().st_size for f in files) // len(folders)


def _speed(cell: Cell, method: str, size: str, config: Path, out: Path) -> list[Row]:
    """Our command and the yardstick in turn."""
    files, written = _inputs(method, size)
    yardstick(files, written, WORK)
    lengths, runs = [], []
    for _ in range(REPEATS[size]):
        lengths.append(yardstick(files, written, WORK))
        runs.append(run([*ours(), "merge", str(config), str(out)], WORK / "ours.log"))
        clear(out)
    seconds, length = statistics.median(r.seconds for r in runs), statistics.median(lengths)
    return [
        cell.row("seconds", seconds),
        cell.row("cpu_seconds", statistics.median(r.cpu for r in runs)),
        cell.row("yardstick_seconds", length),
        cell.row("ratio", seconds / length),
        cell.row("memory_mb", max(r.megabytes for r in runs)),
        cell.row("load", os.getloadavg()[0]),
    ]


def _speedup(cell: Cell, method: str, size: str, config: Path, out: Path) -> list[Row]:
    """Our command and the peer's in turn on the same recipe."""
    command = peer(WORK)
    mine, theirs = [], []
    for _ in range(PEER_REPEATS.get(method, 1)):
        mine.append(run([*ours(), "merge", str(config), str(out)], WORK / "ours.log"))
        clear(out)
        flags = ["--quiet", "--random-seed", "42"]
        theirs.append(run([*command, str(config), str(out), *flags], WORK / "peer.log"))
        differ = (
            None if method == "dare_ties" else _distance(method, size, out)["differ_share"]
        )  # its draws are its own
        clear(out)
    ours_s, theirs_s = (statistics.median(r.seconds for r in runs) for runs in (mine, theirs))
    return [
        cell.row("seconds", ours_s),
        cell.row("peer_seconds", theirs_s),
        cell.row("speedup", theirs_s / ours_s),
        cell.row("cpu_speedup", statistics.median(r.cpu for r in theirs) / statistics.median(r.cpu for r in mine)),
        cell.row("peer_memory_mb", max(r.megabytes for r in theirs)),
        cell.row("peer_differ_share", differ),
        cell.row("load", os.getloadavg()[0]),
    ]


def _distance(method: str, size: str, out: Path) -> dict[str, float]:
    experts = [WORK / size / f"expert{i}" for i in range(EXPERTS)]
    models, base = (experts, WORK / size / "base") if method != "slerp" else (experts[1:2], experts[0])
    return distance(method, out, models, base, METHODS[method] | {"weights": WEIGHTS})


def _exactness(cell: Cell, method: str, size: str, config: Path, out: Path) -> list[Row]:
    """Share of elements that are not the correctly rounded float64 result."""
    run([*ours(), "merge", str(config), str(out)], WORK / "ours.log")
    return [cell.row(metric, value) for metric, value in _distance(method, size, out).items()]


def _refusal(cell: Cell) -> list[Row]:
    """Seconds until a recipe with a misspelt key is refused, and until a plan is printed; whole commands."""
    good = recipe("ties", "tiny")
    found = []
    for metric, data, flags, word in (
        ("refusal_seconds", {**good, "base_modle": "x"}, [], "did you mean 'base_model'"),
        ("plan_seconds", good, ["--plan"], ""),
    ):
        config = WORK / "refusal.yml"
        config.write_text(yaml.safe_dump(data))
        command = [*ours(), "merge", str(config), str(WORK / "none"), *flags]
        runs = [run(command, WORK / "ours.log", refused=word) for _ in range(5)]
        found.append(cell.row(metric, statistics.median(r.seconds for r in runs)))
    return found


def _value(rows: Sequence[Row], kind: str, metric: str, method: str, models: str) -> float | None:
    for r in rows:
        here = r.settings.get("method", method) == method and r.settings["models"] == models
        if here and (r.method, r.metric) == (kind, metric):
            return r.value
    return None


def goals(rows: Sequence[Row]) -> list[Goal]:
    """The numeric goals of the engine, with their literal targets."""
    found = []

    def goal(text: str, target: str, value: float | None, holds: bool) -> None:
        found.append(Goal(text, target, value, None, None, value is not None and holds))

    for method, limit in LIMITS.items():
        v = _value(rows, "speed", "ratio", method, "big")
        goal(f"{method}, 1.1 billion parameters: time in L", f"at most {limit:g} L", v, v is not None and v <= limit)
    for method, times in SPEEDUPS.items():
        v = _value(rows, "speedup", "speedup", method, "small")
        text = f"{method}, 0.35 billion: faster than mergekit"
        goal(text, f"at least {times:g} times", v, v is not None and v >= times)
    memory = [_value(rows, "speed", "memory_mb", m, "big") for m in METHODS]
    v = None if None in memory else max(memory)
    goal("peak memory, streamed operators, 1.1 billion", "at most 600 MB", v, v is not None and v <= MEMORY_MB)
    for method in METHODS:
        v = _value(rows, "exactness", "differ_share", method, "small")
        u = _value(rows, "exactness", "largest_ulp", method, "small")
        holds = v is not None and u is not None and v <= DIFFER_SHARE and u <= 1
        goal(f"{method}: elements off the correctly rounded result", "at most 0.02 %, one ulp", v, holds)
    v = _value(rows, "refusal", "refusal_seconds", "", "tiny")
    goal("a bad recipe is refused, start-up included", "within 1 s", v, v is not None and v <= REFUSAL_S)
    return found


def page(rows: Sequence[Row], folder: Path) -> str:
    """Tables of times, speed-ups and distances."""
    lines = []
    for models in ("small", "big"):
        heads = ("seconds", "yardstick_seconds", "ratio", "cpu_seconds", "memory_mb", "load")
        lines += _table(f"Speed, {models}", rows, "speed", METHODS, models, heads)
    heads = ("seconds", "peer_seconds", "speedup", "cpu_speedup", "peer_memory_mb", "peer_differ_share")
    lines += _table(f"Against {PEER}, small", rows, "speedup", SPEEDUPS, "small", heads)
    heads = ("differ_share", "largest_ulp", "elements")
    lines += _table(
        "Distance from the correctly rounded float64 result, small", rows, "exactness", METHODS, "small", heads
    )
    plan = _value(rows, "refusal", "plan_seconds", "", "tiny")
    lines += ["", f"`transferopt merge --plan`: {'no rows' if plan is None else f'{plan:.2f} s'}.", ""]
    lines += ["Load is the machine's run queue when the runs ended: above 2 other programs took part of the two cores."]
    return "\n".join(lines)


def _table(title: str, rows: Sequence[Row], kind: str, methods, models: str, metrics: Sequence[str]) -> list[str]:
    lines = [f"## {title}", "", "| method | " + " | ".join(m.replace("_", " ") for m in metrics) + " |"]
    lines.append("|---" * (len(metrics) + 1) + "|")
    for method in methods:
        values = [_value(rows, kind, metric, method, models) for metric in metrics]
        lines.append(f"| {method} | " + " | ".join("" if v is None else f"{v:.4g}" for v in values) + " |")
    return [*lines, ""]


TIMINGS = ("seconds", "cpu_seconds", "yardstick_seconds", "ratio", "memory_mb", "load", "peer_seconds", "speedup")
BENCHMARK = Benchmark(
    name="merge",
    title="Merge engine: speed of the disk, exact to the last bit",
    cells=cells,
    measure=measure,
    goals=goals,
    page=page,
    timing_metrics=frozenset((*TIMINGS, "cpu_speedup", "peer_memory_mb", "refusal_seconds", "plan_seconds")),
)

if __name__ == "__main__":
    try:
        main(BENCHMARK)
    finally:
        if not os.environ.get("KEEP"):
            shutil.rmtree(WORK / "big", ignore_errors=True)
