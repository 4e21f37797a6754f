"""The report of a chain: searched structure against the first layers at equal size and budget, as one page."""

import json
from collections.abc import Mapping

import numpy as np
from pydantic import Field
from safetensors.numpy import load_file

from core.chain.compare import Comparison, compare, total, verdict
from core.config import Config
from core.evaluate import plots
from core.evaluate.rows import Row
from core.evaluate.statistics import Interval, bootstrap_mean
from core.hashing import code_version
from core.state import write_bytes
from core.transfer.effect import CALIBRATION, EffectReport
from core.transfer.report import Section, Table, render
from tasks import effect as effects
from tasks.align_heads import SUFFIX
from tasks.check_students import CHECKED
from tasks.costed import cost_rows
from tasks.evaluate_merges import CEILING, CORRECT, PROBE
from tasks.merge_static import best_on_validation
from tasks.normalised import undefined_words
from tasks.repeatable import repeatable
from tasks.search_structure import read_structure
from tasks.stage import Artifact, Output, stage

MODULES = ["core.chain.compare", "core.transfer.report", "core.evaluate.plots", *effects.MODULES]
TEACHERS, STUDENTS, FROZEN = "teachers", "students", "start, frozen"
MERGED, ALIGNED = "merged", "merged" + SUFFIX
WORDS = {
    MERGED: "merged, best on validation",
    ALIGNED: f"merged, best on validation,{SUFFIX}",
    STUDENTS: "students before merging",
}
TEXT = (
    "One model answers all tasks: students of one structure, all begun at the same cut weights, are merged by static "
    "operators whose scale was chosen on validation data. Students are those before the merge, one a task; the frozen "
    "start has a probe a task and no distillation. Percentages of the teachers are test accuracy relative to each "
    "task's own teacher."
)
HEADS = (
    " Aligned heads answer on the merged encoder as each student does on its own: they are fitted to its answers to "
    "unlabelled validation texts, in both arms alike. The packaged model has them."
)
EQUAL = (
    "Both arms have the same teachers, labels, validation texts, distillation and merging. The texts that the search "
    "trained on are given to the first layers as a longer warm-up, so both trained on as many; the search's training "
    "on top of that is judged by a probe, which the first layers do not need. Validation labels chose the structure "
    "and the merge's scale."
)
EFFECT = (
    "The run without transfer is the start of the first layers, frozen, with a probe a task: the same labels, but no "
    "search, no distillation and no merge. Cells are the tasks. Validation labels, which chose structure and scales, "
    "are not among the train_labels, and neither are unlabelled texts. Seconds, energy and memory are of all that led "
    "to a model: teachers, search, start, students and the choice of scales; those of the probes were not measured."
)


class ChainReportConfig(Config):
    """What the page says at its top."""

    title: str = Field(description="headline")
    facts: dict[str, str] = Field(default_factory=dict, description="what a reader must know at once")
    validation_labels: int = Field(description="validation labels that either arm looked at")
    seed: int = Field(0, description="of the run")


@stage("report-chain", modules=MODULES)
def report_chain(
    out: Output,
    config: ChainReportConfig,
    arms: Mapping[str, Mapping[str, Artifact]],
    students: Mapping[str, Mapping[str, Artifact]],
    tuned: Mapping[str, Artifact],
    search: Artifact,
    teachers: Artifact,
    teacher: Artifact,
    base: Artifact,
) -> None:
    """``arms``: arm -> its ``start``, ``checked``, ``scales``, ``evaluated``; the first is the searched one.

    Where heads were aligned, ``aligned``, too: the merge is then also reported with them.
    """
    taught = load_file(teachers.folder / CORRECT)
    tasks = sorted(taught)
    spent = {arm: _spent(parts, students[arm], tuned, search if i == 0 else None)
             for i, (arm, parts) in enumerate(arms.items())}  # fmt: skip
    hits = {TEACHERS: taught} | {
        f"{arm}: {name}": found for arm, parts in arms.items() for name, found in _hits(parts, tasks).items()
    }
    fitting = {arm: parts["aligned"].facts()["budget"] for arm, parts in arms.items() if "aligned" in parts}
    pairs = _pairs(arms, aligned=bool(fitting))
    compared = {what: compare(*(hits[m] for m in pair)) for what, pair in pairs.items()}
    said = {WORDS[what]: verdict(compared[what], *pair) for what, pair in pairs.items()} | _gained(pairs, hits)
    inputs = {"teacher": teacher.sha256, "base": base.sha256}
    rows = _rows(config, hits, taught, spent, fitting, arms, inputs)
    out.rows(rows + _differences(config, compared, next(iter(spent.values())), next(iter(fitting.values()), {})))
    effect = effect_of(rows, arms, _costs(arms, students, tuned, search), hits)
    shown = {m: {t: _interval(h[t]) for t in tasks} for m, h in hits.items()}
    figure = plots.bars_with_intervals(
        {m: shown[m] for m in (TEACHERS, *pairs[STUDENTS], *pairs[MERGED], *pairs.get(ALIGNED, ()))},
        "test accuracy, %",
        "Accuracy by task, 95 % interval over test items",
    )
    found = read_structure(search.folder)
    text = TEXT + (HEADS if fitting else "")
    text += undefined_words([t for t in tasks if not taught[t].any()], "teacher")
    sections = [
        Section("Test accuracy", text, [_accuracies(shown, hits, taught, tasks)], [figure]),
        *effects.keep_effect(out, effect, EFFECT),
        Section(
            "Searched structure against the first layers",
            EQUAL,
            [_compared(compared), _budgets(spent, fitting, config)],
        ),
        Section("Structure", _structure_words(found), [_trials(found)]),
        Section("Lineage", "Hashes of what stands between teacher and metric.", [_lineage(arms, teacher, base)]),
    ]
    page = render(config.title, {**config.facts, **said, **repeatable()}, sections)
    write_bytes(out.folder / "report.html", page.encode())
    write_bytes(out.folder / "accuracy.png", plots.png(figure))
    out.metrics({f"difference/{what}": c.mean.mean for what, c in compared.items()})
    out.metrics({f"p/{what}": c.p for what, c in compared.items()})


