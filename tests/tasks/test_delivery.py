"""A run does not need its tracking server: records wait on disk, arrive in order, and nothing is doubled."""

import json
import os
import time

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST

from core.state import StateError, exclusive
from core.transfer.problem import Problem
from flows.cli import sync
from tasks import delivery, health, mlflow_store, records, spool, tracking
from tasks.prepared import prepared

PROBLEM = Problem(source="s", target="t", knowledge="k", domain="d", objective="f", budget="1 queries")


@pytest.fixture
def away(monkeypatch):
    """A tracking server that can be switched off and on."""
    real, down = mlflow_store.client, {"down": True}

    def client():
        if down["down"]:
            raise ConnectionError("refused")
        return real()

    monkeypatch.setattr(mlflow_store, "client", client)
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
    assert delivery.deliver_all()[1] == 0
    found = mlflow_store.client().get_run(mlflow_store.find_run(run.id))
    assert found.info.status == "FINISHED"
    assert found.data.params["a.b"] == "1"
    history = mlflow_store.client().get_metric_history(found.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(i, 1.0 / (i + 1)) for i in range(50)]


def test_delivering_twice_doubles_nothing(home):
    run = record(2.0)
    (run.spool.folder / "delivered.json").write_text("0")
    (run.spool.folder / "runs.json").unlink()
    delivery.deliver(run.spool.folder)
    ids = [e.experiment_id for e in mlflow_store.client().search_experiments()]
    runs = mlflow_store.client().search_runs(ids, f"tags.`{mlflow_store.LOCAL_ID}` = '{run.id}'")
    assert len(runs) == 1
    assert len(mlflow_store.client().get_metric_history(runs[0].info.run_id, "loss")) == 50


@pytest.fixture
def calls(monkeypatch):
    """Names of the MLflow client's methods, as they are called."""
    real, made = mlflow_store.client, []

    class Client:
        def __getattr__(self, name):
            made.append(name)
            return getattr(real(), name)

    monkeypatch.setattr(mlflow_store, "client", Client)
    return made


def test_what_a_run_notes_together_is_told_in_one_call(home, away, calls):
    run = record(5.0)
    away["down"] = False
    calls.clear()
    delivery.deliver(run.spool.folder, fresh=True)
    assert [c for c in calls if "experiment" not in c] == ["create_run", "log_batch", "set_terminated"]


def test_a_delivery_that_was_broken_off_is_repeated_from_there(home, monkeypatch):
    """MLflow took a stage's start, its answer was lost: the run is there once."""
    real, lost = records.APPLY["start"], []

    def start(op, ids):
        real(op, ids)
        if op["name"] == "stage" and not lost:
            lost.append(ids.pop(op["run"]))
            raise ConnectionError("the answer was lost")

    monkeypatch.setitem(records.APPLY, "start", start)
    with tracking.start("test", "system", PROBLEM, None, {}) as run, tracking.nested("stage", None, {}) as stage:
        stage.metrics({"x": 1.0})
        while not lost:  # the last delivery of a run is not repeated before the next run
            time.sleep(0.01)
    assert lost
    assert spool.pending(run.spool.folder) == 0
    ids = [e.experiment_id for e in mlflow_store.client().search_experiments()]
    (found,) = mlflow_store.client().search_runs(ids, f"tags.`{mlflow_store.LOCAL_ID}` = '{stage.id}'")
    assert (found.info.run_id, found.data.metrics["x"], found.info.status) == (lost[0], 1.0, "FINISHED")


def test_what_mlflow_refuses_is_kept_counted_and_listed_and_the_rest_arrives(home, capsys):
    with tracking.start("test", "system", PROBLEM, None, {}) as run:
        run.params({"rate": 1})
        run.params({"rate": 2})  # a parameter does not change
        run.metrics({"after": 3.0})
    found = mlflow_store.client().get_run(mlflow_store.find_run(run.id))
    assert (found.data.params["rate"], found.data.metrics["after"]) == ("1", 3.0)
    (refused,) = spool.refused(run.spool.folder)
    assert refused["record"]["params"] == {"rate": "2"}
    assert spool.pending(run.spool.folder) == 0
    sync.sync(forget=False, retry=False)
    shown = capsys.readouterr().out
    assert "0 records still waiting" in shown
    assert f"refused  {run.id[:12]}  values rate" in shown
    assert health.undelivered().found == "0 records wait, 1 were refused"
    sync.sync(forget=True, retry=False)
    assert not spool.refused(run.spool.folder)


def test_a_run_that_mlflow_does_not_begin_waits_whole(home, caplog):
    twice = {"mlflow.runName": "another"}  # MLflow refuses a run of two names, as it does one of a deleted experiment
    with tracking.start("test", "system", PROBLEM, None, twice) as run:
        run.metrics({"x": 1.0})
    assert not spool.refused(run.spool.folder)
    assert spool.pending(run.spool.folder) == 3
    assert "Both 'run_name' argument and 'mlflow.runName' tag are specified" in caplog.text
    (run.spool.folder / "ops.jsonl").unlink()


@pytest.fixture
def saying(monkeypatch):
    """Let methods of the MLflow client raise: name -> error."""
    real, errors = mlflow_store.client, {}

    class Client:
        def __getattr__(self, name):
            if name in errors:
                raise errors[name]
            return getattr(real(), name)

    monkeypatch.setattr(mlflow_store, "client", Client)
    return errors


