"""Goals and page of the architecture-search benchmark: pure functions of its rows (see :mod:`benchmarks.search`)."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from core.evaluate import plots
from core.evaluate.benchmark import Goal
from core.evaluate.rows import Row
from core.evaluate.statistics import Interval, bootstrap_mean, percentile_harm
from core.state import write_bytes

BLOCK, SEEDS, QUERIES = 10, 50, 150
AT = (10, 25, 50, 100, 150)
CURVE = (1, 2, 3, 5, 7, 10, 12, 15, 20, 25, 30, 33, 40, 50, 60, 75, 100, 125, 150)
TARGETS: dict[str, tuple[str, dict[str, str], str]] = {  # name -> oracle, its settings, reference that is the score
    "nb201 cifar10": ("nb201-table", {"dataset": "cifar10"}, "valid_mean"),
    "nb201 cifar100": ("nb201-table", {"dataset": "cifar100"}, "valid_mean"),
    "nb201 imagenet16": ("nb201-table", {"dataset": "imagenet16"}, "valid_mean"),
    "nb101": ("nb101-pool", {}, "valid"),
    "darts": ("darts-surrogate", {}, "predicted"),
    "graph cora": ("nasbench-graph", {"dataset": "cora"}, "test"),
}
NB201 = tuple(t for t in TARGETS if t.startswith("nb201"))
GAINS = dict(zip(NB201, (0.45, 0.8, 0.1), strict=True))  # points wanted at 25 queries
BEST = dict(zip(NB201, (91.607, 73.493, 46.733), strict=True))  # mean validation of the table's best cell
LEVELS = dict(zip(NB201, (91.56, 73.40, 46.45), strict=True))  # accuracy wanted at 50
BUDGETS = (25, 50, 100)
TEN = [(s, t) for t in NB201 for s in ("nb101", "darts")]
TEN += [("nb201 cifar10", "nb101"), ("darts", "nb101"), ("nb101", "darts"), ("nb201 cifar10", "darts")]
HARD = [("graph cora", t) for t in (*NB201, "nb101", "darts")]
HARD += [("nb201 cifar10", "graph cora"), ("nb101", "graph cora")]
HARD += [("nb101 shuffled", "nb201 cifar100"), ("graph chains", "nb201 cifar100"), ("graph chains", "nb101")]
PLAIN = ("random", "rea", "local_search", "ga", "parameters_first", "flops_first", "predictor_onehot")
LATENT, ENCODER = ("target_latent", "bridge"), "encoder"
PAPER = "bridge, ranked"  # the paper's search as the paper counts it
TWIN, EAGER, OURS, HEAD = "predictor", "predictor_eager", "transfer", "head start"
KENDALL = {"nb201": 0.827, "nb101": 0.848}
Frame = Mapping[tuple, np.ndarray]


def kind(source: str, target: str) -> str:
    """``near``: another space, same data set; ``far``: another data set too, or convolution and graph."""
    data = {"nb201 cifar100": "cifar100", "nb201 imagenet16": "imagenet16"}
    same = data.get(source, "cifar10") == data.get(target, "cifar10")
    return "near" if same and "graph" not in source + target and "shuffled" not in source else "far"


def frame(rows: Sequence[Row]) -> Frame:
    """(method, target, source, prior, metric) -> values by seed (or block)."""
    found: dict[tuple, dict] = defaultdict(dict)
    for r in rows:
        metric, _, seed = r.metric.partition(" seed ")
        where = (r.method, r.settings.get("target", ""), r.settings.get("source", ""), r.settings.get("prior", False))
        found[(*where, metric)][int(seed) if seed else r.seed] = r.value
    known = {k: np.array([v[s] for s in sorted(v)], dtype=float) for k, v in found.items()}
    return {k: v for k, v in known.items() if np.isfinite(v).all()}


def get(data: Frame, method: str, target: str, source: str, prior: bool, metric: str) -> np.ndarray:
    return data.get((method, target, source, prior, metric), np.zeros(0))


def goal(text: str, target: str, interval: Interval | None, holds: Callable[[float], bool]) -> Goal:
    if interval is None:
        return Goal(text, target, None, None, None, False)
    return Goal(text, target, interval.mean, interval.low, interval.high, bool(holds(interval.mean)))


def head_goals(data: Frame) -> list[Goal]:
    pairs: dict[tuple[str, str], list[np.ndarray]] = defaultdict(list)
    plain: dict[tuple[str, str], list[np.ndarray]] = defaultdict(list)
    for s, t in TEN:
        pair = (s.split()[0], t.split()[0])
        pairs[pair].append(get(data, HEAD, t, s, False, "top20 percentile"))
        plain[pair].append(get(data, HEAD, t, "", True, "top20 percentile"))
    if not all(len(v) for vs in (*pairs.values(), *plain.values()) for v in vs):
        none = [("mean over six pairs", "<= 5"), ("worst of six pairs", "<= 10"), ("pairs better", ">= 5")]
        return [goal(f"head start, {text}", literal, None, bool) for text, literal in none]
    means = {p: float(np.mean([v.mean() for v in vs])) for p, vs in pairs.items()}
    wins = int(sum(means[p] < np.mean([v.mean() for v in plain[p]]) for p in means))
    blocks = np.mean([np.mean(vs, axis=0) for vs in pairs.values()], axis=0)
    worst = max(means.values())
    return [
        goal("head start: top-20 percentile, mean over six pairs", "<= 5", bootstrap_mean(blocks), lambda v: v <= 5),
        goal(
            "head start: top-20 percentile, worst of six pairs", "<= 10", Interval(worst, None, None), lambda v: v <= 10
        ),
        goal(
            "head start: pairs better than parameters-first", ">= 5 of 6", Interval(wins, None, None), lambda v: v >= 5
        ),
    ]


def reach(curve: np.ndarray, level: float) -> float:
    """Queries at which a mean curve reaches ``level``, linear between measured points; twice the budget if never."""
    best = np.maximum.accumulate(curve)
    at = int(np.searchsorted(best, level))
    if at == 0:
        return float(CURVE[0])
    if at == len(CURVE):
        return 2.0 * QUERIES
    low, high = best[at - 1], best[at]
    return CURVE[at - 1] + (CURVE[at] - CURVE[at - 1]) * (level - low) / max(high - low, 1e-12)


def ratio(data: Frame, against: Sequence[str]) -> Interval | None:
    """Median over the ten pairs of the queries ours needs to reach the best of ``against`` at 100."""
    ours = [[get(data, OURS, t, s, False, f"mean@{n}") for n in CURVE] for s, t in TEN]
    rest = [[get(data, m, t, "", False, "mean@100") for m in against] for _, t in TEN]
    blocks = min(len(v) for group in (*ours, *rest) for v in group)
    if blocks == 0:
        return None

    def median(chosen: np.ndarray) -> float:
        found = []
        for curve, levels in zip(ours, rest, strict=True):
            mean = np.array([v[chosen].mean() for v in curve])
            found.append(reach(mean, max(v[chosen].mean() for v in levels)))
        return float(np.median(found))

    rng = np.random.default_rng(0)
    drawn = [median(rng.integers(0, blocks, blocks)) for _ in range(400)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(median(np.arange(blocks)), float(low), float(high))


def paired(data: Frame, target: str, source: str, prior: bool, n: int, twin: str = TWIN) -> np.ndarray:
    a = get(data, OURS, target, source, prior, f"score@{n}")
    b = get(data, twin, target, "", prior, f"score@{n}")
    m = min(len(a), len(b))
    return a[:m] - b[:m]


def pairs_present() -> list[tuple[str, str, bool]]:
    return [(s, t, p) for s, t in TEN for p in (False, True)] + [(s, t, False) for s, t in HARD]


def harm(data: Frame, n: int, twin: str = TWIN) -> Interval | None:
    """Mean over pairs of the share of runs below the 5th percentile of the twin's."""
    rates = []
    for s, t, p in pairs_present():
        if twin != TWIN and p:
            continue
        a, b = get(data, OURS, t, s, p, f"score@{n}"), get(data, twin, t, "", p, f"score@{n}")
        if len(a) and len(b):
            rates.append(100 * percentile_harm(a, b))
    return bootstrap_mean(rates) if rates else None


