"""When and how to transfer: every strategy in 36 cells of source, target and size, a recommender, and scores.

Cells: MiniLM at 16, 100 and 1,000 examples; MPNet, the first eight layers of SmolLM2, and MiniLM trained first on
pros_cons at 16 and 100; four targets; three seeds. The training sample is drawn by the seed; 300 test examples are the
same for all. Data: ../shared/data (found through TRANSFEROPT_DATA); without it the page says which targets are lacking.
"""

import os
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from core.data.assets import AssetError
from core.data.tasks import TaskError, load_task
from core.evaluate import plots
from core.evaluate.benchmark import Benchmark, Cell, Goal, main
from core.evaluate.rows import Row, write_rows
from core.evaluate.statistics import bootstrap_mean, hierarchical_bootstrap
from core.hashing import content_key
from core.state import Cache, write_bytes
from core.transfer.history import cell_name
from core.transfer.recommend import (
    NO_TRANSFER,
    TOLERANCE,
    Experience,
    Recommender,
    similarity_rule,
    weighted_tau,
)
from core.transfer.scores import SCORES, transferability
from core.transfer.situation import describe
from core.transfer.sources import Source, open_source, save_source, train_source
from core.transfer.strategies import StrategyConfig, fit
from core.transfer.target import Target

TARGETS = ("trec", "cola", "sst2_sent", "subj")
HISTORY = ("mrpc", "cr", "ag_news", "qnli", "rte")  # other data: past transfers to learn from, and all that is tuned on
SEEDS = (0, 1, 2)
SIZES = {"minilm": (16, 100, 1000), "expert": (16, 100), "smollm2": (16, 100), "mpnet": (16, 100)}
COMPARED = ("share", "linear_probe", "full", "lora", "freeze", "adapter", "scratch")
ALSO = ("ia3", "prompt_tuning", "prefix_tuning")
LAYERS = (1, 2, 3, 4, 5)
TAU_SIZE, TEST, LONGEST = 100, 300, 48
CONFIG = StrategyConfig(examples=480, min_epochs=2, max_epochs=15)
EXPERT_TASK, EXPERT_SIZE = "pros_cons", 1000
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
CHOOSERS = ("recommender", "without history", "history alone", "similarity rule")
TIMES = ("seconds", "peak_memory_mb", "energy_wh")


def cells(size: str) -> list[Cell]:
    """Cheap and telling cells first: sources compared by their scores, MiniLM, then the dearer sources."""
    targets, history = ([t for t in names if not _lacking(t)] for names in (TARGETS, HISTORY))
    if size == "smoke":
        quick = [_cell(s, "minilm", t, 16, 0) for s in ("share", "linear_probe", "full") for t in targets[:1]]
        return quick + [_situation("minilm", t, 16, 0) for t in targets[:1]]
    expert = () if _lacking(EXPERT_TASK) else ("expert",)
    ranked = ("minilm", *(f"minilm:{k}" for k in LAYERS), *expert, "smollm2", "mpnet")
    out = [c for s in ranked[:-1] for t in targets for c in _ranked(s, t, 0)]
    for source, n in [("minilm", 16), ("minilm", 100)]:
        out += [c for seed in SEEDS for t in targets for c in _place(source, t, n, seed)]
    out += [c for t in history for n in (16, 100) for c in _place("minilm", t, n, 0)]
    others = [(s, n) for s in (*expert, "smollm2") for n in SIZES[s]]
    for source, n in [*others, ("minilm", 1000), ("mpnet", 16), ("mpnet", 100)]:
        out += [c for seed in SEEDS for t in targets for c in _place(source, t, n, seed)]
    out += [c for s in ranked for t in targets for seed in SEEDS[:2] for c in _ranked(s, t, seed)]
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
        extra = {k: transferability(k, x, goal.labels) for k in _feature_scores() if k not in values}
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
    if name == "expert":
        return _expert(store)
    layers = int(name.split(":")[1]) if ":" in name else None
    return open_source("all-minilm-l6-v2", cache=store, max_length=LONGEST, layers=layers)


