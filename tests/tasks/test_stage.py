"""Stages and flows on a real embedded store: what was written equals what MLflow holds."""

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow.artifacts import download_artifacts

from core.config import Config
from core.evaluate.rows import Row, read_rows
from core.transfer.problem import Problem
from tasks import lineage, mlflow_store, tracking
from tasks.fan_out import gather
from tasks.lineage import Node, graph_html, trace
from tasks.stage import of_size, planning, stage

PROBLEM = Problem(source="s", target="t", knowledge="k", domain="d", objective="f", budget="3 queries")
CALLS: list[str] = []


class Settings(Config):
    x: int = 1


@stage("count", modules=["core.state"])
def count(out, config):
    """Write a number."""
    CALLS.append("count")
    (out.folder / "n.txt").write_text(str(config.x))
    out.metrics({"n": config.x})
    out.curve("loss", [(i, 1 / (i + 1)) for i in range(5)])
    out.budget({"queries": 3})


@stage("double", modules=["core.state"])
def double(out, config, counted):
    """Double a number."""
    CALLS.append("double")
    n = int((counted.folder / "n.txt").read_text())
    out.rows([Row(method="double", metric="value", value=2 * n, settings={"task": "a b"}, seed=s) for s in range(2)])


@pytest.fixture
def run(home):
    CALLS.clear()
    with tracking.start("test", "system", PROBLEM, Settings(), {"flow": "test"}) as run:
        yield run


def test_a_stage_is_computed_once_recorded_and_traced(run):
    result = double(Settings(x=4), counted=count(Settings(x=4)))
    again = double(Settings(x=4), counted=count(Settings(x=4)))
    assert again == result
    assert CALLS == ["count", "double"]
    assert run.spool.close()
    made = mlflow_store.client().get_run(mlflow_store.find_run(result.run))
    assert {k: made.data.tags[k] for k in "STKDF"} == {k: PROBLEM.tags()[k] for k in "STKDF"}
    assert made.data.tags["output.sha256"] == result.sha256
    assert made.data.metrics["double/task-a b/value"] == 8
    inputs = json.loads(made.data.tags["inputs"])
    counted = mlflow_store.client().get_run(mlflow_store.find_run(inputs[0]["run"]))
    assert counted.data.metrics["n"] == 4
    assert counted.data.metrics["budget.queries"] == 3
    assert len(mlflow_store.client().get_metric_history(counted.info.run_id, "loss")) == 5
    logged = download_artifacts(run_id=made.info.run_id, artifact_path="rows.jsonl")
    assert read_rows(logged) == result.rows()
    assert made.data.tags["mlflow.parentRunId"] == mlflow_store.find_run(run.id)

    tree = trace(result.run)
    assert [n.state for n in tree.inputs] == ["intact"]
    assert "count" in graph_html(tree, {}, None)
    Path(tree.inputs[0].path, "n.txt").write_text("5")
    assert trace(result.run).inputs[0].state == "damaged"


def test_a_lineage_names_models_and_data_and_tells_an_artifact_once(tmp_path):
    for card, name in (("asset.json", "./mine"), ("data.json", "notes")):
        (tmp_path / name.strip("./")).mkdir()
        (tmp_path / name.strip("./") / card).write_text(json.dumps({"name": name}))
    assert [lineage._about(str(tmp_path / n)) for n in ("mine", "notes")] == ["./mine", "notes"]
    model = Node("load-model", "a" * 64, "1", "", "", about="./mine")
    experts = [Node("take-expert", c * 64, c, "", "", [model]) for c in "bc"]
    merged = Node("merge", "d" * 64, "d", "", "", experts)
    root = Node("report", "e" * 64, "e", "", "", [merged, Node("evaluate", "f" * 64, "f", "", "", [merged, *experts])])
    assert [n.title for n in root.unfolded().walk()] == [
        *("report", "merge", "take-expert", "load-model ./mine", "take-expert", "load-model ./mine"),
        *("evaluate", "merge (as above)", "take-expert (as above)", "take-expert (as above)"),
    ]
    assert len(list(root.walk())) == 16  # what is verified stays whole
    assert graph_html(root, {}, None).count("load-model ./mine") == 2


def test_changed_configuration_or_input_computes_again(run):
    double(Settings(x=1), counted=count(Settings(x=1)))
    double(Settings(x=1), counted=count(Settings(x=2)))
    double(Settings(x=3), counted=count(Settings(x=2)))
    assert CALLS == ["count", "double"] * 2 + ["double"]


def test_a_plan_runs_nothing_and_knows_the_cache(run):
    count(Settings(x=1))
    CALLS.clear()
    with planning() as lines:
        double(Settings(x=1), counted=count(Settings(x=1)))
        double(Settings(x=1), counted=count(Settings(x=9)))
    assert [(p.stage, p.state) for p in lines] == [
        ("count", "cached"),
        ("double", "run"),
        ("count", "run"),
        ("double", "run"),
    ]
    assert CALLS == []
    assert lines[0].seconds == 0
    assert lines[2].seconds is not None  # history of the earlier run


def test_a_plan_foretells_runs_of_its_own_size(run):
    with of_size("smoke"):
        count(Settings(x=1))
    told = {}
    for size in ("smoke", "default"):
        with planning() as lines, of_size(size):
            count(Settings(x=9))
        told[size] = lines[0].seconds
    assert told["smoke"] is not None
    assert told["default"] is None


def test_a_failing_stage_says_why_in_its_run(home):
    @stage("broken", modules=["core.state"])
    def broken(out, config):
        """Fail."""
        raise ValueError("weights hold NaN in layer 3")

    with (
        pytest.raises(ValueError, match="NaN in layer 3"),
        tracking.start("test", "system", PROBLEM, None, {}) as run,
    ):
        broken(Settings())
    found = mlflow_store.client().get_run(mlflow_store.find_run(run.id))
    assert found.info.status == "FAILED"
    assert found.data.tags["error"] == "ValueError: weights hold NaN in layer 3"
    assert found.data.tags["mlflow.note.content"].startswith("**failed: ValueError: weights hold NaN in layer 3**")


def test_only_artifacts_enter_a_stage(run):
    with pytest.raises(TypeError, match="a stage takes Artifacts"):
        double(Settings(), counted="a path")


def test_what_a_stage_took_on_a_worker_is_foretold_for_flows_of_its_size(run, monkeypatch):
    monkeypatch.setenv("TRANSFEROPT_RUNNER", "processes:1")
    with ThreadPoolExecutor(1) as worker:  # like a process, it inherits no context
        elsewhere = lambda body: SimpleNamespace(submit=partial(worker.submit, body))  # noqa: E731
        monkeypatch.setattr(count, "prefect_task", elsewhere)
        with of_size("smoke"):
            gather({1: count.submit(Settings(x=77))})
    foretold = {}
    for size in ("smoke", "full"):
        with planning() as plan, of_size(size):
            count(Settings(x=78))
        foretold[size] = plan[0].seconds
    assert foretold["smoke"] is not None
    assert foretold["full"] is None
