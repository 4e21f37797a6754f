"""Static merges of one encoder's experts: eight tasks with local data, else the archive suite.

`make bench-static-merge` (SIZE=smoke|default|full). A cell is one expert, or one method with its scale chosen on
validation data, of one training seed. Experts, task vectors and merged deltas are cached by content, so all methods of
a seed share them and a run that was stopped loses at most a cell. Accuracies are of the test sets.
"""

import json
import resource
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from core.data.assets import find_local, resolve
from core.data.tasks import load_task
from core.evaluate import plots
from core.evaluate.benchmark import Benchmark, Cell, Goal, main
from core.evaluate.rows import Row, frame
from core.evaluate.statistics import bootstrap_mean, paired_wilcoxon
from core.hashing import code_version, content_key
from core.heap import give_back
from core.merge.candidate import InMemoryModel
from core.merge.experts import CARD, Expert, ExpertConfig, load_expert, train_expert
from core.merge.static import STATIC, static_deltas, static_methods, tune
from core.merge.suite import load_suite, objectives, predict, rows_of
from core.merge.task_vectors import task_vectors
from core.models.load import load_encoder
from core.models.train import TrainConfig
from core.state import Cache, write_bytes, write_json

BASE = "all-minilm-l6-v2"
SIZES = {
    "smoke": {"tasks": 2, "examples": 96, "epochs": 1, "validation": 40, "test": 60, "seeds": 1},
    "default": {"tasks": 8, "examples": 1500, "epochs": 3, "validation": 200, "test": 1000, "seeds": 3},
    "full": {"tasks": 8, "examples": 1500, "epochs": 3, "validation": 200, "test": None, "seeds": 5},
}
PROBE, CEILING, HEADS = "frozen base with probe", "individual experts", "base with heads"
TRAINING = "expert"
METHODS = [CEILING, PROBE, HEADS, *STATIC]
MODULES = ["core.merge.static", "core.merge.suite", "core.merge.experts"]


def suite() -> tuple[str, list[str]]:
    """The eight-task suite where its data is, else the archive suite."""
    name = "eight" if find_local("text") else "archive"
    return name, load_suite(name)


@lru_cache
def data_hash(task: str) -> str:
    """Hash over a task's rows."""
    return content_key(load_task(task).splits().sha256)


def cells(size: str) -> list[Cell]:
    s = SIZES[size]
    name, tasks = suite()
    chosen = tasks[: s["tasks"]]
    settings = {"suite": name, "size": size, "tasks": len(chosen)}
    inputs = {t: data_hash(t) for t in chosen}
    methods = [m for m in METHODS if m not in STATIC or m in static_methods([m], len(chosen))]
    found = []
    for seed in range(s["seeds"]):
        found += [Cell(TRAINING, settings, seed, MODULES, {t: inputs[t]}) for t in chosen]
        found += [Cell(m, settings, seed, MODULES, inputs) for m in methods]
    return found


@lru_cache(maxsize=1)
def world(size: str, names: tuple[str, ...], seed: int) -> dict[str, Any]:
    """Experts of a seed, the merged delta of every method, the tasks' validation data, and one encoder to try in."""
    give_back()  # the trainings' memory, before the merges take theirs
    s = SIZES[size]
    base = resolve(BASE)
    experts = [load_expert(train_expert(t, base, expert_config(size, seed))) for t in names]
    methods = static_methods(list(STATIC), len(experts))
    vectors = static_deltas(task_vectors(base.path, {e.task: e.folder for e in experts}), methods, seed)
    encoder = _encoder(base.path)
    return {
        "base": base,
        "experts": experts,
        "methods": methods,
        "vectors": vectors,
        "validation": objectives(encoder, experts, "validation", s["validation"], seed),
        "model": InMemoryModel(encoder, vectors, [0] * len(vectors.tensors)),
        "individual": individual(experts, s["test"], seed),
    }


def expert_config(size: str, seed: int) -> ExpertConfig:
    """How the experts of a seed are trained."""
    s = SIZES[size]
    train = TrainConfig(lr=1e-4, head_lr=3e-3, epochs=s["epochs"], batch_size=32)
    return ExpertConfig(examples=s["examples"], seed=seed, train=train)


