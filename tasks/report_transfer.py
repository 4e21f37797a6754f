"""The effect report of a transfer: gain, harm, curves, cost, the advice against what happened, and why."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from core.config import Config
from core.evaluate import plots
from core.evaluate.metrics import higher_is_better
from core.evaluate.rows import Row
from core.state import write_bytes, write_json
from core.transfer.effect import EffectReport, effect
from core.transfer.experience import Experience
from core.transfer.explain import leave_one_source_out
from core.transfer.history import Comparison, cell_name, comparable, compared, record, unit_of
from core.transfer.recommend import TOLERANCE, Forecast, Recommendation, reference_of, regret
from core.transfer.report import Section, Table, render
from tasks.adapt import CORRECT, WHY
from tasks.effect import keep_effect
from tasks.quote_mistakes import sections as quotes
from tasks.rank_sources import CHANGES, FOUND, RANKING
from tasks.repeatable import repeatable
from tasks.spent import together
from tasks.stage import Artifact, Output, stage

HEADLINE = ("ece", "seconds", "trained_share")  # the other metrics are with the runs of the strategies
AS_IS = "as it is"
LABELS = "train_labels"
MODULES = ["core.transfer.report", "core.transfer.effect_page", "core.transfer.history", "core.evaluate.plots"]


class ReportTransferConfig(Config):
    """What is compared with what."""

    target: str = Field(description="target task")
    metric: str = Field(description="metric that decides")
    kind: str = Field("classification", description="kind of the target")
    modality: str = Field("text", description="what the sources read")
    without: str = Field(description="the strategy without transfer")
    examples: int = Field(description="training size reported in detail")
    history: str = Field(description="file of past transfers, to which this run is added")
    facts: dict[str, str] = Field(default_factory=dict, description="what a reader must know at once")


@stage("report-transfer", modules=MODULES)
def report_transfer(
    out: Output,
    config: ReportTransferConfig,
    ranking: Artifact,
    runs: Mapping[str, Artifact],
    quoted: Artifact | None = None,
    trained: Mapping[str, Artifact] | None = None,
) -> None:
    """Write the page, the effect as JSON, the rows, and the history. ``trained``: sources that this run trained."""
    rows = [r for a in runs.values() for r in a.rows()]
    ranked = json.loads((ranking.folder / RANKING).read_text())
    best_source = ranked["ranked"][0][0]
    by_source = {s: _effect(rows, runs, s, config) for s, _ in ranked["ranked"]}
    report = by_source[best_source]
    means = _means(rows, config)
    advice = _advice(ranked["sources"][best_source]["advice"])
    history = Path(config.history)
    happened = {k: _experiences(rows, k, v["situation"], config) for k, v in ranked["sources"].items()}
    for source, experiences in happened.items():
        record(history, experiences, _advice(ranked["sources"][source]["advice"]))
    past = compared(history)
    sections = [
        *keep_effect(out, report, _of_sources(by_source)),
        _choice(advice, means[best_source], happened[best_source], ranked, past, config),
        *_sources(ranked, means, config),
        _why(runs, best_source, advice, config, [max(means[best_source], key=means[best_source].get), config.without]),
        _data(*(json.loads((ranking.folder / name).read_text()) for name in (CHANGES, FOUND))),
        *quotes(quoted),
    ]
    facts = config.facts | _headline(report, advice, config) | repeatable()
    write_bytes(out.folder / "report.html", render(f"Transfer to {config.target}", facts, sections).encode())
    write_json(out.folder / "predicted_and_realised.json", [asdict(c) for c in past])
    out.rows([*(r for r in rows if r.metric in (config.metric, *HEADLINE)), *_gains(rows, best_source, config)])
    of_sources = {f"source_{unit}": amount for unit, amount in together((trained or {}).values()).items()}
    out.budget(together(runs.values()) | of_sources)


def _effect(rows: list[Row], runs: Mapping[str, Artifact], source: str, config: ReportTransferConfig) -> EffectReport:
    """The effect of transfers from one source: its runs and its test items, so that all columns are of the same."""
    mine = [r for r in rows if r.settings["source"] == source]
    correct = _correct(runs, source)
    return effect(mine, metric=config.metric, without=config.without, unit=LABELS, size="n", correct=correct)


def _of_sources(effects: Mapping[str, EffectReport]) -> str:
    """Which source the effect is of, and the gains from the others, best first; empty where there is one only."""
    if len(effects) < 2:
        return ""
    first, *others = effects
    told = []
    for source in others:
        gains = sorted(effects[source].methods, key=lambda m: -m.gain.mean)
        told.append(f"{source} ({', '.join(f'{m.method} {m.gain.mean:+.4g}' for m in gains)})")
    return f"All of this is of {first}, the source ranked first. Gains from the others: {'; '.join(told)}."


def _gains(rows: list[Row], source: str, config: ReportTransferConfig) -> list[Row]:
    """Gain and harm from the first-ranked source as rows, so that they stand in the table beside the scores."""
    mine = [r for r in rows if r.settings["source"] == source and r.settings["n"] == config.examples]
    first = next(r for r in mine if r.metric == config.metric)
    facts = {"settings": first.settings, "inputs": {"test": first.inputs["test"]}, "oracle": first.oracle}
    return [
        Row(method=m.method, metric=name, value=value, **facts)
        for m in effect(mine, metric=config.metric, without=config.without).methods
        for name, value in ((f"gain over {config.without}", m.gain.mean), ("harm", m.harm))
    ]


def _means(rows: list[Row], config: ReportTransferConfig) -> dict[str, dict[str, float]]:
    """source -> strategy -> mean score at the reported size, larger better."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    sign = 1 if higher_is_better(config.metric) else -1
    for r in rows:
        if r.metric == config.metric and r.value is not None and r.settings["n"] == config.examples:
            found[r.settings["source"]][r.method].append(sign * r.value)
    return {s: {m: float(np.mean(v)) for m, v in methods.items()} for s, methods in found.items()}


