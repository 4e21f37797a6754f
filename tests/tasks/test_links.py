"""Links to servers: without their passwords, and none to a server that is away."""

import os

import mlflow

from tasks import mlflow_store
from tasks.addresses import choose_prefect, link_base, without_password
from tasks.links import mlflow_url


def test_a_run_that_ends_while_mlflow_is_away_goes_without_a_link(monkeypatch, caplog):
    address = "http://127.0.0.1:9"  # nobody listens there
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setattr(mlflow_store, "client", lambda: mlflow.MlflowClient(address))
    assert mlflow_url("0" * 32) is None
    assert "no link to MLflow, which is away" in caplog.text


def test_passwords_of_servers_are_shown_and_linked_nowhere(monkeypatch):
    uri = "https://user:s3cret-planted@mlflow.example:5000"
    assert link_base(uri) == "https://mlflow.example:5000"
    assert "s3cret" not in without_password(f"cannot reach {uri} or postgresql://me:s3cret-planted@db/x")
    assert link_base("sqlite:////tmp/x.db") is None
    monkeypatch.setenv("PREFECT_API_URL", "http://user:s3cret-planted@127.0.0.1:9/api")
    assert choose_prefect() == "embedded, because http://***@127.0.0.1:9/api does not answer"
    assert "PREFECT_API_URL" not in os.environ
