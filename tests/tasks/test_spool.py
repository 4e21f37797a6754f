"""A run does not need its tracking server: records wait on disk, arrive in order, and nothing is doubled."""

import json

import mlflow
import pytest

from core.transfer.problem import Problem
from tasks import spool, tracking

PROBLEM = Problem(source="s", target="t", knowledge="k", domain="d", objective="f", budget="1 queries")


@pytest.fixture
def away(monkeypatch):
    """A tracking server that can be switched off and on."""
    real, down = spool.client, {"down": True}

    def client():
        if down["down"]:
            raise ConnectionError("refused")
        return real()

    monkeypatch.setattr(spool, "client", client)
    return down


def record(value):
    with tracking.start("test", "system", PROBLEM, None, {}) as run:
        run.curve("loss", [(i, value / (i + 1)) for i in range(50)])
        run.params({"a": {"b": 1}})
    return run


def test_everything_arrives_after_the_server_is_back(home, away):
    run = record(1.0)
    assert spool.pending(run.spool.folder) > 0
    away["down"] = False
    assert spool.deliver_all()[1] == 0
    found = spool.client().get_run(spool.find_run(run.id))
    assert found.info.status == "FINISHED"
    assert found.data.params["a.b"] == "1"
    history = spool.client().get_metric_history(found.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(i, 1.0 / (i + 1)) for i in range(50)]


def test_delivering_twice_doubles_nothing(home):
    run = record(2.0)
    (run.spool.folder / "delivered.json").write_text("0")
    (run.spool.folder / "runs.json").unlink()
    spool.deliver(run.spool.folder)
    ids = [e.experiment_id for e in spool.client().search_experiments()]
    runs = spool.client().search_runs(ids, f"tags.`{spool.LOCAL_ID}` = '{run.id}'")
    assert len(runs) == 1
    assert len(spool.client().get_metric_history(runs[0].info.run_id, "loss")) == 50


def test_a_torn_last_record_is_not_used(home):
    run = record(3.0)
    with open(run.spool.folder / "ops.jsonl", "a") as f:
        f.write('{"op": "values", "run": "' + run.id)
    assert spool.pending(run.spool.folder) == 0


def test_ten_thousand_metrics_go_as_batches(home):
    with tracking.start("test", "system", PROBLEM, None, {}) as run:
        run.curve("many", [(i, float(i)) for i in range(10_000)])
    history = mlflow.MlflowClient().get_metric_history(spool.find_run(run.id), "many")
    assert len(history) == 10_000
    assert sorted(m.step for m in history) == list(range(10_000))


def test_a_secret_in_the_environment_is_not_recorded(home, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "s3cret-planted")
    run = record(1.0)
    found = spool.client().get_run(spool.find_run(run.id))
    assert "s3cret-planted" not in json.dumps({**found.data.tags, **found.data.params})
    assert "s3cret-planted" not in (run.spool.folder / "ops.jsonl").read_text()