def _expert(store: Cache) -> Source:
    """MiniLM fully fine-tuned on the source data set, made once."""
    task, base = load_task(EXPERT_TASK), _source("minilm")
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
    return splits.train.take([*first, *rest[: n - len(first)]])


@cache
def _test(target: str):
    return load_task(target).splits().test.sample(TEST, 0)


@cache
def _feature_scores() -> list[str]:
    return [e.name for e in SCORES if e.facts["needs"] == "features"]


# -- from rows -------------------------------------------------------------------------------------------------------

Where = tuple[str, str, int]


def accuracies(rows: Sequence[Row]) -> dict[Where, dict[str, dict[int, float]]]:
    """(source, target, n) -> strategy -> seed -> accuracy."""
    out: dict[Where, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for r in rows:
        if r.metric == "accuracy" and r.value is not None:
            out[_where(r)][r.method][r.seed] = r.value
    return out


def situations(rows: Sequence[Row]) -> dict[Where, dict[str, float | None]]:
    """(source, target, n) -> measured quantities, means over seeds."""
    found: dict[Where, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for r in rows:
        if r.method == "situation":
            values = found[_where(r)][r.metric.removeprefix("situation.")]
            if r.value is not None:
                values.append(r.value)
    return {w: {k: float(np.mean(v)) if v else None for k, v in q.items()} for w, q in found.items()}


def complete(rows: Sequence[Row]) -> dict[Where, dict[str, float]]:
    """The cells of the 36 in which every compared strategy has its three seeds: mean accuracies."""
    return {w: v for w, v in _means(rows, len(SEEDS)).items() if w[1] in TARGETS}


def _means(rows: Sequence[Row], seeds: int) -> dict[Where, dict[str, float]]:
    """Mean accuracies of the places where every compared strategy has at least so many seeds."""
    table = {}
    for where, methods in accuracies(rows).items():
        if ":" not in where[0] and all(len(methods.get(m, {})) >= seeds for m in COMPARED):
            table[where] = {m: float(np.mean(list(methods[m].values()))) for m in COMPARED}
    return table


def experiences(rows: Sequence[Row], targets: Sequence[str]) -> list[Experience]:
    """What happened on these targets, as a recommender learns it."""
    situation, seconds = situations(rows), _seconds(rows)
    return [
        Experience(situation[w], m, score, seconds.get((w, m), 1.0), w[1], cell_name(*w, "mean of seeds"))
        for w, scores in _means(rows, 1).items()
        if w[1] in targets and w in situation
        for m, score in scores.items()
    ]


def decisions(rows: Sequence[Row]) -> dict[Where, dict[str, str]]:
    """What recommenders and rule pick in each complete cell; no recommender ever saw anything of the cell's target.

    "recommender" learns from the other targets and from the history, "without history" from the other targets alone,
    "history alone" from neither of the four.
    """
    table, situation = complete(rows), situations(rows)
    alone = Recommender().fit(experiences(rows, HISTORY))
    out = {}
    for target in sorted({w[1] for w in table}):
        others = [t for t in TARGETS if t != target]
        models = {
            "recommender": Recommender().fit(experiences(rows, [*others, *HISTORY])),
            "without history": Recommender().fit(experiences(rows, others)),
            "history alone": alone,
        }
        for w in table:
            if w[1] == target and w in situation:
                out[w] = {name: model.recommend(situation[w], COMPARED).pick for name, model in models.items()}
                out[w]["similarity rule"] = similarity_rule(situation[w])
    return out


def regrets(rows: Sequence[Row]) -> dict[str, dict[Where, float]]:
    """Chooser -> cell -> accuracy lost against the best strategy of the cell; constants choose one strategy always."""
    table, chosen = complete(rows), decisions(rows)
    out = {f"always {m}": {w: max(s.values()) - s[m] for w, s in table.items() if w in chosen} for m in COMPARED}
    for chooser in CHOOSERS:
        out[chooser] = {w: max(table[w].values()) - table[w][d[chooser]] for w, d in chosen.items()}
    return out


def taus(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Score -> target -> weighted tau between score and accuracy of full fine-tuning over the sources at n = 100."""
    realised, situation = accuracies(rows), situations(rows)
    out: dict[str, dict[str, float]] = defaultdict(dict)
    for target in TARGETS:
        places = [w for w in situation if w[1] == target and w[2] == TAU_SIZE and realised.get(w, {}).get("full")]
        for score in _feature_scores():
            pairs = [(situation[w].get(score), np.mean(list(realised[w]["full"].values()))) for w in places]
            pairs = [p for p in pairs if p[0] is not None]
            if len(pairs) >= 8:
                value = weighted_tau(*zip(*pairs))
                if value is not None:
                    out[score][target] = value
    return out


def goals(rows: Sequence[Row]) -> list[Goal]:
    """The goals of the transfer level, from rows."""
    lost = regrets(rows)
    done = len(lost["recommender"])
    whole = done == sum(len(v) for v in SIZES.values()) * len(TARGETS)
    constants = {k: v for k, v in lost.items() if k.startswith("always")}
    out = [_goal("cells with all strategies and seeds", "36", float(done), whole)]
    if done:
        within = {k: [float(v[w] <= TOLERANCE) for w in sorted(v)] for k, v in lost.items()}
        best = max(constants, key=lambda k: np.mean(within[k]))
        least = min(constants, key=lambda k: np.mean(list(lost[k].values())))
        share = bootstrap_mean(within["recommender"])
        out.append(
            _goal(
                "recommender within 1 point of the best, share of cells", ">= 0.80", share, whole and share.mean >= 0.8
            )
        )
        ahead = bootstrap_mean(np.array(within["recommender"]) - np.array(within[best]))
        out.append(_goal(f"more cells within 1 point than {best}", ">= 0.10", ahead, whole and ahead.mean >= 0.1))
        for name, other in (
            (f"mean regret saved against {least}", least),
            ("mean regret saved against the similarity rule", "similarity rule"),
        ):
            saved = hierarchical_bootstrap(_by_target(lost[other], lost["recommender"]))
            holds = whole and saved.low is not None and saved.low > 0
            out.append(_goal(name, "> 0, interval above 0", saved, holds))
    else:
        for name, target in (
            ("recommender within 1 point of the best, share of cells", ">= 0.80"),
            ("more cells within 1 point than the best constant strategy", ">= 0.10"),
            ("mean regret saved against the best constant strategy", "> 0, interval above 0"),
            ("mean regret saved against the similarity rule", "> 0, interval above 0"),
        ):
            out.append(_goal(name, target, None, False))
    out += _tau_goals(rows)
    measured = {r.method for r in rows if r.metric == "trained_share"}
    count = float(len(measured & {*COMPARED, *ALSO}))
    out.append(_goal("strategies with trained share, peak memory and seconds", "10", count, count == 10))
    return out


def _tau_goals(rows: Sequence[Row]) -> list[Goal]:
    """The best score of those compared, and an estimate free of that choice: the score chosen on the other targets."""
    found = {k: v for k, v in taus(rows).items() if len(v) == len(TARGETS)}
    name = "weighted Kendall tau with accuracy over at least 8 sources"
    if not found:
        return [_goal(f"{name}, {which}", ">= 0.6", None, False) for which in ("best score", "score chosen elsewhere")]
    best = max(found, key=lambda k: np.mean(list(found[k].values())))
    value, fair = bootstrap_mean(list(found[best].values())), bootstrap_mean(list(_elsewhere(found).values()))
    return [
        _goal(f"{name}, best of {len(found)} scores ({best})", ">= 0.6", value, value.mean >= 0.6),
        _goal(f"{name}, score chosen on the other targets", ">= 0.6", fair, fair.mean >= 0.6),
    ]


def _elsewhere(found: dict[str, dict[str, float]]) -> dict[str, float]:
    """Target -> tau of the score that is best on the mean of the other targets."""
    out = {}
    for target in TARGETS:
        score = max(found, key=lambda k: np.mean([v for t, v in found[k].items() if t != target]))
        out[target] = found[score][target]
    return out


def _goal(goal: str, target: str, value, holds: bool) -> Goal:
    if value is None or isinstance(value, float):
        return Goal(goal, target, value, None, None, bool(holds))
    return Goal(goal, target, value.mean, value.low, value.high, bool(holds))


def _by_target(other: dict[Where, float], ours: dict[Where, float]) -> dict[str, list[float]]:
    out: dict[str, list[float]] = defaultdict(list)
    for w in ours:
        out[w[1]].append(other[w] - ours[w])
    return out


def _seconds(rows: Sequence[Row]) -> dict[tuple[Where, str], float]:
    values: dict[tuple[Where, str], list[float]] = defaultdict(list)
    for r in rows:
        if r.metric == "seconds" and r.value is not None:
            values[_where(r), r.method].append(r.value)
    return {k: float(np.median(v)) for k, v in values.items()}


def _where(r: Row) -> Where:
    return r.settings["source"], r.settings["target"], r.settings["n"]


# -- page ------------------------------------------------------------------------------------------------------------


def page(rows: Sequence[Row], folder: Path) -> str:
    """Tables of strategies, choosers, scores and costs; the plots and a history to start from lie beside the page."""
    write_rows(folder / "transfer.experiences.jsonl", [e.row() for e in experiences(rows, (*TARGETS, *HISTORY))])
    parts = [_missing(), _strategy_table(rows), _chooser_table(rows), _tau_table(rows), _cost_table(rows)]
    figure = _curves(rows)
    if figure is not None:
        write_bytes(folder / "transfer.svg", plots.svg(figure).encode())
        parts.insert(1, "![accuracy against training size](transfer.svg)")
    return "\n\n".join(p for p in parts if p)


def _strategy_table(rows: Sequence[Row]) -> str:
    table, seen = accuracies(rows), (*COMPARED, *ALSO)
    lines = ["## Strategies", "", "Test accuracy, mean over seeds (number of seeds where not three).", ""]
    lines += ["| source | target | n | " + " | ".join(seen) + " |", "|" + "---|" * (len(seen) + 3)]
    for where in sorted(table, key=lambda w: (list(SIZES).index(w[0]) if w[0] in SIZES else 9, *w)):
        if ":" in where[0]:
            continue
        means = {m: np.mean(list(v.values())) for m, v in table[where].items()}
        cells_ = [_mark(means, m, len(table[where].get(m, {}))) for m in seen]
        lines.append("| " + " | ".join(map(str, where)) + " | " + " | ".join(cells_) + " |")
    return "\n".join(lines)


def _mark(means: dict[str, float], method: str, seeds: int) -> str:
    if method not in means:
        return ""
    text = f"{means[method]:.3f}" + (f" ({seeds})" if seeds != len(SEEDS) else "")
    return f"**{text}**" if means[method] == max(means.values()) else text


def _chooser_table(rows: Sequence[Row]) -> str:
    lost, chosen = regrets(rows), decisions(rows)
    if not chosen:
        return ""
    lines = [
        "## Choosing",
        "",
        "Leave one target out: nothing of the held-out target's outcomes is known to the recommender. Regret is "
        "accuracy lost against the best strategy of the cell (mean over seeds). *recommender* has learned from the "
        f"other targets and from past transfers to other data ({', '.join(HISTORY)}), *without history* from the "
        "other targets alone, *history alone* from that other data alone. The kernel's width is chosen within what it "
        "has learned from. That a probe's gain over the largest class and that class's excess are among its measures "
        "was decided after eight cells of an earlier table had shown that the probe wins where there is nothing to "
        "learn (cola): the choice of measures is not free of these targets, what is learned from them is.",
        "",
    ]
    lines += ["| chooser | within 1 point | mean regret | picks |", "|---|---|---|---|"]
    for name, values in sorted(lost.items(), key=lambda item: np.mean(list(item[1].values()))):
        within = np.mean([v <= TOLERANCE for v in values.values()])
        picks = defaultdict(int)
        for d in chosen.values():
            picks[d.get(name, "")] += 1
        shown = ", ".join(f"{k} {v}" for k, v in sorted(picks.items()) if k)
        mean = hierarchical_bootstrap(_by_target(values, dict.fromkeys(values, 0.0)))
        lines.append(f"| {name} | {within:.2f} | {mean} | {shown} |")
    none = sum(d["recommender"] == NO_TRANSFER for d in chosen.values())
    return "\n".join([*lines, "", f"The recommender says 'do not transfer' in {none} of {len(chosen)} cells."])


def _tau_table(rows: Sequence[Row]) -> str:
    found = taus(rows)
    if not found:
        return ""
    lines = [
        "## Scores against realised accuracy",
        "",
        "Weighted Kendall tau over sources at n = 100 (full fine-tuning). The best of several scores is flattered by "
        "the choice; the last row takes for each target the score that did best on the other three.",
        "",
    ]
    lines += ["| score | " + " | ".join(TARGETS) + " | mean |", "|" + "---|" * (len(TARGETS) + 2)]
    for score, values in sorted(found.items(), key=lambda item: -np.mean(list(item[1].values()))):
        row = [f"{values[t]:.2f}" if t in values else "" for t in TARGETS]
        lines.append(f"| {score} | " + " | ".join(row) + f" | {bootstrap_mean(list(values.values()))} |")
    if all(len(v) == len(TARGETS) for v in found.values()):
        fair = _elsewhere(found)
        row = [f"{fair[t]:.2f}" for t in TARGETS]
        lines.append(f"| *chosen on the others* | {' | '.join(row)} | {bootstrap_mean(list(fair.values()))} |")
    return "\n".join(lines)


def _cost_table(rows: Sequence[Row]) -> str:
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for r in rows:
        if r.settings.get("source") == "minilm" and r.settings.get("n") == 100 and r.value is not None:
            values[r.method, r.metric].append(r.value)
    names = [m for m in (*COMPARED, *ALSO) if (m, "seconds") in values]
    if not names:
        return ""
    lines = ["## Cost", "", "MiniLM, 100 examples, medians. Energy is an estimate: CPU seconds times 8 W a core.", ""]
    lines += [
        "| strategy | trained share of parameters | seconds | peak memory MB | energy Wh |",
        "|---|---|---|---|---|",
    ]
    for m in names:
        share, *rest = (np.median(values[m, k]) for k in ("trained_share", "seconds", "peak_memory_mb", "energy_wh"))
        lines.append(f"| {m} | {share:.4%} | {rest[0]:.2f} | {rest[1]:.0f} | {rest[2]:.4f} |")
    return "\n".join(lines)


def _curves(rows: Sequence[Row]):
    table = accuracies(rows)
    curves = {}
    for m in COMPARED:
        points = {}
        for n in SIZES["minilm"]:
            groups = [list(table[w][m].values()) for w in table if w[0] == "minilm" and w[2] == n and table[w].get(m)]
            if groups:
                points[n] = hierarchical_bootstrap(groups)
        if points:
            curves[m] = (list(points), list(points.values()))
    if not curves:
        return None
    return plots.curves_with_bands(curves, "training examples", "accuracy", "MiniLM, mean of four targets", log_x=True)


def _missing() -> str:
    lacking = [f"{name} ({_lacking(name)})" for name in (*TARGETS, *HISTORY, EXPERT_TASK) if _lacking(name)]
    return "Lacking on this machine: " + "; ".join(lacking) if lacking else ""


@cache
def _lacking(task: str) -> str:
    """Why a task's data cannot be read here; empty when they can."""
    try:
        load_task(task).splits()
    except (TaskError, AssetError) as error:
        return str(error)
    return ""


BENCHMARK = Benchmark("transfer", "When and how to transfer", cells, measure, goals, page, frozenset(TIMES))

if __name__ == "__main__":
    shared = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    if shared.is_dir():
        os.environ.setdefault("TRANSFEROPT_DATA", str(shared))
    main(BENCHMARK)