def goals(rows: Sequence[Row]) -> list[Goal]:
    data = frame(rows)
    return [
        *head_goals(data),
        *budget_goals(data),
        *early_goals(data),
        *harm_goals(data),
        *beside_goals(data),
        *encoder_goals(data),
    ]


def budget_goals(data: Frame) -> list[Goal]:
    """Queries to reach what searches without a source have at 100."""
    rivals = (
        ("best of random, REA, local search", 25, ("random", "rea", "local_search")),
        ("no-source predictor, one-hot features", 33, ("predictor_onehot",)),
        ("no-source predictor, generic features", 50, (TWIN,)),
    )
    return [
        goal(
            f"queries to reach the {text} at 100, median of ten pairs",
            f"<= {most}",
            ratio(data, against),
            lambda v, m=most: v <= m,
        )
        for text, most, against in rivals
    ]


def early_goals(data: Frame) -> list[Goal]:
    """NB201 with NB101 as source: at 25 queries without and with the prior, at 50 with it."""
    out = []
    for t, least in GAINS.items():
        found = _mean(paired(data, t, "nb101", False, 25))
        text = f"{t}, 25 queries, prior off: nb101 as source against none"
        out.append(goal(text, f">= {least} points", found, lambda v, g=least: v >= g))
    for t in NB201:
        ours = get(data, OURS, t, "nb101", True, "score@25")
        size = get(data, "parameters_first", t, "", False, "score@25")
        m = min(len(ours), len(size))
        found = _mean(ours[:m] - size[:m])
        high = found.high if found and found.high is not None else -1.0
        text = f"{t}, 25 queries, prior on: minus parameters-first"
        out.append(goal(text, "interval reaches 0 or above", found, lambda v, h=high: h >= 0))
    for t, least in LEVELS.items():
        found = _mean(get(data, OURS, t, "nb101", True, "score@50"))
        text = f"{t}, 50 queries, source nb101, prior on"
        out.append(goal(text, f">= {least}", found, lambda v, g=least: v >= g))
    return out


