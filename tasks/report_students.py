"""The report of a distillation: what the transfer gained, against the student alone and the teacher."""

import json
from collections.abc import Mapping

import numpy as np
from pydantic import Field

from core.config import Config
from core.distill.methods import METHODS
from core.evaluate import plots
from core.evaluate.rows import Row
from core.evaluate.statistics import bootstrap_mean, holm, mcnemar
from core.state import write_bytes
from core.transfer.effect import EffectReport, effect
from core.transfer.report import Section, Table, render
from tasks import effect as effects
from tasks.build_prompts import exchanged_words
from tasks.cache_signals import HEAD_ROOM
from tasks.costed import cost_rows
from tasks.evaluate_students import CORRECT
from tasks.quote_mistakes import sections as quotes
from tasks.repeatable import repeatable
from tasks.spent import together
from tasks.stage import Artifact, Output, stage

BASELINE, TEACHER, TAUGHT = "label_words", "teacher tuned", "taught."
TEXT = (
    "The baseline to beat is the student fine-tuned alone with a label-word head. The gate looked at dev rows and pool "
    "texts only; where it does not hear the teacher, Prompt-Distiller returns that baseline."
)
GATE = (
    "On dev rows that neither has learned from. posterior: probability that the tuned teacher is better than the "
    "student alone, from the rows that only one of them got right (teacher_only, student_only). gain: difference of "
    "their accuracies there, as a share. disagreement: share of pool texts that the two answer differently, the most "
    "that can be gained. weight: factor of the teacher's terms; 0 does not hear it. taught: the same asked of the "
    "student that the teacher taught, against the student alone; kept 0 gives it up."
)


EFFECT = (
    "The run without transfer is the student fine-tuned alone on the same labels. Dev rows, which the gate reads, are "
    "not among the train_labels. Seconds, energy and memory are of all that led to a model: for a taught student also "
    "of tuning its teacher and caching signals, which taught students share."
)
LABELS = "train_labels"


class ReportConfig(Config):
    """What the page says at its top."""

    title: str = Field(description="headline")
    method: str = Field(description="method whose gain the headline states")
    facts: dict[str, str] = Field(default_factory=dict, description="what a reader must know at once")


MODULES = ["core.transfer.report", "core.evaluate.plots", "core.evaluate.statistics", *effects.MODULES]


@stage("report-students", modules=MODULES)
def report_students(
    out: Output,
    config: ReportConfig,
    evaluated: Artifact,
    signals: Artifact,
    students: Mapping[str, Artifact],
    tuned: Artifact,
    prompts: Artifact,
    quoted: Artifact | None = None,
) -> None:
    """Write the page and hand the rows on. ``students``: with what the gate found; ``prompts``: with their splits."""
    rows = evaluated.rows()
    with np.load(evaluated.folder / CORRECT) as stored:
        hits = {name: stored[name].astype(float) for name in stored.files}
    room = json.loads((signals.folder / HEAD_ROOM).read_text())
    taught = {k: v for k, v in students[config.method].facts().get("gate", {}).items() if k.startswith(TAUGHT)}
    values = {(r.method, r.metric): r.value for r in rows}
    intervals = {name: bootstrap_mean(100 * h) for name, h in hits.items()}
    others = [n for n in hits if n != BASELINE]
    p = dict(zip(others, holm([mcnemar(hits[n], hits[BASELINE]) for n in others]), strict=True))
    lines = [
        [n, i, i.mean - intervals[BASELINE].mean, p.get(n), values[n, "ece"], values.get((n, "texts_per_second"))]
        for n, i in intervals.items()
    ]
    columns = ["model", "accuracy, %", "gain over the student alone", "p (McNemar, Holm)", "ECE", "texts a second"]
    figure = plots.bars_with_intervals(
        {n: {"test": i} for n, i in intervals.items()}, "test accuracy, %", "Accuracy, 95 % interval over test items"
    )
    told = Table(["method", "what it is"], [[n, METHODS[n].summary] for n in intervals if n in METHODS])
    checks = Table(["head-room check", "value"], [[k, v] for k, v in (room | taught).items()])
    costs = [r for m, parts in _made_by(signals, students, tuned).items() for r in cost_rows(m, parts)]
    page = render(
        config.title,
        {
            **config.facts,
            **_gained(config.method, intervals, p, room | taught),
            **exchanged_words(prompts),
            **repeatable(),
        },
        [
            Section("Accuracy", TEXT, [Table(columns, lines), told], [figure]),
            *effects.keep_effect(out, effect_of(rows, hits, costs), EFFECT),
            Section("Gate", GATE, [checks]),
            *quotes(quoted),
        ],
    )
    write_bytes(out.folder / "report.html", page.encode())
    write_bytes(out.folder / "accuracy.png", plots.png(figure))
    out.rows(rows)
    out.budget(together([tuned, *students.values()]))


def effect_of(rows: list[Row], hits: Mapping[str, np.ndarray], costs: list[Row]) -> EffectReport:
    """Every method and the teacher against the student alone, on the same labels."""
    seed = next(r.seed for r in rows)
    correct = {(method, seed): right for method, right in hits.items()}
    return effect([*rows, *costs], metric="accuracy", without=BASELINE, unit=LABELS, correct=correct)


def _made_by(signals: Artifact, students: Mapping[str, Artifact], tuned: Artifact) -> dict[str, list[Artifact]]:
    """Model -> the stages that it took."""
    teaching = {m: [tuned, signals] if METHODS[m].kind == "distill" else [] for m in students}
    return {TEACHER: [tuned], **{m: [*teaching[m], student] for m, student in students.items()}}


def _gained(method: str, intervals: dict, p: dict, room: dict) -> dict[str, str]:
    """The headline: what the served student gained, and how sure that is."""
    gain, gap = (intervals[n].mean - intervals[BASELINE].mean for n in (method, TEACHER))
    said = f"{method}: {gain:+.1f} points over the student alone"
    if method in p:
        said += f" (p = {p[method]:.2g})"
    if gap > 0:
        said += f", {100 * gain / gap:.0f} % of the gap to the teacher"
    heard = "heard" if room["weight"] else "skipped"
    gate = f"teacher {heard} (posterior {room['posterior']:.2f})"
    if room.get(f"{TAUGHT}kept") == 0:
        gate += f", its student given up (posterior {room[f'{TAUGHT}posterior']:.2f}): the student alone is delivered"
    return {"what the transfer gained": said, "gate": gate}
