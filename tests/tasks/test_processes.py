"""Worker processes of a fan-out: side by side, the same artifacts, and none of them outlives its flow."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def server():
    """Address of one Prefect server for this process, its workers and the flow that is killed."""
    from prefect.settings import PREFECT_API_URL

    from tasks.runner import configured, reachable_server

    with reachable_server(configured("processes")):
        yield PREFECT_API_URL.value()


@pytest.fixture
def marks(tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSFEROPT_RUNNER", "processes:2")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    folder = tmp_path / "marks"
    folder.mkdir()
    return folder


def workers(marks: Path) -> list[int]:
    return [int(p.name) for p in marks.iterdir()]


def gone(pids: list[int], within_s: float) -> bool:
    until = time.monotonic() + within_s
    while any(psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE for p in pids):
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def test_two_stages_run_side_by_side_and_are_told_like_those_of_one_process(home, marks, monkeypatch):
    from tasks import mlflow_store
    from tasks.fan_out import gather
    from tasks.tracking import start
    from tests.tasks.process_stages import PROBLEM, Nap, nap, naps

    there = naps(str(marks), [3.0, 3.1])
    assert len(set(workers(marks))) == 2
    assert os.getpid() not in workers(marks)
    assert {p.read_text() for p in marks.iterdir()} == {str(max(1, os.cpu_count() // 2))}
    experiments = [e.experiment_id for e in mlflow_store.client().search_experiments()]
    runs = [r for r in mlflow_store.client().search_runs(experiments) if r.data.tags.get("stage") == "nap"]
    assert sorted(r.data.tags["output.sha256"] for r in runs) == sorted(there.values())
    begun, ended = max(r.info.start_time for r in runs), min(r.info.end_time for r in runs)
    assert begun < ended, "they overlapped"

    monkeypatch.setenv("TRANSFEROPT_RUNNER", "threads")
    with start("test", "system", PROBLEM, None, {"flow": "test"}):
        here = gather({s: nap.submit(Nap(seconds=s, marks=str(marks))) for s in (3.0, 3.1)})
    assert {s: a.sha256 for s, a in here.items()} == there, "found in the cache that the workers filled"


def test_an_error_is_told_and_the_other_stage_is_kept(home, marks):
    from core.state import Cache
    from tests.tasks.process_stages import Nap, nap, naps

    with pytest.raises(ValueError, match=r"0.1 s is no nap"):
        naps(str(marks), [0.1, 0.5])
    assert Cache().find("nap", nap.key(Nap(seconds=0.5, marks=str(marks)), {})) is not None


def test_a_worker_ended_from_outside_is_said_with_the_remedy(home, marks):
    from tests.tasks.process_stages import naps

    def kill():
        while not workers(marks):
            time.sleep(0.05)
        os.kill(workers(marks)[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(RuntimeError, match=r"ended from outside .* the same command continues"):
        naps(str(marks), [60.0, 61.0])
    killer.join()
    assert gone(workers(marks), 5)


def test_a_stopped_flow_ends_its_workers_at_once(home, marks):
    from tests.tasks.process_stages import naps

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        naps(str(marks), [60.0, 61.0], interrupt=True)
    assert time.monotonic() - started < 45
    assert gone(workers(marks), 5)


@pytest.mark.skipif(sys.platform != "linux", reason="a process dies with its parent on Linux only")
def test_workers_of_a_killed_flow_die_with_it(home, marks, server):
    command = [sys.executable, "-m", "tests.tasks.process_stages", str(marks)]
    flow = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PREFECT_API_URL": server})
    until = time.monotonic() + 90
    while len(workers(marks)) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    flow.kill()
    flow.wait()
    assert len(workers(marks)) == 2
    assert gone(workers(marks), 5)
