"""Goals and page of the transfer benchmark: pure functions of its rows."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.transfer_choice import (
    ALSO,
    COMPARED,
    HISTORY,
    ORACLE,
    SEEDS,
    SIZES,
    TARGETS,
    Where,
    accuracies,
    chosen_elsewhere,
    decisions,
    experiences,
    regrets,
    single_seed_regrets,
    tau_of_other_seeds,
    taus,
)
from core.evaluate import plots
from core.evaluate.benchmark import Goal
from core.evaluate.rows import Row, write_rows
from core.evaluate.statistics import bootstrap_mean, hierarchical_bootstrap
from core.state import write_bytes
from core.transfer.recommend import NO_TRANSFER, TOLERANCE


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
    value, fair = bootstrap_mean(list(found[best].values())), bootstrap_mean(list(chosen_elsewhere(found).values()))
    return [
        _goal(f"{name}, best of {len(found)} scores ({best})", ">= 0.6", value, value.mean >= 0.6),
        _goal(f"{name}, score chosen on the other targets", ">= 0.6", fair, fair.mean >= 0.6),
    ]


def _goal(goal: str, target: str, value, holds: bool) -> Goal:
    if value is None or isinstance(value, float):
        return Goal(goal, target, value, None, None, bool(holds))
    return Goal(goal, target, value.mean, value.low, value.high, bool(holds))


def _by_target(other: dict[Where, float], ours: dict[Where, float]) -> dict[str, list[float]]:
    out: dict[str, list[float]] = defaultdict(list)
    for w in ours:
        out[w[1]].append(other[w] - ours[w])
    return out


def page(rows: Sequence[Row], folder: Path) -> str:
    """Tables of strategies, choosers, scores and costs; the plots and a history to start from lie beside the page."""
    write_rows(folder / "transfer.experiences.jsonl", [e.row() for e in experiences(rows, (*TARGETS, *HISTORY))])
    parts = [_strategy_table(rows), _chooser_table(rows), _tau_table(rows), _cost_table(rows)]
    figure = _curves(rows)
    if figure is not None:
        write_bytes(folder / "transfer.svg", plots.svg(figure).encode())
        parts.insert(0, "![accuracy against training size](transfer.svg)")
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
        "learn (cola): the choice of measures is not free of these targets, what is learned from them is. The same "
        "holds for three rules that were made when 28 cells were known, because the pick turned over with every new "
        "cell: each target counts once in the votes, a strategy's worth falls smoothly with what it lost instead of in "
        "a step at one point, and least regrets decide only where clearly better. It leans on few and noisy cells: "
        "votes for full, lora and adapter are near ties, and another fall of worth picks otherwise. The last "
        f"columns judge each seed alone; *{ORACLE}* picks what is best on the cell's other seeds, which nobody can "
        "know beforehand: what it loses is noise of the table.",
        "",
    ]
    lines += ["| chooser | within 1 point | mean regret | picks | a seed: within 1 point | regret |"]
    lines += ["|---|---|---|---|---|---|"]
    alone = single_seed_regrets(rows)
    for name, values in sorted(lost.items(), key=lambda item: np.mean(list(item[1].values()))):
        within = np.mean([v <= TOLERANCE for v in values.values()])
        picks = defaultdict(int)
        for d in chosen.values():
            picks[d.get(name, "")] += 1
        shown = ", ".join(f"{k} {v}" for k, v in sorted(picks.items()) if k)
        mean = hierarchical_bootstrap(_by_target(values, dict.fromkeys(values, 0.0)))
        lines.append(f"| {name} | {within:.2f} | {mean} | {shown} | {_judged(alone[name].values())} |")
    lines.append(f"| *{ORACLE}* | | | | {_judged(alone[ORACLE].values())} |")
    none = sum(d["recommender"] == NO_TRANSFER for d in chosen.values())
    return "\n".join([*lines, "", f"The recommender says 'do not transfer' in {none} of {len(chosen)} cells."])


def _judged(lost: Iterable[float]) -> str:
    values = np.array(list(lost))
    return f"{np.mean(values <= TOLERANCE):.2f} | {values.mean():.3f}"


def _tau_table(rows: Sequence[Row]) -> str:
    found = taus(rows)
    if not found:
        return ""
    lines = [
        "## Scores against realised accuracy",
        "",
        "Weighted Kendall tau over sources at n = 100 (full fine-tuning). The best of several scores is flattered by "
        "the choice; *chosen on the others* takes for each target the score that did best on the other three. The last "
        "row is what the accuracy of one seed says of the others: a score can hardly be better, and where sources do "
        "not differ by more than chance even that says nothing.",
        "",
    ]
    lines += ["| score | " + " | ".join(TARGETS) + " | mean |", "|" + "---|" * (len(TARGETS) + 2)]
    for score, values in sorted(found.items(), key=lambda item: -np.mean(list(item[1].values()))):
        row = [f"{values[t]:.2f}" if t in values else "" for t in TARGETS]
        lines.append(f"| {score} | " + " | ".join(row) + f" | {bootstrap_mean(list(values.values()))} |")
    if all(len(v) == len(TARGETS) for v in found.values()):
        fair = chosen_elsewhere(found)
        row = [f"{fair[t]:.2f}" for t in TARGETS]
        lines.append(f"| *chosen on the others* | {' | '.join(row)} | {bootstrap_mean(list(fair.values()))} |")
    if again := tau_of_other_seeds(rows):
        row = [f"{again[t]:.2f}" if t in again else "" for t in TARGETS]
        lines.append(f"| *accuracy itself, another seed* | {' | '.join(row)} | {np.mean(list(again.values())):.2f} |")
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