def harm_goals(data: Frame) -> list[Goal]:
    """How often, and on which pairs, a source does harm."""
    text = "harm at {} queries, % of runs below the twin's 5th percentile, all pairs"
    out = [goal(text.format(n), "<= 7.5", harm(data, n), lambda v: v <= 7.5) for n in BUDGETS]
    gains = [paired(data, t, s, p, n) for s, t, p in pairs_present() for n in BUDGETS]
    seen = [bootstrap_mean(g) for g in gains if len(g) >= 2]
    below = sum(found.high < 0 for found in seen)
    text = "pairs whose mean gain lies wholly below zero (25, 50, 100 queries)"
    return [*out, goal(text, "0", Interval(below, None, None) if seen else None, lambda v: v == 0)]


def beside_goals(data: Frame) -> list[Goal]:
    """The early gains against a searcher that does not start at random."""
    text = "(beside) {}, 25 queries: against no source and no random start"
    return [
        goal(
            text.format(t),
            f">= {least} points",
            _mean(paired(data, t, "nb101", False, 25, EAGER)),
            lambda v, g=least: v >= g,
        )
        for t, least in GAINS.items()
    ]


def _mean(values: np.ndarray) -> Interval | None:
    return bootstrap_mean(values) if len(values) else None


def encoder_goals(data: Frame) -> list[Goal]:
    out = []
    tables = {"nb201": "nb201 cifar10", "nb101": "nb101", "darts": "darts"}
    for name in tables:
        values = get(data, ENCODER, tables[name], "", False, "reconstruction")
        found = bootstrap_mean(values) if len(values) else None
        out.append(goal(f"reconstruction of held-out {name} cells, %", ">= 99", found, lambda v: v >= 99))
    for name, tau in KENDALL.items():
        values = get(data, ENCODER, tables[name], "", False, "kendall")
        found = bootstrap_mean(values) if len(values) else None
        out.append(
            goal(
                f"Kendall tau of the ranker, {name}",
                f">= {tau - 0.02:.3f} ({tau} - .02)",
                found,
                lambda v, t=tau: v >= t - 0.02,
            )
        )
    return out


