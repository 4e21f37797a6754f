"""The report of a merge: table, bars per task, score against scale, paired tests, as one page."""

import json
from collections.abc import Iterable, Mapping

from pydantic import Field
from safetensors.numpy import load_file

from core.config import Config
from core.evaluate import plots
from core.evaluate.rows import Row, frame
from core.evaluate.statistics import Interval, bootstrap_mean, holm, mcnemar
from core.state import write_bytes
from core.transfer.report import Section, Table, render
from tasks import effect as effects
from tasks.align_heads import SUFFIX
from tasks.costed import cost_rows
from tasks.evaluate_merges import BASE, CEILING, CORRECT, PROBE
from tasks.merge_static import CHOICE, best_on_validation
from tasks.normalised import undefined_tasks, undefined_words
from tasks.quote_mistakes import sections as quotes
from tasks.repeatable import repeatable
from tasks.stage import METRICS, Artifact, Output, stage

TEXT = (
    "Every merged model is one encoder with the experts' heads. Normalised accuracy is the test accuracy relative to "
    "each task's own expert; 100 is the individual ceiling. The frozen base with a probe a task is what no transfer "
    "between the experts' weights gives; a merge below it has not paid. Scales were chosen on validation data only. "
    "Aligned heads answer on the merged encoder as the expert does on its own: fitted to its answers to unlabelled "
    "validation texts."
)

EFFECT = (
    "The run without transfer is the frozen base with a probe a task: what the same training labels give without the "
    "experts' weights. Cells are the tasks. The individual experts stand beside as the ceiling: one model a task "
    "instead of one for all. Validation texts, by which scales are chosen and heads aligned, are not among the "
    "train_labels. Seconds, energy and memory are of all that led to a model: its experts, the choice of scales and "
    "the alignment of heads, which merges share. Those of the probes were not measured."
)
INTERFERENCE = (
    "Measured on the task vectors before merging, means over all pairs of experts (or over experts) and the whole "
    "model: cosines near zero and little overlap say the experts hardly touch each other; a sign conflict of one half "
    "is what unrelated vectors have."
)


class ReportConfig(Config):
    """What the page says at its top."""

    title: str = Field(description="headline")
    facts: dict[str, str] = Field(default_factory=dict, description="what a reader must know at once")


MODULES = ["core.transfer.report", "core.evaluate.plots", "core.evaluate.statistics", *effects.MODULES]


@stage("report-merges", modules=MODULES)
def report_merges(
    out: Output,
    config: ReportConfig,
    evaluated: Artifact,
    tuned: Artifact,
    diagnosed: Artifact,
    experts: Mapping[str, Artifact],
    aligned: Artifact | None = None,
    quoted: Artifact | None = None,
) -> None:
    """Write the page and hand the rows on."""
    rows = evaluated.rows()
    hits = load_file(evaluated.folder / CORRECT)
    tasks = sorted({str(r.settings["task"]) for r in rows} - {"mean"})
    methods = list(dict.fromkeys(r.method for r in rows))
    intervals = {m: {t: bootstrap_mean(hits[f"{m}/{t}"].astype(float)) for t in tasks} for m in methods}
    merged = [m for m in methods if f"{m}/{tasks[0]}" in hits and not m.startswith("expert ") and m != CEILING]
    shown = {m: {t: _percent(intervals[m][t]) for t in tasks} for m in [*merged, CEILING]}
    best = best_on_validation(tuned)
    best += SUFFIX if best + SUFFIX in methods else ""
    figure = plots.bars_with_intervals(shown, "test accuracy, %", "Accuracy by task, 95 % interval over test items")
    curves = json.loads((tuned.folder / CHOICE).read_text())
    lines = {n: ([x for x, _ in c["curve"]], [100 * y for _, y in c["curve"]]) for n, c in curves.items()}
    made = _made_by([m for m in merged if m not in (PROBE, BASE)], [*experts.values()], tuned, aligned)
    costs = [r for m, stages in made.items() for r in cost_rows(m, stages)]
    found = effects.over_tasks([*rows, *costs], hits, [PROBE, *made], without=PROBE, unit="train_labels")
    scales = plots.curves_with_bands(lines, "scale", "mean validation accuracy, %", "Score against scale")
    text = TEXT + undefined_words(undefined_tasks(rows))
    page = render(
        config.title,
        {
            **config.facts,
            "best on validation": f"{best}: {_relative(_value(rows, best, 'normalised'))}",
            **repeatable(),
        },
        [
            Section("Test accuracy", text, [_accuracies(rows, methods, tasks)], [figure]),
            *effects.keep_effect(out, found, EFFECT),
            Section("Scale", "The smallest scale among equals is taken.", [_scales(curves)], [scales]),
            Section("Paired tests", _test_words(best), [_paired(hits, best, methods, tasks)]),
            Section("Interference", INTERFERENCE, [_interference(diagnosed)]),
            *quotes(quoted),
        ],
    )
    write_bytes(out.folder / "report.html", page.encode())
    write_bytes(out.folder / "accuracy.png", plots.png(figure))
    write_bytes(out.folder / "scale.png", plots.png(scales))
    out.rows(rows)
    normalised = {m: _value(rows, m, "normalised") for m in methods}
    out.metrics({f"normalised/{m}": value for m, value in normalised.items() if value is not None})


