"""Does the recurring benchmark find a regression, and only a regression? Detection curve over planted ones.

`make bench-recurring` (SIZE=smoke|default|full). The rows compared are of real merges of small experts: for every seed
five networks of one hidden layer are fine-tuned from one base on five tasks (points on the sides of a bent boundary,
with noise; made here, nothing is downloaded) and their hidden layer is merged by four operators of the merge engine.
Test sets, training draws and heads change with the seed. The rows go through the results store and the comparison as
those of the flow do.

A regression of 2, 5 or 10 points is planted by making one operator worse: noise is added to its merged weights, so much
that test accuracy falls by that many points on calibration seeds of its own. Two designs: the run repeats the seeds of
its history (what the schedule does), or has fresh seeds. Without a planted regression a run with fresh seeds must not
be flagged; a run with the same seeds is equal to its history by construction.
"""

import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path

import numpy as np

from core.evaluate import plots
from core.evaluate.benchmark import Benchmark, Cell, Goal, main
from core.evaluate.rows import Row
from core.evaluate.statistics import bootstrap_mean
from core.hashing import content_key
from core.merge.static import STATIC, static_deltas
from core.merge.task_vectors import TaskVectors, Tensor, write_layout
from core.recurring.compare import IMPROVEMENT, REGRESSION, Change, compare
from core.recurring.store import Part, RunFacts, Store, records
from core.state import Cache, write_bytes

MODULES = ["core.recurring.compare", "core.recurring.store", "core.merge.static"]
OPERATORS = {"average": 1.0, "task_arithmetic": 0.4, "ties": 1.0, "dare_linear": 0.4}
WORSE = "task_arithmetic"
TASKS, SEEDS, TEST = 5, 4, 300  # as many tasks, seeds and test examples as the flow's default size
INPUTS, HIDDEN, NOISE = 24, 32, 0.3
TRAINING, STEPS, RATE = 300, 120, 0.02
POINTS = (2, 5, 10)
FRESH, SAME, NULL = "fresh seeds", "same seeds", "nothing planted"
REPEATS = {"smoke": (1, 1), "default": (20, 10), "full": (20, 10)}  # without and with a planted regression
CALIBRATION = tuple(range(900_000, 900_030))


@lru_cache
def base() -> tuple[np.ndarray, np.ndarray]:
    """The network that all experts start from: hidden weights [H, D] and bias [H]."""
    rng = np.random.default_rng(0)
    return rng.normal(0, INPUTS**-0.5, (HIDDEN, INPUTS)).astype("f4"), np.zeros(HIDDEN, "f4")


@lru_cache
def rules() -> np.ndarray:
    """What the tasks ask: two directions each [T, 2, D], partly shared by all tasks."""
    rng = np.random.default_rng(1)
    own, shared = rng.normal(size=(TASKS, 2, INPUTS)), rng.normal(size=(1, 2, INPUTS))
    return own + 0.5 * shared


