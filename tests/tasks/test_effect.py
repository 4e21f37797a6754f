"""The effect in the reports of several levels: the tasks as cells, a search's curve, costs, one file."""

import json
from dataclasses import fields

import numpy as np
import pytest

from core.evaluate.rows import Row
from core.state import seal
from core.transfer.effect import EffectReport, effect
from tasks.costed import cost_rows, costed
from tasks.effect import EFFECT, keep_effect, over_tasks
from tasks.evaluate_merges import CEILING, PROBE
from tasks.report_evolution import ReportConfig, effect_of
from tasks.stage import METRICS, Artifact, Output

RIGHT = {PROBE: {"a": 5, "b": 4}, "ties": {"a": 7, "b": 3}, CEILING: {"a": 8, "b": 6}}  # of ten items a task


def evaluated(right=RIGHT, budget=None):
    """Rows and hits as the evaluation of merges writes them."""
    rows, hits = [], {}
    for method, tasks in right.items():
        facts = {"method": method, "budget": budget or {"train_labels": 64.0}}
        for task, count in tasks.items():
            hits[f"{method}/{task}"] = np.array([1] * count + [0] * (10 - count), dtype=np.uint8)
            rows.append(Row(metric="accuracy", value=count / 10, settings={"task": task}, **facts))
            rows.append(Row(metric="ece", value=count / 100, settings={"task": task}, **facts))
        rows.append(Row(metric="accuracy", value=sum(tasks.values()) / 20, settings={"task": "mean"}, **facts))
    return rows, hits


def test_tasks_are_the_cells_and_means_over_them_are_none():
    rows, hits = evaluated()
    report = over_tasks(rows, hits, [*RIGHT], without=PROBE, unit="train_labels")
    merged = report.of("ties")
    assert (report.cells, report.seeds, merged.pairs) == (2, 1, 2)
    assert merged.gain.mean == pytest.approx((0.2 - 0.1) / 2)
    assert merged.gain_items.mean == pytest.approx(merged.gain.mean)
    assert merged.mcnemar_p == pytest.approx(1.0), "two gained, one lost"
    assert merged.calibration["ece"] == pytest.approx((0.02 - 0.01) / 2)
    assert merged.harm is None
    only = over_tasks(rows, hits, [PROBE, "ties"], without=PROBE, unit="train_labels")
    assert [m.method for m in only.methods] == ["ties"]


@pytest.mark.parametrize("aligned", [False, True])
def test_searches_are_compared_at_what_they_were_given_and_by_their_curves(aligned):
    names = {n: n + (" with aligned heads" if aligned else "") for n in ("emfto", "cold_cma")}
    rows, hits = evaluated({names["emfto"]: {"a": 7, "b": 7}, names["cold_cma"]: {"a": 6, "b": 6}})
    found = {
        "emfto": {"curve": [[100, 0.8], [200, 0.95], [390, 0.97]], "spent": 390.0},
        "cold_cma": {"curve": [[100, 0.7], [380, 0.9]], "spent": 380.0},
    }
    config = ReportConfig(title="", budget=400)
    report = effect_of(rows, hits, found, names, config)
    search = report.of(names["emfto"])
    assert search.gain.mean == pytest.approx(0.1), "although it spent ten more"
    assert search.budget_ratio == pytest.approx(200 / 380)
    assert (report.unit, report.reached) == ("task_examples", "best score so far")
    nothing = {n: f | {"curve": []} for n, f in found.items()}
    assert effect_of(rows, hits, nothing, names, config).of(names["emfto"]).budget_ratio is None


def test_the_same_file_and_metrics_for_every_level(tmp_path):
    rows, hits = evaluated()
    out = Output(tmp_path)
    report = over_tasks(rows, hits, [*RIGHT], without=PROBE, unit="train_labels")
    assert keep_effect(out, report, "A note.")[0].text.endswith("A note.")
    assert json.loads((tmp_path / EFFECT).read_text()).keys() == {f.name for f in fields(EffectReport)}
    assert json.loads((tmp_path / METRICS).read_text()) == {
        "gain/ties": pytest.approx(0.05),
        f"gain/{CEILING}": pytest.approx(0.25),
    }, "no harm is logged that one seed cannot tell"
    several = [r.model_copy(update={"seed": s}) for r in rows if r.settings["task"] == "a" for s in range(3)]
    keep_effect(out, effect(several, metric="accuracy", without=PROBE))
    assert json.loads((tmp_path / METRICS).read_text())["harm/ties"] == 0


def measured(folder, **changes):
    """An artifact of a stage that noted its cost."""
    folder.mkdir()
    out = Output(folder)

    @costed
    def body(out, config):
        """What it does."""
        out.facts["budget"] = {"steps": 1}

    body(out, None)
    assert body.__doc__ == "What it does."
    assert out.facts["cost"]["seconds"] > 0
    facts = out.facts | {"cost": out.facts["cost"] | changes}
    return Artifact(name="stage", path=str(folder), sha256=seal(folder, facts))


def test_costs_of_stages_add_up_and_memory_is_the_largest(tmp_path):
    first = measured(tmp_path / "a", seconds=2.0, energy_wh=1.0, peak_memory_mb=30.0, energy_source="rapl")
    second = measured(tmp_path / "b", seconds=3.0, energy_wh=0.5, peak_memory_mb=20.0, energy_source="estimate")
    rows = cost_rows("taught", [first, second])
    assert {r.metric: r.value for r in rows} == {"seconds": 5.0, "energy_wh": 1.5, "peak_memory_mb": 30.0}
    assert {r.metric: r.settings for r in rows}["energy_wh"] == {"energy_source": "estimate; rapl"}
    assert first.facts()["budget"] == {"steps": 1}


def test_a_stage_that_was_not_measured_leaves_the_cost_undefined(tmp_path):
    (tmp_path / "old").mkdir()
    old = Artifact(name="stage", path=str(tmp_path / "old"), sha256=seal(tmp_path / "old"))
    assert cost_rows("taught", [measured(tmp_path / "new"), old]) == []
    assert cost_rows("taught", []) == []