def _relative(normalised: float | None) -> str:
    return "no expert got a test item right" if normalised is None else f"{normalised:.1f} % of the individual experts"


def _made_by(
    merged: Iterable[str], experts: list[Artifact], tuned: Artifact, aligned: Artifact | None
) -> dict[str, list[Artifact]]:
    """Model -> the stages that it took, merges first."""
    fitted = [] if aligned is None else [aligned]
    return {
        **{m: [*experts, tuned, *(fitted if m.endswith(SUFFIX) else [])] for m in merged},
        CEILING: experts,
    }


def _percent(interval: Interval) -> Interval:
    return Interval(*(None if v is None else 100 * v for v in (interval.mean, interval.low, interval.high)))


def _value(rows: list[Row], method: str, metric: str) -> float | None:
    return next(r.value for r in rows if r.method == method and r.metric == metric and r.settings["task"] == "mean")


def _accuracies(rows: list[Row], methods: list[str], tasks: list[str]) -> Table:
    table = frame(rows)
    cells = {(r["method"], r["settings.task"], r["metric"]): r["value"] for r in table.to_dict("records")}
    lines = [
        [
            m,
            *(100 * cells[m, t, "accuracy"] for t in tasks),
            _value(rows, m, "normalised"),
            _mean(cells, m, tasks, "ece"),
        ]
        for m in methods
    ]
    return Table(["model", *tasks, "normalised mean, %", "ECE"], lines, "accuracy in % on test")


def _mean(cells: dict, method: str, tasks: list[str], metric: str) -> float:
    return sum(cells[method, t, metric] for t in tasks) / len(tasks)


def _scales(curves: dict) -> Table:
    lines = [[n, c["scale"], 100 * max(y for _, y in c["curve"]), len(c["curve"])] for n, c in curves.items()]
    return Table(["operator", "chosen scale", "validation accuracy, %", "scales tried"], lines)


def _interference(diagnosed: Artifact) -> Table:
    found = json.loads((diagnosed.folder / METRICS).read_text())
    names = sorted({name.rpartition("/")[0] for name in found})
    lines = [[n.replace("_", " "), found[f"{n}/mean"], found[f"{n}/max"]] for n in names]
    return Table(["measure", "mean", "largest"], lines)


def _test_words(best: str) -> str:
    return (
        f"Exact McNemar tests of {best} against every other model on the same test items, Holm-corrected over models "
        "and tasks. A p value near 1 says the items do not tell the two apart."
    )


def _paired(hits: dict, best: str, methods: list[str], tasks: list[str]) -> Table:
    others = [m for m in methods if m != best and not m.startswith("expert ")]
    p = {(m, t): mcnemar(hits[f"{best}/{t}"], hits[f"{m}/{t}"]) for m in others for t in tasks}
    corrected = dict(zip(p, holm(list(p.values())), strict=True))
    lines = [[m, *(corrected[m, t] for t in tasks)] for m in others]
    return Table([f"{best} against", *tasks], lines, "corrected p")