def _correct(runs: Mapping[str, Artifact], source: str) -> dict[tuple[str, int], np.ndarray]:
    out = {}
    for key, artifact in runs.items():
        name, strategy = key.rsplit(" / ", 1)
        if name == source:
            with np.load(artifact.folder / CORRECT) as stored:
                out |= {(strategy, int(seed)): stored[seed] for seed in stored.files}
    return out


def _advice(stored: dict[str, Any]) -> Recommendation:
    return Recommendation(**{**stored, "forecasts": [Forecast(**f) for f in stored["forecasts"]]})


def _headline(report: EffectReport, advice: Recommendation, config: ReportTransferConfig) -> dict[str, str]:
    best = max(report.methods, key=lambda m: m.gain.mean)
    return {
        f"best gain over {config.without}": f"{best.gain} in {config.metric} ({best.method})",
        "recommended before": _advised(advice),
    }


def _advised(advice: Recommendation) -> str:
    """The pick and how sure it is; without experience, that it is a default."""
    if not advice.learned:
        return f"{advice.pick}, a default: no past transfer to learn from yet (confidence 0)"
    pick = advice.pick if advice.transfer else f"do not transfer ({advice.pick})"
    return f"{pick}, confidence {advice.confidence:.2f}"


def _choice(
    advice: Recommendation,
    means: dict[str, float],
    happened: Sequence[Experience],
    ranked: dict,
    past: Sequence[Comparison],
    config: ReportTransferConfig,
) -> Section:
    """Each forecast beside what happened, both in one unit and against the same; what is not known is undefined."""
    scores = {e.strategy: e.score for e in happened}
    foreseen = [f.strategy for f in advice.forecasts if f.regret is not None and f.strategy in scores]
    among = foreseen or list(scores)
    over = advice.reference or reference_of(list(scores))
    lines = []
    for f in advice.forecasts:
        got = scores.get(f.strategy)
        lost = _less(max(scores[s] for s in among), got) if f.strategy in among else None
        predicted = [f.votes, f.regret, lost, f.gain, f.low, f.high]
        lines.append(
            [f.strategy, *predicted, _less(got, scores.get(over)), f.seconds, _measured(means.get(f.strategy), config)]
        )
    columns = ("strategy", "votes", "predicted regret", "realised regret", "predicted gain", "10 %", "90 %")
    columns += ("realised gain", "predicted s", f"realised {config.metric}")
    source, unit = ranked["ranked"][0][0], unit_of(config.metric)
    lost = f"{regret(advice.pick, scores):.4g} ({unit})" if advice.pick in scores else "not measured"
    rule = ranked["sources"][source]["rule"]
    by_rule = f"The similarity rule would have picked {rule!r}. " if rule else ""
    against = "the best strategy of those with a forecast" if foreseen else "the best strategy"
    text = (
        f"Before any fine-tuning the recommender picked {_picked(advice, source)}. Regret against the best strategy "
        f"measured: {lost}. {by_rule}In the table regrets are against {against}, gains over {over!r}, predicted and "
        f"realised alike, in {unit}.\n\n{_record_of(past)}"
    )
    return Section("Advice and what happened", text, [Table(columns, lines)])


def _less(score: float | None, other: float | None) -> float | None:
    return None if score is None or other is None else score - other


def _picked(advice: Recommendation, source: str) -> str:
    if not advice.learned:
        return (
            f"{advice.pick!r} from {source} by default: there was no past transfer of these strategies, of this kind "
            "and modality, to learn from (confidence 0)"
        )
    return f"{advice.pick!r} from {source} ({_rule(advice)}; confidence {advice.confidence:.2f})"


def _record_of(past: Sequence[Comparison]) -> str:
    """How the recorded predictions did so far."""
    off = {q: [abs(c.predicted - c.realised) for c in past if c.quantity == q] for q in ("regret", "gain")}
    picks = [c.realised for c in past if c.picked]
    if not off["regret"]:
        return "No prediction is on record yet that could be compared with what happened."
    gains = f", of gain by {np.mean(off['gain']):.4g}" if off["gain"] else ""
    within = sum(lost <= TOLERANCE for lost in picks)
    return (
        f"On record, with this run: {len(off['regret'])} predictions of regret, off by {np.mean(off['regret']):.4g} on "
        f"average{gains}; {within} of {len(picks)} picks were within one point of the best."
    )


