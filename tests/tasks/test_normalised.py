"""An expert that gets no test item right: the run ends with a table that says what is undefined."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from core.merge.experts import load_expert
from core.merge.suite import Predictions
from core.state import seal
from tasks import evaluate_merges, report_chain, report_evolution
from tasks.evaluate_merges import CORRECT
from tasks.merge_static import CHOICE
from tasks.normalised import normalised_rows, undefined_tasks, undefined_words
from tasks.report_merges import ReportConfig, report_merges
from tasks.stage import METRICS, Artifact, Output
from tests import tiny_experts as te

TASKS = ("good", "plot", "dark")


def answered(right: dict[str, int], of: int = 20) -> dict[str, Predictions]:
    """So many of a task's test items are right."""
    labels = np.zeros(of, dtype=int)
    return {t: Predictions(np.eye(2)[(np.arange(of) >= n).astype(int)], labels) for t, n in right.items()}


def value(rows, method, task, metric="normalised"):
    return next(r.value for r in rows if (r.method, r.settings["task"], r.metric) == (method, task, metric))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return te.world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def evaluated(world, tmp_path, monkeypatch):
    """The evaluation of one merge, the expert of ``plot`` being wrong on every test item."""
    own, other = answered({"good": 16, "plot": 0, "dark": 10}), answered({"good": 8, "plot": 5, "dark": 10})
    folders = set(map(str, world.folders.values()))
    monkeypatch.setattr(evaluate_merges, "experts_of", lambda _: [load_expert(f) for f in world.folders.values()])
    monkeypatch.setattr(
        evaluate_merges, "_of", lambda model, e, c, *heads: [own if model.path in folders else other] * len(heads)
    )
    monkeypatch.setattr(evaluate_merges, "tested", lambda expert, _: te.tasks((expert.task,))[0].splits().test)
    monkeypatch.setattr(Artifact, "facts", lambda self: {"budget": {}})
    experts = {t: Artifact(name="train-expert", path=str(f), sha256=t) for t, f in world.folders.items()}
    base = Artifact(name="load-model", path=str(world.base), sha256="base")
    out = Output(tmp_path / "evaluated")
    out.folder.mkdir()
    merged, config = {"average": base}, evaluate_merges.EvaluateConfig()
    evaluate_merges.evaluate_merges.body(out, config, base=base, experts=experts, merged=merged, spent=merged)
    return Artifact(name="evaluate-merges", path=str(out.folder), sha256=seal(out.folder))


def test_the_mean_is_over_the_tasks_that_can_be_normalised():
    individual = {"good": 0.8, "plot": 0.0, "dark": 0.5}
    rows = normalised_rows("average", answered({"good": 8, "plot": 5, "dark": 10}), individual, seed=3)
    assert [value(rows, "average", t) for t in (*TASKS, "mean")] == [50.0, None, 100.0, 75.0]
    assert value(rows, "average", "plot", "accuracy") == 0.25
    assert {r.seed for r in rows} == {3}
    assert undefined_tasks(rows) == ["plot"]
    none = normalised_rows("average", answered({"plot": 5}), {"plot": 0.0})
    assert value(none, "average", "mean") is None
    assert undefined_words([]) == ""


def test_evaluation_and_report_end_and_say_so(evaluated, world, tmp_path):
    assert value(evaluated.rows(), "average", "plot") is None
    assert value(evaluated.rows(), "average", "mean") == 75.0
    tuned, diagnosed, out = (tmp_path / name for name in ("tuned", "diagnosed", "out"))
    for folder in (tuned, diagnosed, out):
        folder.mkdir()
    (tuned / CHOICE).write_text(json.dumps({"average": {"scale": 1.0, "curve": [[0.5, 0.4], [1.0, 0.5]]}}))
    (diagnosed / METRICS).write_text(json.dumps({"cosine/mean": 0.1, "cosine/max": 0.2}))
    given = {f.name: Artifact(name=f.name, path=str(f), sha256=seal(f)) for f in (tuned, diagnosed)}
    experts = {t: Artifact(name="train-expert", path=str(f), sha256=t) for t, f in world.folders.items()}
    report_merges.body(Output(out), ReportConfig(title="Merges"), evaluated=evaluated, experts=experts, **given)
    page = (out / "report.html").read_text()
    assert "The expert of plot got no test item right" in page
    assert "average: 75.0 % of the individual experts" in page
    assert json.loads((out / METRICS).read_text())["normalised/average"] == 75.0


def test_the_gain_of_a_search_is_over_the_other_tasks(evaluated):
    rows = evaluated.rows()
    hits = load_file(evaluated.folder / CORRECT)
    hits |= {f"other/{t}": np.zeros(20, dtype=np.uint8) for t in TASKS}
    gain = report_evolution.gain_of(hits, rows, list(TASKS), "average", "other")
    assert gain.mean == pytest.approx(75.0)
    assert report_evolution.gain_of(hits, rows, ["plot"], "average", "other") is None
    assert "undefined" in report_evolution._gain_words(None, "cold_cma")
    table = report_evolution._accuracies(rows, ["average", evaluate_merges.CEILING], list(TASKS))
    assert len(table.rows) == 2


def test_a_chain_with_a_teacher_that_is_always_wrong_is_relative_to_the_others():
    right, wrong = np.ones(4, dtype=np.uint8), np.zeros(4, dtype=np.uint8)
    assert report_chain._of_teacher({"a": wrong, "b": right}, {"a": wrong, "b": right}) == 100.0
    assert report_chain._of_teacher({"a": right}, {"a": wrong}) is None
