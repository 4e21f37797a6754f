"""The effect of a transfer in the reports of all levels: one section, one file, the same metrics."""

from collections.abc import Mapping, Sequence

import numpy as np

from core.evaluate.rows import Row
from core.state import write_json
from core.transfer import effect_page
from core.transfer.effect import COSTS, EffectReport, effect
from core.transfer.report import Section
from tasks.stage import Output

EFFECT, METRIC = "effect.json", "accuracy"
MODULES = ["core.transfer.effect_page"]  # part of the content key of the reports


def keep_effect(out: Output, report: EffectReport, note: str = "") -> list[Section]:
    """Write the effect beside the page, log gain and harm, and give the sections of the page."""
    write_json(out.folder / EFFECT, report.as_dict())
    out.metrics({f"gain/{m.method}": m.gain.mean for m in report.methods})
    out.metrics({f"harm/{m.method}": m.harm for m in report.methods if m.harm is not None})
    return effect_page.sections(report, note)


def over_tasks(
    rows: Sequence[Row], hits: Mapping[str, np.ndarray], methods: Sequence[str], *, without: str, unit: str, reached=""
) -> EffectReport:
    """The effect on models that answer several tasks, in accuracy: the tasks are the cells.

    Args:
        rows: of each method one a task (``settings["task"]``; means over tasks are left out), and costs.
        hits: ``"method/task"`` -> which of the task's test items were right.
        methods: what is compared, the one without transfer among them.
        reached: see :func:`core.transfer.effect.effect`.
    """
    kept = [r for r in rows if r.method in methods and (r.metric in (*COSTS, reached) or r.settings["task"] != "mean")]
    seeds = {r.method: r.seed for r in kept if r.metric == METRIC}
    tasks = sorted({str(r.settings["task"]) for r in kept if r.metric == METRIC})
    correct = {(m, seeds[m]): {t: hits[f"{m}/{t}"] for t in tasks} for m in methods}
    return effect(kept, metric=METRIC, without=without, unit=unit, correct=correct, reached=reached)