def examples(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [T, count, D] and labels [T, count]: on which side of a bent boundary a point lies, with noise."""
    x = rng.normal(size=(TASKS, count, INPUTS))
    a, b = np.einsum("tkd,tnd->ktn", rules(), x) / np.sqrt(INPUTS)
    return x, (np.maximum(a, b) + rng.normal(0, NOISE, a.shape) > 0.5).astype(int)


def hidden(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Activations of inputs [..., n, D] under weights [..., H, D] and biases [..., H]."""
    return np.tanh(x @ np.swapaxes(weight, -1, -2) + bias[..., None, :])


def fine_tuned(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every task's expert, all at once: weights [T, H, D], biases [T, H] and heads [T, H + 1].

    Full-batch Adam on the logistic loss; the seed draws the training examples and the heads' start.
    """
    rng = np.random.default_rng([seed, 3])
    x, y = examples(TRAINING, rng)
    start = base()
    p = [np.repeat(start[0][None], TASKS, 0).astype(float), np.repeat(start[1][None], TASKS, 0).astype(float),
         rng.normal(0, 0.1, (TASKS, HIDDEN + 1))]  # fmt: skip
    first, second = ([np.zeros_like(v) for v in p] for _ in range(2))
    for step in range(1, STEPS + 1):
        h = hidden(x, p[0], p[1])
        logit = np.einsum("tnh,th->tn", h, p[2][:, :-1]) + p[2][:, -1:]
        error = (1 / (1 + np.exp(-logit)) - y) / TRAINING
        back = error[..., None] * p[2][:, None, :-1] * (1 - h**2)
        head = np.concatenate([np.einsum("tn,tnh->th", error, h), error.sum(1, keepdims=True)], axis=1)
        for k, g in enumerate((np.einsum("tnh,tnd->thd", back, x), back.sum(1), head)):
            first[k] = 0.9 * first[k] + 0.1 * g
            second[k] = 0.999 * second[k] + 0.001 * g**2
            change = first[k] / (1 - 0.9**step) / (np.sqrt(second[k] / (1 - 0.999**step)) + 1e-8)
            p[k] -= RATE * change
    return p[0], p[1], p[2]


@lru_cache(maxsize=256)
def merged(seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The merged delta of every operator (flat: weights, then biases), made by the merge engine's operators; heads."""
    weight, bias, heads = fine_tuned(seed)
    start = np.concatenate([v.ravel() for v in base()])
    flat = np.concatenate([weight.reshape(TASKS, -1), bias.reshape(TASKS, -1)], axis=1).astype("f4")
    tensors = [Tensor("layer.0.weight", (HIDDEN, INPUTS), 0), Tensor("layer.0.bias", (HIDDEN,), HIDDEN * INPUTS)]
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "base.npy", start)
        np.save(Path(folder) / "deltas.npy", flat - start)
        names = [f"task{t}" for t in range(TASKS)]
        write_layout(Path(folder), names, tensors, "raw", {}, content_key(seed, flat))
        vectors = TaskVectors(Path(folder))
        made = static_deltas(vectors, {m: STATIC[m] for m in OPERATORS}, seed, Cache(Path(folder) / "cache"))
        return {m: np.array(d) for m, d in zip(made.names, made.deltas, strict=True)}, heads


@lru_cache(maxsize=8192)
def accuracies(seed: int, method: str, noise: float = 0.0) -> tuple[float, ...]:
    """Test accuracy of every task under one operator, its merged weights disturbed by ``noise`` (relative size)."""
    deltas, heads = merged(seed)
    delta = OPERATORS[method] * deltas[method].astype(float)
    delta = delta + np.random.default_rng([seed, 7]).normal(0, 1, delta.shape) * noise * delta.std()
    weight, bias = base()
    size = weight.size
    x, y = examples(TEST, np.random.default_rng([seed, 5]))
    h = hidden(x, weight + delta[:size].reshape(weight.shape), bias + delta[size:])
    logit = np.einsum("tnh,th->tn", h, heads[:, :-1]) + heads[:, -1:]
    return tuple(((logit > 0) == y).mean(axis=1).tolist())


@lru_cache
def noise_for(points: float) -> float:
    """Noise that costs the worse operator so many points on calibration seeds, by bisection.

    Raises:
        ValueError: no noise costs so much.
    """
    whole = _mean(CALIBRATION, 0.0)
    low, high = 0.0, 1.0
    while whole - _mean(CALIBRATION, high) < points:
        low, high = high, 2 * high
        if high > 1000:
            raise ValueError(f"{WORSE} cannot be made {points} points worse: it has {whole:.1f} %")
    for _ in range(7):
        middle = (low + high) / 2
        if whole - _mean(CALIBRATION, middle) < points:
            low = middle
        else:
            high = middle
    return high


def _mean(seeds: Sequence[int], noise: float) -> float:
    """Mean accuracy of the worse operator in percent."""
    return 100 * float(np.mean([accuracies(s, WORSE, noise) for s in seeds]))


def run_rows(seeds: Sequence[int], noise: float = 0.0) -> list[Row]:
    """What a benchmark run measures: every operator on every task and seed, one of them perhaps made worse."""
    return [
        Row(method=m, metric="accuracy", value=value, seed=s, settings={"task": f"task{t}"})
        for s in seeds
        for m in OPERATORS
        for t, value in enumerate(accuracies(s, m, noise if m == WORSE else 0.0))
    ]


def block(number: int) -> list[int]:
    """The seeds of a run; blocks do not share any."""
    return list(range(100 * number, 100 * number + SEEDS))


def compared(history: Sequence[int], now: Sequence[int], noise: float) -> list[Change]:
    """Through the store and back: a run without regression, then one with fresh or the same seeds."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        for number, rows in enumerate((run_rows(history), run_rows(now, noise))):
            facts = RunFacts(run=f"run{number}", time=datetime(2026, 1, 3, 1, tzinfo=UTC) + timedelta(weeks=number))
            store.append(records(facts, [Part("merge", {"tasks": TASKS}, rows)]))
        table = store.read()
    return compare(table[table["run"] == "run1"], table[table["run"] == "run0"])


def cells(size: str) -> list[Cell]:
    without, planted = REPEATS[size]
    found = [Cell(NULL, {"seeds": FRESH, "points": 0}, r, MODULES) for r in range(without)]
    found += [
        Cell("planted", {"seeds": seeds, "points": p}, r, MODULES)
        for p in sorted(POINTS, key=lambda p: p != 5)
        for seeds in (SAME, FRESH)
        for r in range(planted)
    ]
    return found


def measure(cell: Cell) -> list[Row]:
    """History: the block of this repeat; run: the same block, or the next one."""
    points, again = cell.settings["points"], cell.settings["seeds"] == SAME
    noise = noise_for(points) if points else 0.0
    changes = compared(block(cell.seed), block(cell.seed if again else cell.seed + 1), noise)
    worse = next(c for c in changes if c.method == WORSE)
    others = [c for c in changes if not points or c.method != WORSE]
    return [
        cell.row("found", float(worse.verdict == REGRESSION)),
        cell.row("false flags", float(sum(c.verdict in (REGRESSION, IMPROVEMENT) for c in others))),
        cell.row("effect", worse.effect),
        cell.row("p", worse.p),
    ]


def goals(rows: Sequence[Row]) -> list[Goal]:
    hits = _values(rows, "planted", SAME, 5, "found")
    flagged = [float(v > 0) for v in _values(rows, NULL, FRESH, 0, "false flags")]
    found = bootstrap_mean(hits) if len(hits) >= 10 else None
    false = bootstrap_mean(flagged) if len(flagged) >= 20 else None
    return [
        Goal(
            "planted regression of 5 points found, of 10",
            "at least 9 of 10",
            None if found is None else 10 * found.mean,
            None if found is None else 10 * found.low,
            None if found is None else 10 * found.high,
            found is not None and found.mean >= 0.9,
        ),
        Goal(
            "repeats with fresh seeds flagged, of 20",
            "at most 1 of 20",
            None if false is None else 20 * false.mean,
            None if false is None else 20 * false.low,
            None if false is None else 20 * false.high,
            false is not None and sum(flagged) <= 1,
        ),
    ]


def page(rows: Sequence[Row], folder: Path) -> str:
    if not rows:
        return "No rows yet."
    lines = [
        f"Rows: real merges of small experts ({TASKS} tasks, {SEEDS} seeds a run, {len(OPERATORS)} operators, {TEST} "
        f"test examples a task; see `benchmarks/recurring.py`). The operator made worse is {WORSE}; run and history "
        "have the same seeds (as the schedule has) or fresh ones. With so few fresh seeds the comparison is cautious: "
        "the goal of detection is about the same seeds, the one of false flags about fresh ones.",
        "",
        "| planted, points | seeds | repeats | found | measured effect, points | repeats that flag another operator |",
        "|---|---|---|---|---|---|",
    ]
    curves = {}
    for seeds in (SAME, FRESH):
        x, y = [], []
        for points in (0, *POINTS):
            method = "planted" if points else NULL
            found = _values(rows, method, seeds, points, "found")
            if not found:
                continue
            effect = bootstrap_mean(_values(rows, method, seeds, points, "effect"))
            other = sum(v > 0 for v in _values(rows, method, seeds, points, "false flags"))
            count = f"{int(sum(found))} of {len(found)}"
            lines.append(f"| {points} | {seeds} | {len(found)} | {count} | {effect} | {other} |")
            x.append(points)
            y.append(bootstrap_mean([100 * v for v in found]))
        if x:
            curves[seeds] = (x, y)
    figure = plots.curves_with_bands(curves, "planted regression, points", "found, % of repeats", "Detection")
    write_bytes(folder / "recurring_detection.svg", plots.svg(figure).encode())
    return "\n".join([*lines, "", "![detection curve, 95 % intervals over repeats](recurring_detection.svg)"])


def _values(rows: Sequence[Row], method: str, seeds: str, points: int, metric: str) -> list[float]:
    wanted = {"seeds": seeds, "points": points}
    return [r.value for r in rows if (r.method, r.metric) == (method, metric) and r.settings == wanted]


BENCHMARK = Benchmark(
    "recurring", "Recurring benchmark: which regressions it finds", cells, measure, goals, page
)  # fmt: skip

if __name__ == "__main__":
    main(BENCHMARK)