def individual(experts: Sequence[Expert], limit: int | None, seed: int) -> dict[str, float]:
    """Task -> test accuracy of its own expert, which normalises every row; kept by content."""
    key = content_key("individual", [e.sha256 for e in experts], limit, seed, code_version(MODULES))

    def build(folder: Path) -> None:
        found = {e.task: float(_single(e, limit, seed).correct.mean()) for e in experts}
        write_json(folder / "accuracies.json", found)

    return json.loads((Cache().compute("static-merge", key, build) / "accuracies.json").read_text())


def measure(cell: Cell) -> list[Row]:
    size, names = cell.settings["size"], tuple(cell.inputs)
    if cell.method == TRAINING:
        world.cache_clear()  # the seed before is done
        give_back()
        return trained(cell)
    w, limit, seed = world(size, names, cell.seed), SIZES[size]["test"], cell.seed
    experts, scale = w["experts"], None
    spent = {"train_labels": float(sum(e.card["train_labels"] for e in experts))}
    if cell.method == CEILING:
        found = {e.task: _single(e, limit, seed) for e in experts}
    elif cell.method in (PROBE, HEADS):
        encoder = _encoder(w["base"].path)
        found = predict(encoder, objectives(encoder, experts, "test", limit, seed, cell.method == PROBE))
    else:
        scale, examples = tuned(w, cell.method)
        spent["task_examples"] = float(examples)
        model = w["model"].write(coefficients(w, cell.method, scale))
        found = predict(model, objectives(model, experts, "test", limit, seed))
    rows = [
        cell.row(f"{r.metric}/{r.settings['task']}", r.value, spent, oracle="test")
        for r in rows_of(cell.method, found, w["individual"])
    ]
    if scale is not None:
        rows.append(cell.row("scale", scale, spent, oracle="validation"))
    return [*rows, peak(cell)]


def trained(cell: Cell) -> list[Row]:
    """Fine-tune one expert; its memory is measured where it was not there already."""
    (task,) = cell.inputs
    begun = time.time()
    expert = load_expert(train_expert(task, resolve(BASE), expert_config(cell.settings["size"], cell.seed)))
    worked = (expert.folder / CARD).stat().st_mtime >= begun
    labels = float(expert.card["train_labels"])
    rows = [cell.row("train_examples", expert.card["train_examples"], {"train_labels": labels})]
    return [*rows, peak(cell)] if worked else rows


def peak(cell: Cell) -> Row:
    """Peak memory of this process so far; one that only continues has seen less, so the largest row counts."""
    return cell.row("peak_memory_mb", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)


def tuned(w: dict[str, Any], method: str) -> tuple[float, int]:
    """A method's scale chosen on validation, and the task-examples that this cost."""
    wanted = {method: w["methods"][method]}

    def score(column: np.ndarray) -> float:
        return _mean(predict(w["model"].write(coefficients(w, method, float(column[0, 0]))), w["validation"]))

    found = tune(w["vectors"], wanted, score)[method]
    return found.scale, len(found.curve) * sum(t.size for t in w["validation"].values())


def coefficients(w: dict[str, Any], method: str, scale: float) -> np.ndarray:
    """One column: ``scale`` for the method's delta, zero for all others."""
    order = list(w["vectors"].names)
    column = np.zeros((len(order), 1))
    column[order.index(method)] = scale
    return column


def goals(rows: Sequence[Row]) -> list[Goal]:
    eight = [r for r in rows if r.settings["suite"] == "eight" and r.settings["size"] != "smoke"]
    gains = _gains(eight)
    large = sum(np.mean(v) >= 5 for v in gains.values()) if gains else None
    peaks = [r for r in rows if r.metric == "peak_memory_mb" and r.settings["size"] != "smoke"]
    trained_here = any(r.method == TRAINING for r in peaks)  # without a training the peak is not known
    memory = max(r.value for r in peaks) if trained_here else None
    return [
        Goal(
            "tasks of the eight that gain 5 points or more over a frozen-base probe",
            "at least 5",
            None if large is None else float(large),
            None,
            None,
            large is not None and large >= 5,
        ),
        Goal("peak memory, MB", "under 3000", memory, None, None, memory is not None and memory < 3000),
    ]


