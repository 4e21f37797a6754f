"""When and how to transfer: every strategy in 36 cells of source, target and size, a recommender, and scores.

Cells: MiniLM at 16, 100 and 1,000 examples; MPNet, the first eight layers of SmolLM2, and MiniLM trained first on
pros_cons at 16 and 100; four targets; three seeds. The training sample is drawn by the seed; 300 test examples are the
same for all. Sources that scores rank are these, the first layers of MiniLM, and MiniLM trained first on other data.
Data: ../shared/data (found through TRANSFEROPT_DATA); without it the page says which targets are lacking.
"""

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks import transfer_report
from benchmarks.transfer_choice import ALSO, COMPARED, HISTORY, LONGEST, SEEDS, SIZES, TARGETS, TAU_SIZE, feature_scores
from core.data.assets import AssetError
from core.data.tasks import TaskError, load_task
from core.evaluate.benchmark import Benchmark, Cell, main
from core.evaluate.rows import Row
from core.hashing import content_key
from core.state import Cache
from core.transfer.scores import transferability
from core.transfer.situation import describe
from core.transfer.sources import Source, open_source, save_source, train_source
from core.transfer.strategies import StrategyConfig, fit
from core.transfer.target import Target

LAYERS = (1, 2, 3, 4, 5)
TEST = 300
CONFIG = StrategyConfig(examples=480, min_epochs=2, max_epochs=15)
EXPERT_TASK, EXPERT_SIZE = "pros_cons", 1000
# Further sources to rank, one for each kind of knowledge: sentiment, topics, intents, inference, paraphrases.
EXPERTS = ("cr", "ag_news", "banking77", "snli", "qqp")
STRATEGY_MODULES = [
    "core.transfer.strategies.share",
    "core.transfer.strategies.linear_probe",
    "core.transfer.strategies.full",
    "core.transfer.strategies.scratch",
    "core.transfer.strategies.adapter",
    "core.transfer.strategies.peft_methods",
    "core.transfer.modalities.text",
]
SCORE_FILES = ("leep", "h_score", "logme", "transrate", "sfda", "gbc")
SITUATION_MODULES = ["core.transfer.situation", *(f"core.transfer.scores.{m}" for m in SCORE_FILES)]
TIMES = ("seconds", "peak_memory_mb", "energy_wh")


def cells(size: str) -> list[Cell]:
    """Cheap and telling cells first: sources compared by their scores, MiniLM, then the dearer sources."""
    targets, history = ([t for t in names if not _lacking(t)] for names in (TARGETS, HISTORY))
    if size == "smoke":
        quick = [_cell(s, "minilm", t, 16, 0) for s in ("share", "linear_probe", "full") for t in targets[:1]]
        return quick + [_situation("minilm", t, 16, 0) for t in targets[:1]]
    expert = () if _lacking(EXPERT_TASK) else ("expert",)
    experts = [f"expert:{task}" for task in EXPERTS if not _lacking(task)]
    ranked = ("minilm", *(f"minilm:{k}" for k in LAYERS), *expert, "smollm2", *experts, "mpnet")
    out = [c for s in ranked[:-1] for t in targets for c in _ranked(s, t, 0)]
    for source, n in [("minilm", 16), ("minilm", 100)]:
        out += [c for seed in SEEDS for t in targets for c in _place(source, t, n, seed)]
    out += [c for t in history for n in (16, 100) for c in _place("minilm", t, n, 0)]
    others = [(s, n) for s in (*expert, "smollm2") for n in SIZES[s]]
    for source, n in [*others, ("minilm", 1000), ("mpnet", 16), ("mpnet", 100)]:
        out += [c for seed in SEEDS for t in targets for c in _place(source, t, n, seed)]
    out += [c for s in ranked for t in targets for seed in SEEDS for c in _ranked(s, t, seed)]
    out += [c for t in history for n in (16, 100) for c in _place("minilm", t, n, 1)]
    out += [_cell(m, "minilm", t, 100, 0) for m in ALSO for t in targets]
    return list({(c.method, *c.settings.values(), c.seed): c for c in out}.values())


def _place(source: str, target: str, n: int, seed: int) -> list[Cell]:
    """All strategies in one situation."""
    return [_situation(source, target, n, seed), *(_cell(m, source, target, n, seed) for m in COMPARED)]


def _ranked(source: str, target: str, seed: int) -> list[Cell]:
    """What a score of a source is compared with."""
    return [_situation(source, target, TAU_SIZE, seed), _cell("full", source, target, TAU_SIZE, seed)]