def _measured(score: float | None, config: ReportTransferConfig) -> float | None:
    """A score that is larger where better, as the metric says it."""
    return score if score is None or higher_is_better(config.metric) else -score


def _rule(advice: Recommendation) -> str:
    return "what most stumps of the learned policy name" if advice.voted else "the least predicted regret"


def _sources(ranked: dict, means: dict[str, dict[str, float]], config) -> list[Section]:
    if len(means) < 2:
        return []
    best = {s: max(m.values()) for s, m in means.items()}
    worth = leave_one_source_out(best)
    lines = [[s, v, _measured(best[s], config), worth[s]] for s, v in ranked["ranked"]]
    first = ranked["ranked"][0][0]
    text = (
        f"Sources ranked by {ranked['score']} before any fine-tuning; the first is {first}, its regret against the "
        f"best source {regret(first, best):.4g}. The last column is what the best result loses without the source."
    )
    columns = ("source", ranked["score"], f"best {config.metric}", "lost without it")
    return [Section("Sources", text, [Table(columns, lines)])]


def _why(runs: Mapping[str, Artifact], source: str, advice: Recommendation, config, shown: list[str]) -> Section:
    """Contributions, changed input, layers; confusions of the strategies ``shown``."""
    whys = _whys(runs, source)
    tables, figures = [], []
    if advice.contributions:
        lines = sorted(advice.contributions.items(), key=lambda item: -abs(item[1]))[:8]  # JSON sorts them by name
        effect = "raised its share of votes by" if advice.voted else "lowered the predicted regret by"
        tables.append(Table(("measured before", effect), lines, "What the advice rests on"))
    names = list(dict.fromkeys((AS_IS, *(n for w in whys.values() for n in w["changed_input"]))))
    if len(names) > 1:
        lines = [[s, *(w["changed_input"].get(n) for n in names)] for s, w in whys.items()]
        tables.append(Table(("strategy", *names), lines, f"{config.metric} when the input changes"))
    layers = {
        s: (list(range(len(w["layers"]))), [np.nan if v is None else v for v in w["layers"]])
        for s, w in whys.items()
        if w["layers"]
    }
    if layers:
        figures.append(plots.curves_with_bands(layers, "layer (0: embeddings)", "CKA with the source", "What moved"))
    for strategy in dict.fromkeys(shown):
        why = whys.get(strategy, {})
        if why.get("predicted"):
            title = f"{strategy}, first seed"
            figures.append(plots.confusion(why["actual"], why["predicted"], why["labels"], title))
    text = "Layers near 1 still are the source's; where they fall, the strategy wrote new knowledge over the old."
    return Section("Why", text, tables, figures)


def _whys(runs: Mapping[str, Artifact], source: str) -> dict[str, dict[str, Any]]:
    """Strategy -> what was measured of the reasons, for runs from this source."""
    found = {}
    for key, artifact in runs.items():
        name, strategy = key.rsplit(" / ", 1)
        path = artifact.folder / WHY
        if name == source and path.is_file():
            found[strategy] = json.loads(path.read_text())
    return found


def _data(changes: list[dict[str, Any]], faults: dict[str, dict[str, dict[str, int]]]) -> Section:
    lines = [
        [
            c["stage"],
            part,
            c["before"][part],
            c["after"][part],
            ", ".join(f"{k} {v}" for k, v in counts.items()) or "none",
        ]
        for c in changes
        for part, counts in c["counts"].items()
    ]
    tables = [Table(("stage", "part", "rows before", "rows after", "found"), lines, "What the data stages changed")]
    lines = [
        [f, p, n["found"], n["left"]] for p, of in faults.items() for f, n in of.items() if n["found"] or n["left"]
    ]
    caption = "Every fault found, chosen for removal (clean) or not"
    if lines:
        tables.append(Table(("fault", "part", "rows found", "rows left"), lines, caption))
    text = "The test split is never cleaned." + ("" if lines else " No fault was found in any part.")
    return Section("Data", text, tables)


def _experiences(rows: list[Row], source: str, situation: dict, config) -> list[Experience]:
    """One experience a strategy: means over seeds at the reported size."""
    mine = [r for r in rows if r.settings["source"] == source and r.settings["n"] == config.examples]
    metric, scale = comparable(config.metric)
    cell = cell_name(source, config.target, config.examples, mine[0].inputs["train"])
    out = []
    for strategy in dict.fromkeys(r.method for r in mine):
        scores = [scale(r.value) for r in mine if (r.method, r.metric) == (strategy, metric) and r.value is not None]
        fits = [r for r in mine if (r.method, r.metric) == (strategy, "seconds")]
        if scores:
            score, spent = float(np.mean(scores)), float(np.median([r.value for r in fits]))
            passes = float(np.median([r.budget.get("train_examples", 0.0) for r in fits]))
            facts = (config.target, cell, config.kind, config.modality, passes)
            out.append(Experience(situation, strategy, score, spent, *facts))
    return out
