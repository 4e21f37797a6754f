"""What holds for every flow: what was written is what MLflow holds, runs say what they transfer, lineage is whole.

Each flow runs once at its smallest size on real assets; a second call must find everything in the cache.
"""

import json
from dataclasses import fields
from pathlib import Path

import pytest
from mlflow.artifacts import download_artifacts

from core.evaluate.rows import read_rows
from core.hashing import sha256_file
from core.state import MANIFEST, verify
from core.transfer.effect import EffectReport
from flows.runtime import FLOWS
from tasks import mlflow_store
from tasks.lineage import trace
from tasks.tracking import row_metric

WITH_EFFECT = ("distill", "merge", "evolve-merge", "transfer")
NAMES = [n for n in FLOWS.names() if FLOWS.entry(n).facts["level"] != "operation"]
SIX = ("S", "T", "K", "D", "F", "budget")


@pytest.fixture(scope="module", params=NAMES)
def ran(request):
    """A flow and the summary of its smoke run, twice."""
    flow = FLOWS.get(request.param)
    form = flow.form(size="smoke")
    return flow, flow.run(form), flow.run(form)


def runs_of(summary):
    parent = mlflow_store.client().get_run(summary.mlflow_run_id)
    query = f"tags.`mlflow.parentRunId` = '{summary.mlflow_run_id}'"
    return parent, list(mlflow_store.client().search_runs([parent.info.experiment_id], query))


def test_rows_are_the_same_everywhere(ran):
    flow, summary, _ = ran
    assert summary.rows, "a flow without rows has no result"
    parent, _ = runs_of(summary)
    logged = download_artifacts(run_id=summary.mlflow_run_id, artifact_path="rows.jsonl")
    assert read_rows(logged) == summary.rows == read_rows(Path(summary.artifact.path) / "rows.jsonl")
    expected = {}
    for row in summary.rows:
        if row.value is not None:
            expected.setdefault(row_metric(row), set()).add((row.seed, row.value))
    for name, points in list(expected.items())[:40]:
        history = mlflow_store.client().get_metric_history(parent.info.run_id, name)
        assert {(m.step, m.value) for m in history} == points, name
    assert expected.keys() <= parent.data.metrics.keys()
    assert flow.level == mlflow_store.client().get_experiment(parent.info.experiment_id).name


def test_every_run_says_what_it_transfers_and_on_which_budget(ran):
    _, summary, _ = ran
    parent, stages = runs_of(summary)
    assert stages
    for run in [parent, *stages]:
        assert all(run.data.tags.get(key) for key in SIX), run.info.run_name
        assert run.info.status == "FINISHED"
        assert run.data.tags["commit"] is not None
        assert run.data.tags["version.torch"]
    assert json.loads(parent.data.tags["budget.spent"]), "a run without a counted budget reports nothing"
    assert json.loads(parent.data.tags["config"])["size"] == "smoke"


def test_files_are_what_the_stage_runs_hold(ran):
    _, summary, _ = ran
    for run in runs_of(summary)[1]:
        folder = Path(run.data.tags["output.path"])
        assert verify(folder)["sha256"] == run.data.tags["output.sha256"]
        logged = Path(download_artifacts(run_id=run.info.run_id, artifact_path=""))
        kept = [p for p in logged.rglob("*") if p.is_file() and p.name != "log.txt"]
        assert any(p.name == MANIFEST for p in kept), run.info.run_name
        for path in kept:
            assert sha256_file(path) == sha256_file(folder / path.relative_to(logged)), path


def test_lineage_is_whole_and_intact(ran):
    _, summary, _ = ran
    nodes = list(trace(summary.mlflow_run_id).walk())[1:]
    assert {n.state for n in nodes} == {"intact"}
    names = {n.name for n in nodes}
    assert len(names) >= 3, names
    page = Path(download_artifacts(run_id=summary.mlflow_run_id, artifact_path="lineage.html")).read_text()
    assert all(name in page for name in names)


def test_a_second_run_is_all_cache_and_equal(ran):
    _, first, second = ran
    assert second.rows == first.rows
    assert second.artifact.sha256 == first.artifact.sha256
    assert {r.data.tags["cache"] for r in runs_of(second)[1]} == {"hit"}


def test_the_report_is_one_self_contained_page(ran):
    _, summary, _ = ran
    page = (Path(summary.artifact.path) / "report.html").read_text()
    assert "<svg" in page or "data:image" in page
    for outside in ('src="http', "src='http", '<link rel="stylesheet"', "<script src"):
        assert outside not in page
    assert "torch does not promise trained weights that are equal" in page


def test_the_effect_is_reported_in_the_same_form(ran):
    flow, summary, _ = ran
    file = Path(summary.artifact.path) / "effect.json"
    if not file.exists():
        assert flow.name not in WITH_EFFECT
        pytest.skip(f"{flow.name} has no effect report")
    found = json.loads(file.read_text())
    assert "ransfer effect" in (file.parent / "report.html").read_text()
    if flow.name not in WITH_EFFECT:  # one effect a target
        assert all(effect.keys() == {f.name for f in fields(EffectReport)} for effect in found.values())
        return
    assert found.keys() == {f.name for f in fields(EffectReport)}
    report = next(r for r in runs_of(summary)[1] if r.data.tags["output.sha256"] == summary.artifact.sha256)
    logged = {k.removeprefix("gain/") for k in report.data.metrics if k.startswith("gain/")}
    assert logged == {m["method"] for m in found["methods"]} != set()
