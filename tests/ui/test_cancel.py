"""Cancel and retry as the buttons of the UI do it, on servers and a worker as `transferopt serve` starts them.

`make test-ui`; no browser is needed.
"""

import os
import time

import httpx
import pytest

from tests.flows.test_cancel import STOP_S, long_transfer
from tests.ui.test_browser import deployment_of, servers  # noqa: F401  (a fixture)

pytestmark = [
    pytest.mark.ui,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not os.environ.get("TEST_UI"), reason="called by make test-ui"),
]


def state(api: str, run: str) -> dict:
    return httpx.get(f"{api}/api/flow_runs/{run}", timeout=30).raise_for_status().json()


def wait_for(api: str, run: str, *types: str, seconds: float = 300) -> dict:
    until = time.monotonic() + seconds
    while (found := state(api, run))["state_type"] not in types:
        assert time.monotonic() < until, found["state"]
        time.sleep(0.2)
    return found


def training(api: str, run: str) -> bool:
    """Is the stage that trains at work?"""
    body = {"flow_runs": {"id": {"any_": [run]}}, "task_runs": {"state": {"type": {"any_": ["RUNNING"]}}}}
    found = httpx.post(f"{api}/api/task_runs/filter", json=body, timeout=30).raise_for_status().json()
    return any(t["name"].startswith("adapt") for t in found)


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_cancel_stops_the_work_and_retry_ends_it(servers, tmp_path):  # noqa: F811
    api, _ = servers
    body = {"parameters": {k: list(v) if isinstance(v, tuple) else v for k, v in long_transfer(tmp_path).items()}}
    started = httpx.post(
        f"{api}/api/deployments/{deployment_of(api, 'transfer')}/create_flow_run", json=body, timeout=30
    )
    run = started.raise_for_status().json()["id"]
    until = time.monotonic() + 300
    while not training(api, run):
        assert time.monotonic() < until, state(api, run)["state"]
        time.sleep(0.2)
    pid = int(state(api, run)["infrastructure_pid"].rpartition(":")[2])
    assert alive(pid)
    asked = time.monotonic()
    cancel = {"state": {"type": "CANCELLING", "name": "Cancelling"}, "force": False}
    httpx.post(f"{api}/api/flow_runs/{run}/set_state", json=cancel, timeout=30).raise_for_status()
    while alive(pid):
        assert time.monotonic() - asked < STOP_S, "cancelled work goes on"
        time.sleep(0.1)
    print(f"stopped {time.monotonic() - asked:.1f} s after the button")
    wait_for(api, run, "CANCELLED", seconds=60)

    retry = {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}, "force": True}
    httpx.post(f"{api}/api/flow_runs/{run}/set_state", json=retry, timeout=30).raise_for_status()
    wait_for(api, run, "COMPLETED", "FAILED", "CRASHED")
    assert state(api, run)["state_type"] == "COMPLETED", state(api, run)["state"]
    assert state(api, run)["run_count"] == 2
