"""The report of an evolved merge: what transfer gained, the search curves, the recipe and the relation graph."""

import json
from collections.abc import Mapping

import numpy as np
from pydantic import Field
from safetensors.numpy import load_file

from core.config import Config
from core.evaluate import plots
from core.evaluate.rows import Row
from core.evaluate.statistics import Interval, bootstrap_mean
from core.merge.baselines import SEARCHES
from core.merge.front import Front
from core.merge.relation import RelationGraph
from core.state import write_bytes
from core.transfer.effect import EffectReport
from core.transfer.report import Section, Table, render
from tasks import effect as effects
from tasks.align_heads import SUFFIX
from tasks.build_subproblems import GRAPH
from tasks.costed import cost_rows
from tasks.evaluate_language import BASE as UNMERGED
from tasks.evaluate_merges import BASE, CEILING, CORRECT, PROBE
from tasks.evolve_recipes import FRONT, OUTCOME
from tasks.normalised import undefined_tasks, undefined_words
from tasks.quote_mistakes import sections as quotes
from tasks.repeatable import repeatable
from tasks.stage import Artifact, Output, stage

SEARCHED = (
    "Normalised accuracy is test accuracy relative to each task's own expert: 100 is their ceiling. Every search had "
    "the same budget of validation examples, its forms included, and the recipe was selected on validation data."
)
ENCODERS = (
    "One encoder with the experts' heads, or with heads aligned to it: fitted to the experts' answers to unlabelled "
    f"texts, as searches score their candidates. {SEARCHED}"
)
LANGUAGE = (
    "One language model for all tasks: classes are answered by the label word of highest likelihood, free answers "
    f"count where they match the right text exactly. {SEARCHED}"
)
BEST, UNIT = "best score so far", "task_examples"
EFFECT = (
    "The run without transfer is {without}: {what} Cells are the tasks. All searches were given the same {budget} "
    "task-examples and are compared as they ended. The budget ratio does not follow test accuracy, which is measured "
    "once, but the best score so far in the search: the smoothed score of validation mini-batches relative to the "
    "experts, corrected by that of the static start. It is a maximum of noisy estimates, so ratios near 1 say nothing. "
    "Seconds, energy and memory are of experts, forms and search."
)


class ReportConfig(Config):
    """What the page says at its top."""

    title: str = Field(description="headline")
    facts: dict[str, str] = Field(default_factory=dict, description="what a reader must know at once")
    transfer: str = Field("emfto", description="the method whose gain is reported")
    without: str = Field("cold_cma", description="its twin without transfer")
    budget: int = Field(description="task-examples that every search was given")
    warm: bool = Field(False, description="whether `transfer` started from an earlier run, its twin afresh")
    about: str = Field(ENCODERS, description="what was tested, above the table of accuracies")


MODULES = ["core.transfer.report", "core.evaluate.plots", "core.evaluate.statistics", *effects.MODULES]