# ------------------------------------------------------------------------------------------------------- the page


def page(rows: Sequence[Row], folder: Path) -> str:
    data = frame(rows)
    out = ["Score of the cell kept, mean [95 % bootstrap interval over seeds], by true queries of the target."]
    for target in TARGETS:
        out += ["", f"## {target}", "", "| method | source | pair | prior | runs | " + " | ".join(map(str, AT)) + " |"]
        out.append("|---|---|---|---|---|" + "---|" * len(AT))
        for method, t, name, prior in sorted(
            {k[:4] for k in data if k[1] == target and k[0] not in (HEAD, ENCODER, PAPER)}
        ):
            values = [get(data, method, t, name, prior, f"score@{n}") for n in AT]
            cellsof = [str(bootstrap_mean(v)) if len(v) else "" for v in values]
            label = kind(name, t) if name else ""
            out.append(
                f"| {method} | {name} | {label} | {'on' if prior else 'off'} | {len(values[0])} | "
                + " | ".join(cellsof)
                + " |"
            )
        picture = _curves(data, target, folder)
        if picture:
            out += ["", f"![{target}]({picture})"]
    return "\n".join(
        [*out, "", *_heads(data), "", *_harms(data), "", *_again(data), "", *_counting(data, rows), "", *_notes(data)]
    )


def _counting(data: Frame, rows: Sequence[Row]) -> list[str]:
    """The paper's search as it is counted there, beside what it costs in labels and ours at true counts."""
    spent = {(r.settings["target"], r.settings["source"]): r.budget for r in rows if r.method == PAPER}
    if not spent:
        return []
    out = ["## The paper's way of counting", ""]
    out.append("Its search (a GA with transferred latents) asks a ranker that was trained on target labels. Published")
    out.append("tables count the ranker's calls only; the labels are queries of the target.")
    out += ["", "| source | target | calls of the ranker | true queries | score | ours, 25 true queries | 50 |"]
    out.append("|---|---|---|---|---|---|---|")
    for (target, name), budget in sorted(spent.items()):
        theirs = get(data, PAPER, target, name, False, f"score@{QUERIES}")
        ours = [get(data, OURS, target, name, False, f"score@{n}") for n in (25, 50)]
        shown = [str(bootstrap_mean(v)) if len(v) else "" for v in (theirs, *ours)]
        out.append(
            f"| {name} | {target} | {budget['evaluations']:g} | {budget['queries']:g} | " + " | ".join(shown) + " |"
        )
    return out


def _curves(data: Frame, target: str, folder: Path) -> str:
    curves = {}
    for method, t, name, prior, metric in sorted(data, key=str):
        if t == target and metric == "mean@1" and method in (OURS, TWIN, "random", "local_search", "parameters_first"):
            label = " ".join(part for part in (method, name, "+ sizes" if prior else "") if part)
            values = np.stack([get(data, method, t, name, prior, f"mean@{n}") for n in CURVE])
            curves[label] = (list(CURVE), values)
    if not curves:
        return ""
    shown = {
        label: (x, [Interval(float(v.mean()), float(v.min()), float(v.max())) for v in values])
        for label, (x, values) in curves.items()
    }
    figure = plots.curves_with_bands(
        shown, "true queries of the target", "score of the cell kept (band: blocks of ten seeds)", target, log_x=True
    )
    middle = CURVE.index(10)
    top = max(values.mean(1)[-1] for _, values in curves.values())
    floor = min(values.mean(1)[middle] for _, values in curves.values())
    figure.axes[0].set_ylim(floor, top + 0.05 * (top - floor))
    name = f"search-{target.replace(' ', '-')}.svg"
    write_bytes(folder / name, plots.svg(figure).encode())
    return name