def _pairs(arms: Mapping[str, Mapping[str, Artifact]], aligned: bool) -> dict[str, list[str]]:
    """What is compared -> the model of each arm."""
    merged = [f"{arm}: {best_on_validation(parts['scales'])}" for arm, parts in arms.items()]
    fitted = {ALIGNED: [m + SUFFIX for m in merged]} if aligned else {}
    return {MERGED: merged, **fitted, STUDENTS: [f"{arm}: {STUDENTS}" for arm in arms]}


def _gained(pairs: Mapping[str, list[str]], hits: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, str]:
    """What aligned heads changed in each arm, for the top of the page."""
    both = zip(pairs.get(ALIGNED, ()), pairs[MERGED], strict=False)
    return {
        f"aligned heads, {fitted.partition(': ')[0]}": verdict(compare(hits[fitted], hits[plain]), fitted, plain)
        for fitted, plain in both
    }


def _spent(
    parts: Mapping[str, Artifact],
    students: Mapping[str, Artifact],
    tuned: Mapping[str, Artifact],
    search: Artifact | None,
) -> dict[str, float]:
    """What an arm took. Teacher and student of a task learn from the same labels: they are counted once."""
    stages = [parts["start"], parts["scales"], *tuned.values(), *students.values(), *([search] if search else [])]
    labels = sum(a.facts()["budget"].get("train_labels", 0) for a in tuned.values())
    return {**total(a.facts()["budget"] for a in stages), "train_labels": labels}


def _hits(parts: Mapping[str, Artifact], tasks: list[str]) -> dict[str, dict[str, np.ndarray]]:
    """Model -> task -> which test items were right: frozen start, students, every merge."""
    stored = load_file(parts["evaluated"].folder / CORRECT)
    return {shown: {t: stored[f"{name}/{t}"] for t in tasks} for shown, name in _models(parts).items()}


def _models(parts: Mapping[str, Artifact]) -> dict[str, str]:
    """Model of an arm -> the name it was evaluated under."""
    names = list(dict.fromkeys(r.method for r in parts["evaluated"].rows()))
    merges = [n for n in names if n not in (PROBE, CEILING, "base with heads") and not n.startswith("expert ")]
    return {FROZEN: PROBE, STUDENTS: CEILING, **{n: n for n in merges}}


def effect_of(
    rows: list[Row],
    arms: Mapping[str, Mapping[str, Artifact]],
    costs: list[Row],
    hits: Mapping[str, Mapping[str, np.ndarray]],
) -> EffectReport:
    """Every model of the chain against the start of the first layers, frozen: no search, distillation or merge."""
    also = [*costs]
    for arm, parts in arms.items():
        shown = {name: f"{arm}: {model}" for model, name in _models(parts).items()}
        scored = [r for r in parts["evaluated"].rows() if r.method in shown and r.metric in CALIBRATION]
        also += [r.model_copy(update={"method": shown[r.method]}) for r in scored]
    right = {f"{m}/{t}": h for m, found in hits.items() for t, h in found.items()}
    twin = f"{list(arms)[-1]}: {FROZEN}"
    return effects.over_tasks([*rows, *also], right, [*hits], without=twin, unit="train_labels")


def _costs(
    arms: Mapping[str, Mapping[str, Artifact]],
    students: Mapping[str, Mapping[str, Artifact]],
    tuned: Mapping[str, Artifact],
    search: Artifact,
) -> list[Row]:
    """What led to every model: the searched arm, which is the first, also took the search."""
    rows = cost_rows(TEACHERS, tuned.values())
    for i, (arm, parts) in enumerate(arms.items()):
        start = [parts["start"], *([] if i else [search])]
        taught = [*start, *tuned.values(), *students[arm].values()]
        for model in _models(parts):
            fitted = [parts["aligned"]] if model.endswith(SUFFIX) else []
            merged = [*taught, parts["scales"], *fitted]
            stages = {FROZEN: start, STUDENTS: taught}.get(model, merged)
            rows += cost_rows(f"{arm}: {model}", stages)
    return rows


