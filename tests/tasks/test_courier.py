"""The courier delivers what the thread would; a lost one costs nothing; the embedded server goes with its owner."""

import os
import signal
import subprocess
import sys
import time

import httpx
import pytest

from core.transfer.problem import Problem
from tasks import courier, delivery, embedded, mlflow_store, prepared, spool, tracking

PROBLEM = Problem(source="s", target="t", knowledge="k", domain="d", objective="f", budget="1 queries")


@pytest.fixture
def begun():
    courier.begin()
    yield courier
    courier.stop()


def record():
    with tracking.start("test", "system", PROBLEM, None, {}) as run:
        run.curve("loss", [(0, 2.0), (1, 1.0)])
    assert spool.pending(run.spool.folder) == 0
    found = mlflow_store.client().get_run(mlflow_store.find_run(run.id))
    assert found.info.status == "FINISHED"
    assert found.data.metrics["loss"] == 1.0


def test_it_delivers(home, begun, monkeypatch):
    monkeypatch.setattr(delivery, "deliver", None)  # not this process
    record()
    assert courier.running()


def test_a_lost_one_costs_nothing(home, begun):
    courier._process.kill()
    record()
    assert not courier.running()


@pytest.mark.parametrize(
    "name",
    [
        "PREFECT_SERVER_API_AUTH_STRING",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL",
        "PREFECT_API_DATABASE_CONNECTION_URL",
        "PREFECT_SERVER_DATABASE_HOST",
        "PREFECT_MESSAGING_BROKER",
        "PREFECT_SERVER_DOCKET_URL",
    ],
)
def test_the_embedded_server_is_not_the_one_that_others_use(home, monkeypatch, name):
    """Neither its password, which nobody here would send, nor a database where that server works already."""
    begun = []
    monkeypatch.setenv(name, "of another server")
    monkeypatch.setattr(embedded.subprocess, "Popen", lambda *_, **given: begun.append(given["env"]))
    monkeypatch.setattr(embedded.atexit, "register", lambda _: None)
    monkeypatch.setattr(embedded, "_process", None)
    monkeypatch.setenv("PREFECT_API_URL", "")
    embedded.begin()
    (environment,) = begun
    assert name not in environment
    assert environment["PREFECT_HOME"] == os.environ["PREFECT_HOME"]
    assert environment["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"


def test_the_embedded_server_ends_with_its_owner(home):
    """Killed without a chance to clean up, the owner leaves no server behind; prepared databases are in the home."""
    program = (
        "import os, tasks, time\nfrom tasks import embedded\nembedded.begin()\nembedded.wait()\n"
        "print(os.environ['PREFECT_API_URL'], flush=True)\ntime.sleep(600)"
    )
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "MLFLOW"))}
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=kept)
    url = owner.stdout.readline().strip()
    assert httpx.get(f"{url}/health").status_code == 200
    assert (home / "mlflow.db").exists() == prepared.prepared("mlflow").exists()
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            httpx.get(f"{url}/health", timeout=5)
        except httpx.TransportError:
            return
        time.sleep(0.2)
    pytest.fail("the server still answers")


def test_prepared_databases_are_taken_as_they_are(home):
    """A home gets copies once; a database that is there is never touched."""
    patch = pytest.MonkeyPatch()
    patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}")
    patch.setenv("PREFECT_HOME", str(home / "prefect"))
    (home / "prefect").mkdir(parents=True)
    (home / "prefect" / "prefect.db").write_bytes(b"mine")
    try:
        prepared.place()
    finally:
        patch.undo()
    assert (home / "prefect" / "prefect.db").read_bytes() == b"mine"
    if prepared.prepared("mlflow").exists():
        assert (home / "mlflow.db").read_bytes() == prepared.prepared("mlflow").read_bytes()