def _heads(data: Frame) -> list[str]:
    out = ["## Head start: mean percentile of the first 20 cells, no query (smaller is better)", ""]
    out += ["| source | target | pair | transferred | parameters-first |", "|---|---|---|---|---|"]
    for s, t in dict.fromkeys([*TEN, *HARD]):
        ours, size = (get(data, HEAD, t, x, p, "top20 percentile") for x, p in ((s, False), ("", True)))
        if len(ours) and len(size):
            out.append(f"| {s} | {t} | {kind(s, t)} | {bootstrap_mean(ours)} | {bootstrap_mean(size)} |")
    return out


def _harms(data: Frame) -> list[str]:
    out = ["## Gain over the no-source twin and harm (% of runs below the twin's 5th percentile)", ""]
    out += [
        "| source | target | pair | prior | " + " | ".join(f"gain@{n} | harm@{n}" for n in (10, 25, 50, 100)) + " |"
    ]
    out.append("|---|---|---|---|" + "---|---|" * 4)
    for s, t, p in pairs_present():
        parts = []
        for n in (10, 25, 50, 100):
            gain = paired(data, t, s, p, n)
            if not len(gain):
                break
            rate = percentile_harm(get(data, OURS, t, s, p, f"score@{n}"), get(data, TWIN, t, "", p, f"score@{n}"))
            parts.append(f"{bootstrap_mean(gain)} | {100 * rate:.0f}")
        else:
            out.append(f"| {s} | {t} | {kind(s, t)} | {'on' if p else 'off'} | " + " | ".join(parts) + " |")
    room = [f"{t} {BEST[t] - v.mean():.2f}" for t in NB201 if len(v := get(data, TWIN, t, "", False, "score@25"))]
    most = f"Most that a source can gain at 25 queries, prior off, the table's best cell kept: {', '.join(room)}."
    out += ["", most] if room else []
    for twin in (TWIN, EAGER):
        rates = [f"{n} queries: {h}" for n in (25, 50, 100) if (h := harm(data, n, twin))]
        out += ["", f"Mean harm over pairs against `{twin}`: {', '.join(rates) or 'no rows'}."]
    return out


def _again(data: Frame) -> list[str]:
    """What 50 queries keep, by the score, by runs that no query brought, and on test."""
    out = ["## The cell kept after 50 queries, by what the search saw and what it did not", ""]
    out.append(
        "A single run scatters, so the searches on a process train their leading cell again; each run is a query."
    )
    out.append("Once all its runs were asked, the mean over all runs is what the search saw; the test accuracy is not.")
    out += [
        "",
        "| target | method | source | prior | mean of all runs | test | unqueried runs, of seeds that have any |",
    ]
    out.append("|---|---|---|---|---|---|---|")
    known = {k[:4] for k in data if k[1] in NB201 and k[4] == "score@50"}
    for method, t, name, prior in sorted(known, key=lambda k: (NB201.index(k[1]), k)):
        values = [get(data, method, t, name, prior, m) for m in ("score@50", "test@50", "valid_unqueried@50")]
        shown = [f"{v.mean():.2f}" if len(v) else "" for v in values]
        out.append(f"| {t} | {method} | {name} | {'on' if prior else 'off'} | " + " | ".join(shown) + " |")
    return out


def _notes(data: Frame) -> list[str]:
    best = get(data, OURS, "nb101", "nb201 cifar10", False, "score@150")
    text = f"mean {bootstrap_mean(best)} % validation accuracy" if len(best) else "no rows yet"
    return [
        "## What the NAS-Bench-101 pool can and cannot claim",
        "",
        f"In the form of the literature (150 queries): {text}, source nb201 cifar10. The pool is 30,001 real cells "
        "with one validation run each and no test accuracy, so this is neither the published mean test accuracy nor a "
        "search of all 423,624 cells; neighbours outside the pool do not exist, which handicaps local search and REA.",
    ]