def page(rows: Sequence[Row], folder: Path) -> str:
    rows = [r for r in rows if r.settings["size"] != "smoke"] or list(rows)
    if not rows:
        return "No rows yet."
    table = frame(rows)
    parts = []
    for (name, size), part in table.groupby(["settings.suite", "settings.size"], sort=False):
        tasks = [m.split("/")[1] for m in part["metric"].unique() if m.startswith("accuracy/") and m != "accuracy/mean"]
        methods = [m for m in METHODS if (part["method"] == m).any()]
        seeds = part.loc[part["method"] == CEILING, "seed"].nunique()  # experts of a further seed may be there alone
        parts += [f"## Suite {name}, size {size}, seeds: {seeds}", "", _table(part, methods, tasks), ""]
        normal = {m: _values(part, m, "normalised/mean") for m in methods}
        bars = {"normalised accuracy": {m: bootstrap_mean(v) for m, v in normal.items() if m != CEILING}}
        figure = plots.bars_with_intervals(
            bars, "% of the individual experts", f"Static merges, suite {name}", reference=100
        )
        write_bytes(folder / f"static_merge_{name}_{size}.svg", plots.svg(figure).encode())
        parts += [f"![normalised accuracy](static_merge_{name}_{size}.svg)", ""]
        gains = _gains([r for r in rows if r.settings["suite"] == name and r.settings["size"] == size])
        listed = ", ".join(f"{t} {np.mean(v):+.1f}" for t, v in gains.items())
        parts += [f"Fine-tuning gains over the frozen base with a probe, points: {listed}.", ""]
    return "\n".join(parts)


def _table(part: Any, methods: list[str], tasks: list[str]) -> str:
    lines = [
        "| method | " + " | ".join(tasks) + " | normalised mean | p against probe |",
        "|---" * (len(tasks) + 3) + "|",
    ]
    for m in methods:
        cells = [f"{100 * np.mean(_values(part, m, f'accuracy/{t}')):.1f}" for t in tasks]
        mean = bootstrap_mean(_values(part, m, "normalised/mean"))
        shown = f"{mean.mean:.1f}" + ("" if mean.low is None else f" ({mean.low:.1f} to {mean.high:.1f})")
        a = [v for t in tasks for v in _values(part, m, f"accuracy/{t}")]
        b = [v for t in tasks for v in _values(part, PROBE, f"accuracy/{t}")]
        p = "" if m == PROBE or len(a) != len(b) or len(a) < 6 else f"{paired_wilcoxon(a, b):.3f}"
        lines.append(f"| {m} | " + " | ".join(cells) + f" | {shown} | {p} |")
    return "\n".join(lines)


def _values(part: Any, method: str, metric: str) -> list[float]:
    chosen = part[(part["method"] == method) & (part["metric"] == metric)].sort_values("seed")
    return [float(v) for v in chosen["value"]]


def _gains(rows: Sequence[Row]) -> dict[str, list[float]]:
    """Task -> points that fine-tuning gains over the probe, one value a seed."""
    found: dict[tuple[str, str, int], float] = {
        (r.method, r.metric.split("/")[1], r.seed): r.value for r in rows if r.metric.startswith("accuracy/")
    }
    gains: dict[str, list[float]] = {}
    for (method, task, seed), value in found.items():
        if method == CEILING and task != "mean" and (PROBE, task, seed) in found:
            gains.setdefault(task, []).append(100 * (value - found[PROBE, task, seed]))
    return gains


def _encoder(folder: Path) -> Any:
    encoder = load_encoder(folder)
    encoder.max_length = min(ExpertConfig().max_length, encoder.max_length)
    return encoder


def _single(expert: Expert, limit: int | None, seed: int) -> Any:
    encoder = _encoder(expert.folder)
    return predict(encoder, objectives(encoder, [expert], "test", limit, seed))[expert.task]


def _mean(found: Any) -> float:
    return float(np.mean([p.correct.mean() for p in found.values()]))


BENCHMARK = Benchmark(
    name="static_merge",
    title="Static merging",
    cells=cells,
    measure=measure,
    goals=goals,
    page=page,
    timing_metrics=frozenset({"peak_memory_mb"}),
)

if __name__ == "__main__":
    main(BENCHMARK)