def _interval(hits: np.ndarray) -> Interval:
    return bootstrap_mean(100 * hits.astype(float))


def _mean(hits: Mapping[str, np.ndarray]) -> float:
    return float(np.mean([h.mean() for h in hits.values()]))


def _of_teacher(hits: Mapping[str, np.ndarray], taught: Mapping[str, np.ndarray]) -> float | None:
    """Mean over tasks of accuracy relative to the teacher's, in percent, without those that it got all wrong."""
    shares = [100 * hits[t].mean() / h.mean() for t, h in taught.items() if h.any()]
    return float(np.mean(shares)) if shares else None


def _rows(config, hits, taught, spent, fitting, arms, inputs) -> list[Row]:
    """``fitting``: arm -> what its aligned heads took, which no other model needs."""
    rows = []
    for method, found in hits.items():
        arm = method.partition(": ")[0]
        facts = {"seed": config.seed, "oracle": "test", "version": code_version(MODULES)}
        facts["budget"] = spent.get(arm, {"train_labels": next(iter(spent.values()))["train_labels"]})
        if method.endswith(SUFFIX):
            facts["budget"] = facts["budget"] | fitting[arm]
        facts["inputs"] = inputs | ({"start": arms[arm]["start"].facts()["start_sha256"]} if arm in arms else {})
        values = {("accuracy", t): float(h.mean()) for t, h in found.items()}
        values |= {("accuracy", "mean"): _mean(found), ("of_teacher", "mean"): _of_teacher(found, taught)}
        rows += [Row(method=method, metric=m, value=v, settings={"task": t}, **facts) for (m, t), v in values.items()]
    return rows


def _differences(config, compared: Mapping[str, Comparison], spent: dict, fitting: dict) -> list[Row]:
    """Searched less first layers, in points; intervals and p beside it. The budgets are the searched arm's."""
    rows = []
    for what, c in compared.items():
        values = {"difference": c.mean.mean, "low": c.mean.low, "high": c.mean.high, "p": c.p}
        facts = {"seed": config.seed, "oracle": "test", "version": code_version(MODULES)}
        facts["budget"] = spent | (fitting if what == ALIGNED else {})
        method = f"searched less first layers, {what}"
        rows += [Row(method=method, metric=m, value=v, settings={"task": "mean"}, **facts) for m, v in values.items()]
    return rows


def _accuracies(shown, hits, taught, tasks: list[str]) -> Table:
    lines = [[m, *(shown[m][t] for t in tasks), 100 * _mean(hits[m]), _of_teacher(hits[m], taught)] for m in hits]
    return Table(["model", *tasks, "mean", "of the teachers, %"], lines, "accuracy in %, 95 % interval over items")


def _compared(compared: Mapping[str, Comparison]) -> Table:
    lines = []
    for what, c in compared.items():
        lines.append([WORDS[what], "all", c.mean, c.p])
        lines += [[WORDS[what], task, interval, p] for task, (interval, p) in c.tasks.items()]
    columns = ["models", "task", "searched less first layers, points", "p (McNemar; tasks Holm-corrected)"]
    return Table(columns, lines, "same test items, paired")


def _budgets(spent: Mapping[str, dict], fitting: Mapping[str, dict], config: ChainReportConfig) -> Table:
    whole = {arm: budget | fitting.get(arm, {}) for arm, budget in spent.items()}
    units = sorted({u for budget in whole.values() for u in budget})
    lines = [[u.replace("_", " "), *(budget.get(u, 0) for budget in whole.values())] for u in units]
    lines.append(["validation labels", *[config.validation_labels] * len(spent)])
    note = "training texts of the search are part of train examples"
    note += "; unlabelled texts are those read by students and merge to align heads" if fitting else ""
    return Table(["spent", *spent], lines, note)


def _structure_words(found: dict) -> str:
    return (
        f"{found['pool']} structures are as large as the first layers: fewer layers at full width, or more layers with "
        f"fewer feed-forward neurons. {len(found['trials'])} of them were distilled and judged. Kept: "
        f"{found['structure']} (heads x neurons of each layer, - dropped); first layers: {found['first']}."
    )


def _trials(found: dict) -> Table:
    lines = [[i, t["structure"], t["score"], t["weights"]] for i, t in enumerate(found["trials"], 1)]
    return Table(["query", "structure", "mean validation accuracy, %", "weights of the layers"], lines)


def _lineage(arms: Mapping[str, Mapping[str, Artifact]], teacher: Artifact, base: Artifact) -> Table:
    lines = [["teacher", "", teacher.sha256[:16]], ["base", "", base.sha256[:16]]]
    for arm, parts in arms.items():
        checked = json.loads((parts["checked"].folder / CHECKED).read_text())
        lines.append([f"{arm}: start", checked["structure"], checked["start_sha256"][:16]])
        lines += [[f"{arm}: student", task, sha[:16]] for task, sha in checked["students"].items()]
        lines += [[f"{arm}: aligned heads", "", parts["aligned"].sha256[:16]]] if "aligned" in parts else []
        lines.append([f"{arm}: test answers", "", parts["evaluated"].sha256[:16]])
    return Table(["what", "which", "sha256"], lines)