def _cell(method: str, source: str, target: str, n: int, seed: int) -> Cell:
    settings = {"source": source, "target": target, "n": n}
    return Cell(method, settings, seed, STRATEGY_MODULES, {"config": content_key(CONFIG, TEST, LONGEST)})


def _situation(source: str, target: str, n: int, seed: int) -> Cell:
    modules = [*SITUATION_MODULES, "core.transfer.modalities.text"]
    settings = {"source": source, "target": target, "n": n}
    return Cell("situation", settings, seed, modules, {"config": content_key(TEST, LONGEST)})


def measure(cell: Cell) -> list[Row]:
    """Fit and score one strategy, or describe one situation."""
    source, target, n = (cell.settings[k] for k in ("source", "target", "n"))
    task = load_task(target)
    train = _train(target, n, cell.seed)
    goal = Target.of(task, train)
    if cell.method == "situation":
        values = describe(_source(source), goal, task.labels, cell.seed)
        x = _source(source).features(train)
        extra = {k: transferability(k, x, goal.labels) for k in feature_scores() if k not in values}
        return [cell.row(f"situation.{k}", v) for k, v in (values | extra).items()]
    fitted = fit(cell.method, _source(source), goal, CONFIG, cell.seed)
    test = _test(target)
    scores = fitted.predict(test).scores(["accuracy", "f1_macro", "ece", "brier"], test.labels)
    c = fitted.cost
    budget = {"train_labels": len(train), "train_examples": c.train_examples, "train_steps": c.train_steps}
    costs = {"seconds": c.seconds, "peak_memory_mb": c.peak_memory_mb, "energy_wh": c.energy_wh}
    costs |= {"trained_parameters": c.trained_parameters, "trained_share": c.trained_share}
    return [cell.row(k, v, budget, oracle="test, 300 examples") for k, v in (scores | costs).items()]


@cache
def _source(name: str) -> Source:
    store = Cache()
    if name == "mpnet":
        return open_source("all-mpnet-base-v2", cache=store, max_length=LONGEST)
    if name == "smollm2":
        return open_source("smollm2-135m-instruct", cache=store, max_length=LONGEST, layers=8)
    if name.startswith("expert"):
        return _expert(store, name.partition(":")[2] or EXPERT_TASK)
    layers = int(name.split(":")[1]) if ":" in name else None
    return open_source("all-minilm-l6-v2", cache=store, max_length=LONGEST, layers=layers)


def _expert(store: Cache, trained_on: str) -> Source:
    """MiniLM fully fine-tuned on a source data set, made once."""
    task, base = load_task(trained_on), _source("minilm")
    data = task.splits().train.sample(EXPERT_SIZE, 0)
    key = content_key("expert", base.sha256, data.sha256, CONFIG, LONGEST)

    def build(folder: Path) -> None:
        goal = Target.of(task, data)
        made = train_source(
            base, goal, task.labels, lambda s, t: fit("full", s, t, StrategyConfig(min_epochs=2), seed=0)
        )
        save_source(made, folder)

    source = open_source(store.compute("sources", key, build), cache=store, max_length=LONGEST)
    source.train = data.sample(300, 0)
    return source


@cache
def _train(target: str, n: int, seed: int):
    """n training examples with every class in them: one of each first, then at random."""
    splits = load_task(target).splits()
    rng = np.random.default_rng((seed, n))
    order = rng.permutation(len(splits.train))
    labels = np.array(splits.train.labels)
    first = [order[np.flatnonzero(labels[order] == c)[0]] for c in np.unique(labels)]
    rest = [i for i in order if i not in set(first)]
    return splits.train.take([*first, *rest[: max(n - len(first), 0)]])


@cache
def _test(target: str):
    return load_task(target).splits().test.sample(TEST, 0)


def page(rows: Sequence[Row], folder: Path) -> str:
    """The report, after what is lacking on this machine."""
    return "\n\n".join(filter(None, [_missing(), transfer_report.page(rows, folder)]))


def _missing() -> str:
    lacking = [f"{name} ({_lacking(name)})" for name in (*TARGETS, *HISTORY, *EXPERTS, EXPERT_TASK) if _lacking(name)]
    return "Lacking on this machine: " + "; ".join(lacking) if lacking else ""


@cache
def _lacking(task: str) -> str:
    """Why a task's data cannot be read here; empty when they can."""
    try:
        load_task(task).splits()
    except (TaskError, AssetError) as error:
        return str(error)
    return ""


BENCHMARK = Benchmark(
    "transfer", "When and how to transfer", cells, measure, transfer_report.goals, page, frozenset(TIMES)
)

if __name__ == "__main__":
    shared = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    if shared.is_dir():
        os.environ.setdefault("TRANSFEROPT_DATA", str(shared))
    main(BENCHMARK)