@stage("report-evolution", modules=MODULES)
def report_evolution(
    out: Output,
    config: ReportConfig,
    evaluated: Artifact,
    evolved: Mapping[str, Artifact],
    experts: Mapping[str, Artifact],
    subproblems: Artifact,
    quoted: Artifact | None = None,
) -> None:
    """Write the page and hand the rows on."""
    hits = load_file(evaluated.folder / CORRECT)
    found = {name: json.loads((a.folder / OUTCOME).read_text()) for name, a in evolved.items()}
    rows = [with_search_budget(r, found) for r in evaluated.rows()]
    tasks = sorted({str(r.settings["task"]) for r in rows} - {"mean"})
    methods = [m for m in dict.fromkeys(r.method for r in rows) if not m.startswith("expert ")]
    gain = gain_of(hits, rows, tasks, *(_as_searched(m, methods) for m in (config.transfer, config.without)))
    shown = {name: _as_searched(name, methods) for name in found}
    costs = []
    for name, artifact in evolved.items():
        forms = [subproblems] if name == config.transfer else []
        costs += cost_rows(shown[name], [*experts.values(), *forms, artifact])
    effect = effect_of([*rows, *costs], hits, found, shown, config)
    curves = plots.curves_with_bands(
        {n: ([s for s, _ in f["curve"]], [100 * v for _, v in f["curve"]]) for n, f in found.items() if f["curve"]},
        "task-examples spent",
        "best mini-batch score, % of experts",
        "Search",
    )
    graph = RelationGraph.load(evolved[config.transfer].folder / GRAPH)
    synergy = plots.heat_map(
        graph.matrix("synergy"), graph.experts, graph.experts, "Synergy of experts", diverging=True
    )
    text = config.about + undefined_words(undefined_tasks(rows))
    page = render(
        config.title,
        {
            **config.facts,
            "what transfer gained": _gain_words(gain, config.without),
            **_reached(config, found),
            **repeatable(),
        },
        [
            Section("Test accuracy", text, [_accuracies(rows, methods, tasks)]),
            *effects.keep_effect(out, effect, _effect_words(config)),
            Section("Search", _search_words(found), [_spent(found)], [curves]),
            Section("Recipe", "Coefficients by expert and group of layers.", [_recipe(found[config.transfer])]),
            *_choices(found),
            *_front(evolved[config.transfer]),
            Section("Relations", "Learned from forms; also kept as graph.ckpt for the next run.", [], [synergy]),
            *quotes(quoted),
        ],
    )
    write_bytes(out.folder / "report.html", page.encode())
    out.rows(rows)
    normalised = {m: _value(rows, m, "mean", "normalised") for m in methods}
    out.metrics({f"normalised/{m}": value for m, value in normalised.items() if value is not None})
    out.metrics({"transfer/gain": gain.mean} if gain is not None else {})


def with_search_budget(row: Row, found: Mapping[str, dict]) -> Row:
    """The row with the validation examples its search spent beside what it has."""
    search = row.method.removesuffix(SUFFIX)
    if search not in found:
        return row
    return row.model_copy(update={"budget": {**row.budget, "task_examples": float(found[search]["spent"])}})


def _effect_words(config: ReportConfig) -> str:
    what = SEARCHES.entry(config.without).summary
    return EFFECT.format(without=config.without, what=what, budget=config.budget)


def effect_of(
    rows: list[Row],
    hits: Mapping[str, np.ndarray],
    found: Mapping[str, dict],
    shown: Mapping[str, str],
    config: ReportConfig,
) -> EffectReport:
    """The searches against the one without transfer. ``shown``: search -> the row's name of what it found.

    A search stops before a candidate that it cannot pay, so a little of its budget may be left: they are compared at
    what they were given.
    """
    given = {UNIT: float(config.budget)}
    scored = [r.model_copy(update={"budget": given}) for r in rows if r.metric == effects.METRIC]
    others = [r for r in rows if r.metric != effects.METRIC]
    seed = next(r.seed for r in scored)
    for name, outcome in found.items():
        curve = {"method": shown[name], "metric": BEST, "seed": seed, "settings": {"task": "all"}}
        others += [Row(value=value, budget={UNIT: spent}, **curve) for spent, value in outcome["curve"]]
    reached = BEST if all(f["curve"] for f in found.values()) else ""
    return effects.over_tasks(
        [*scored, *others], hits, [*shown.values()], without=shown[config.without], unit=UNIT, reached=reached
    )


def _as_searched(name: str, methods: list[str]) -> str:
    """The model with the heads it was searched with: aligned ones where there are any."""
    return name + SUFFIX if name + SUFFIX in methods else name


def gain_of(
    hits: Mapping[str, np.ndarray], rows: list[Row], tasks: list[str], first: str, second: str
) -> Interval | None:
    """Paired difference in normalised points with an interval over test items (each task weighs the same).

    Tasks whose expert got no test item right are left out; None where nothing is left.
    """
    individual = {t: _value(rows, CEILING, t, "accuracy") for t in tasks}
    known, values = [t for t in tasks if individual[t]], []
    if not known:
        return None
    for t in known:
        difference = hits[f"{first}/{t}"].astype(float) - hits[f"{second}/{t}"].astype(float)
        values.append(100 * difference / individual[t])
    weight = np.mean([len(v) for v in values])
    return bootstrap_mean(np.concatenate([v * weight / len(v) for v in values]))


