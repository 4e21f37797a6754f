"""What MLflow is told of a run: all of it, in portions that it takes, nothing of the environment's secrets."""

import json

import mlflow

from core.transfer.problem import Problem
from tasks import mlflow_store, spool, tracking

PROBLEM = Problem(source="s", target="t", knowledge="k", domain="d", objective="f", budget="1 queries")


def test_ten_thousand_metrics_go_as_batches(home):
    with tracking.start("test", "system", PROBLEM, None, {}) as run:
        run.curve("many", [(i, float(i)) for i in range(10_000)])
    history = mlflow.MlflowClient().get_metric_history(mlflow_store.find_run(run.id), "many")
    assert len(history) == 10_000
    assert sorted(m.step for m in history) == list(range(10_000))


def test_a_secret_in_the_environment_is_not_recorded(home, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "s3cret-planted")
    with tracking.start("test", "system", PROBLEM, None, {}) as run:
        run.params({"a": {"b": 1}})
    found = mlflow_store.client().get_run(mlflow_store.find_run(run.id))
    assert "s3cret-planted" not in json.dumps({**found.data.tags, **found.data.params})
    assert "s3cret-planted" not in (run.spool.folder / "ops.jsonl").read_text()


def test_a_model_whose_files_are_gone_is_told_and_holds_nothing_up(home, tmp_path):
    with tracking.start("test", "system", PROBLEM, None, {}) as run:
        run.spool.append("model", run.id, path=str(tmp_path / "pruned"), name="m", alias="challenger", tags={})
        run.metrics({"after": 1.0})
    assert spool.pending(run.spool.folder) == 0
    data = mlflow_store.client().get_run(mlflow_store.find_run(run.id)).data
    assert data.metrics == {"after": 1.0}
    assert data.tags["missing.pruned"] == f"{tmp_path / 'pruned'} was removed before it could be logged"