@pytest.mark.parametrize(
    ("method", "code"),
    [
        ("create_run", BAD_REQUEST),  # a proxy, or SQLAlchemy's TimeoutError of a full pool of connections
        ("create_run", INVALID_PARAMETER_VALUE),
        ("log_batch", BAD_REQUEST),
        ("log_batch", RESOURCE_DOES_NOT_EXIST),
        ("set_terminated", BAD_REQUEST),
    ],
)
def test_what_may_change_is_waited_for(home, saying, method, code):
    saying[method] = MlflowException("not now", code)
    run = record(4.0)
    assert spool.pending(run.spool.folder) > 0
    assert not spool.refused(run.spool.folder)
    del saying[method]
    assert delivery.deliver_all() == (1, 0)
    found = mlflow_store.client().get_run(mlflow_store.find_run(run.id))
    assert (found.info.status, found.data.params["a.b"]) == ("FINISHED", "1")
    assert len(mlflow_store.client().get_metric_history(found.info.run_id, "loss")) == 50


def test_refused_records_are_offered_again_in_order(home, saying, capsys):
    saying["log_batch"] = MlflowException("a name that it does not take", INVALID_PARAMETER_VALUE)
    run = record(6.0)
    assert len(spool.refused(run.spool.folder)) == 2
    sync.sync(forget=False, retry=False)
    assert "2 records were refused and are kept; --retry-refused offers them again" in capsys.readouterr().out
    with open(run.spool.folder / "ops.jsonl", "a") as f:
        f.write('{"op": "val')  # torn by a kill
    del saying["log_batch"]
    sync.sync(forget=False, retry=True)
    assert "2 refused records are offered again\n1 runs delivered, 0 records still waiting" in capsys.readouterr().out
    assert not spool.refused(run.spool.folder)
    found = mlflow_store.client().get_run(mlflow_store.find_run(run.id))
    assert found.data.params["a.b"] == "1"
    assert len(mlflow_store.client().get_metric_history(found.info.run_id, "loss")) == 50


def test_a_run_of_a_deleted_experiment_waits_until_it_is_restored(home, caplog):
    name = "soon-deleted"
    with tracking.start("test", name, PROBLEM, None, {}) as run:
        while spool.pending(run.spool.folder):
            time.sleep(0.01)
        experiment = mlflow_store.client().get_experiment_by_name(name).experiment_id
        mlflow_store.client().delete_experiment(experiment)
        run.metrics({"x": 1.0})
        with tracking.nested("stage", None, {}):
            pass
    mlflow_id = json.loads((run.spool.folder / "runs.json").read_text())[run.id]
    assert f"MLflow run {mlflow_id} was deleted; restore it" in caplog.text
    with tracking.start("test", name, PROBLEM, None, {}) as other:
        pass
    assert f"experiment {name!r} was deleted in MLflow; restore it and its runs arrive: MLFLOW_TR" in caplog.text
    assert f" mlflow experiments restore --experiment-id {experiment}" in caplog.text
    assert not spool.refused(run.spool.folder) + spool.refused(other.spool.folder)
    mlflow_store.client().restore_experiment(experiment)
    assert delivery.deliver_all() == (2, 0)
    assert mlflow_store.client().get_run(mlflow_id).data.metrics == {"x": 1.0}
    assert mlflow_store.client().get_run(mlflow_store.find_run(other.id)).info.status == "FINISHED"


def test_a_run_goes_on_where_it_was_begun(home, away, tmp_path, monkeypatch):
    """Under another address its store may be the same; another store is told, and gets nothing of it."""
    away["down"] = False
    with tracking.start("test", "system", PROBLEM, None, {}) as run:
        while spool.pending(run.spool.folder):
            time.sleep(0.01)
        away["down"] = True
        run.metrics({"x": 1.0})
        with tracking.nested("stage", None, {}):
            pass
    begun, there = os.environ["MLFLOW_TRACKING_URI"], mlflow_store.client
    other = f"sqlite:///{tmp_path / 'other.db'}"
    if prepared("mlflow").exists():  # else MLflow migrates one, for seconds
        (tmp_path / "other.db").write_bytes(prepared("mlflow").read_bytes())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
    monkeypatch.setattr(mlflow_store, "client", lambda: mlflow.MlflowClient(other))
    with pytest.raises(spool.NotDelivered, match=f"was begun at {begun}, and {other} does not show it"):
        delivery.deliver(run.spool.folder)
    assert not spool.refused(run.spool.folder)
    assert not mlflow_store.client().search_runs([e.experiment_id for e in mlflow_store.client().search_experiments()])

    away["down"] = False
    monkeypatch.setattr(mlflow_store, "client", there)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{begun}?")  # as one server may have two names
    delivery.deliver(run.spool.folder)
    assert mlflow_store.client().get_run(mlflow_store.find_run(run.id)).data.metrics == {"x": 1.0}


def test_the_next_run_delivers_what_an_earlier_one_kept(home, away):
    earlier = record(1.0)
    away["down"] = False
    record(2.0)
    assert spool.pending(earlier.spool.folder) == 0
    assert mlflow_store.client().get_run(mlflow_store.find_run(earlier.id)).info.status == "FINISHED"


def test_a_run_that_goes_on_is_left_to_itself(home, away):
    with tracking.start("test", "system", PROBLEM, None, {}) as run:
        away["down"] = False
        assert delivery.deliver_all() == (0, 0)
        with pytest.raises(StateError, match=f"in use by process {os.getpid()}"), exclusive(run.spool.folder / "run"):
            pass