def _gain_words(gain: Interval | None, without: str) -> str:
    if gain is None:
        return "undefined: no expert got a test item right"
    return (
        f"{gain.mean:+.2f} normalised points over {without} at the same budget (95 % interval over test items "
        f"{gain.low:+.2f} to {gain.high:+.2f})"
    )


def _reached(config: ReportConfig, found: Mapping[str, dict]) -> dict[str, str]:
    """What a search that started from an earlier run spent until it was as good as its fresh twin at its end."""
    if not config.warm or config.without == config.transfer or not found[config.without]["curve"]:
        return {}
    spent, final = found[config.without]["curve"][-1]
    needed = next((s for s, score in found[config.transfer]["curve"] if score >= final), None)
    told = "did not reach it" if needed is None else f"reached it after {needed:g} task-examples"
    return {
        "re-optimised against fresh": f"{config.without} from a fresh start ended at {100 * final:.1f} % (best "
        f"mini-batch score) after {spent:g} task-examples; {config.transfer} {told}"
    }


def _front(evolved: Artifact) -> list[Section]:
    """Scores of the Pareto front's recipes by task; nothing where no front was asked for."""
    if not (evolved.folder / FRONT).exists():
        return []
    front = Front.load(evolved.folder / FRONT)
    order = np.argsort(-front.scores.mean(axis=1))
    names = [f"recipe {i}" for i in order]
    picture = plots.heat_map(100 * front.scores[order], names, front.tasks, "Pareto front over tasks", form="{:.1f}")
    text = (
        f"{len(order)} recipes of which none is beaten on every task: validation score in % of each task's own expert, "
        "the best mean first. Run the flow again with a preference to merge the one that suits it; the search is kept."
    )
    return [Section("Preferences", text, [], [picture])]


def _value(rows: list[Row], method: str, task: str, metric: str) -> float | None:
    return next(r.value for r in rows if (r.method, r.settings["task"], r.metric) == (method, task, metric))


def _accuracies(rows: list[Row], methods: list[str], tasks: list[str]) -> Table:
    unmerged = (PROBE, BASE, UNMERGED, CEILING)
    order = sorted(methods, key=lambda m: (m not in unmerged, _value(rows, m, "mean", "normalised") or 0))
    lines = [
        [m, *(100 * _value(rows, m, t, "accuracy") for t in tasks), _value(rows, m, "mean", "normalised")]
        for m in order
    ]
    return Table(["model", *tasks, "normalised mean, %"], lines, "accuracy in % on test")


def _search_words(found: Mapping[str, dict]) -> str:
    shares = ", ".join(f"{n} {100 * f['merging_share']:.0f} %" for n, f in found.items())
    return f"Share of a candidate's time spent on merging: {shares}. Scores are smoothed and control-corrected."


def _spent(found: Mapping[str, dict]) -> Table:
    lines = [[n, int(f["spent"]), f["candidates"], 100 * f["start"], 100 * f["validation"]] for n, f in found.items()]
    columns = ["search", "task-examples", "candidates", "static start, %", "selected, %"]
    return Table(columns, lines, "on validation, relative to the experts")


def _choices(found: Mapping[str, dict]) -> list[Section]:
    """What each expert took where a search chose among components; nothing where none did."""
    sections = []
    for name, one in found.items():
        if "choices" in one:
            lines = [[expert, *taken] for expert, taken in zip(one["experts"], one["choices"], strict=True)]
            text = "Coefficient and component (operator or basis, and the density kept) by expert and group of layers."
            sections.append(Section(f"Recipe of {name}", text, [Table(["expert", *one["groups"]], lines, "")]))
    return sections


def _recipe(found: dict) -> Table:
    lines = [[name, *values] for name, values in zip(found["experts"], found["coefficients"], strict=True)]
    return Table(["expert", *found["groups"]], lines, f"static start: {found['start_scale']:g} everywhere")
