"""Fan-out on a Ray cluster of two machines (two raylets here): workers and machines are killed, nothing is lost."""

import importlib.util
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import tasks  # noqa: F401  (Ray reads its authentication mode when it is imported)

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(m) for m in ("ray", "prefect_ray")),
    reason="needs ray and prefect-ray (pip install 'transferopt[ray]')",
)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two machines with one worker each; token authentication is on."""
    patch = pytest.MonkeyPatch()
    patch.setenv("TRANSFEROPT_HOME", str(tmp_path_factory.mktemp("ray-home")))
    patch.setenv("TRANSFEROPT_RUNNER", "auto")
    patch.setenv("PYTHONPATH", str(ROOT))
    patch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef0123456789abcdef")
    import ray
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.second = made.add_node(num_cpus=1)
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()
    patch.undo()


def test_stages_on_workers_are_those_of_one_process(cluster, tmp_path, monkeypatch):
    from core.state import verify
    from tasks import mlflow_store, tracking
    from tasks.fan_out import gather
    from tasks.runner import configured, reachable_server
    from tests.tasks.fan_stages import PROBLEM, Draw, draw, draws

    trap = tmp_path / "trap"
    trap.touch()
    with reachable_server(configured()):
        there = draws([0, 1, 2, 3], str(trap))
    killed = [int(p.suffix[1:]) for p in tmp_path.glob("trap.*")]
    assert len(killed) == 1, "one worker died half-way"
    pids = {a.facts()["pid"] for a in there["made"].values()}
    assert os.getpid() not in pids
    assert killed[0] not in pids
    assert all(verify(a.folder)["sha256"] == a.sha256 for a in there["made"].values())

    parent = mlflow_store.find_run(there["run"])
    query = f"tags.`mlflow.parentRunId` = '{parent}'"
    experiment = mlflow_store.client().get_run(parent).info.experiment_id
    runs = mlflow_store.client().search_runs([experiment], query)
    assert [r.info.status for r in runs] == ["FINISHED"] * 4, "a run that died leaves no half-told record"
    assert {r.data.tags["output.sha256"] for r in runs} == {a.sha256 for a in there["made"].values()}
    assert all(r.data.metrics["budget.queries"] == 3 for r in runs)

    monkeypatch.setenv("TRANSFEROPT_RUNNER", "threads")
    monkeypatch.setenv("TRANSFEROPT_HOME", str(tmp_path / "home"))
    with tracking.start("test", "system", PROBLEM, None, {"flow": "test"}):
        here = gather({s: draw.submit(Draw(seed=s, deadly=str(trap) if s == 1 else "")) for s in range(4)})
    assert {s: a.sha256 for s, a in here.items()} == {s: a.sha256 for s, a in there["made"].items()}


def test_an_error_on_a_worker_is_told_and_the_others_are_kept(cluster):
    from tasks import mlflow_store
    from tasks.runner import configured, reachable_server
    from tests.tasks.fan_stages import draws

    with reachable_server(configured()), pytest.raises(ValueError, match="seed -1 is negative"):
        draws([-1, 7, 8], "")
    experiments = [e.experiment_id for e in mlflow_store.client().search_experiments()]
    runs = mlflow_store.client().search_runs(["0", *experiments])
    newest = [r for r in runs if r.data.tags.get("stage") == "draw"][:3]
    assert sorted(r.info.status for r in newest) == ["FAILED", "FINISHED", "FINISHED"]


def test_a_lost_machine_costs_time_only(cluster, tmp_path):
    """Four items on two machines; one machine is killed while it works."""
    from tasks.runner import executor
    from tests.tasks.fan_stages import slow_sum

    shared = {"array": np.arange(200_000), "marks": str(tmp_path)}

    def kill():
        until = time.monotonic() + 60
        while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        cluster.remove_node(cluster.second, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    answers = executor().map(slow_sum, range(4), shared)
    killer.join()
    assert [a[0] for a in answers] == [i * int(shared["array"].sum()) for i in range(4)]
    assert len(list(tmp_path.iterdir())) > 4, "what the lost machine had begun was begun again"
    assert not any(writeable for _, writeable, _ in answers), "the array is the object store's, not a copy"


def test_flows_and_stages_travel_by_name():
    import pickle

    from flows.runtime import FLOWS
    from tests.tasks.fan_stages import draw

    for flow in (FLOWS.get("merge"), FLOWS.get("search")):
        sent = pickle.dumps(flow)
        assert len(sent) < 200, "a name, not the flow's code"
        assert pickle.loads(sent) is flow
    assert pickle.loads(pickle.dumps(draw)) is draw


def test_settings_of_the_runner(monkeypatch):
    from tasks.runner import configured, prefect_runner, reachable_server

    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    assert configured("threads").kind == "threads"
    assert prefect_runner(configured("")) is None
    assert (configured("processes").kind, configured("processes:3").workers) == ("processes", 3)
    assert configured("ray:3").workers == 3
    assert prefect_runner(configured("ray:3")).init_kwargs["num_cpus"] == 3
    assert prefect_runner(configured("10.0.0.7:6379")).address == "10.0.0.7:6379"
    with pytest.raises(ValueError, match=r"allowed are threads, processes\[:N\], ray\[:N\]"):
        configured("dask")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with (
        pytest.raises(ValueError, match="cannot reach the embedded Prefect server"),
        reachable_server(configured("10.0.0.7:6379")),
    ):
        pass
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ValueError, match="without authentication"):
        configured("10.0.0.7:6379")
