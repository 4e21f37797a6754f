"""``transferopt serve`` under faults: who may ask its servers, and a scheduled run that outlives a crash."""

import configparser
import secrets
import signal
import subprocess
import time
from datetime import UTC, datetime, timedelta

import httpx
import psutil

from benchmarks.faults_flows import CHEAPEST, Outcome, outcome, place
from benchmarks.faults_servers import free_port
from benchmarks.flow_process import ROOT, Place, ended, one_line, wait_until

OUTSIDE = "127.0.0.2"  # to `serve` an address that is not the loopback default, yet nobody else reaches it
READY = "Ctrl-C stops both"


def exposed(seed: int, count: float) -> Outcome:
    """Another address than loopback: refused without authentication; with it, only the password is answered."""
    here = place("exposed", MLFLOW_TRACKING_URI="", PREFECT_API_URL="")
    prefect, mlflow = free_port(), free_port()
    arguments = ["serve", "--host", OUTSIDE, "--prefect-port", str(prefect), "--mlflow-port", str(mlflow)]
    code, output = here.call(*arguments)
    needed = ("PREFECT_SERVER_API_AUTH_STRING", "MLFLOW_AUTH_CONFIG_PATH")
    refused = code and one_line(output) and all(name in output for name in needed)
    failures = [] if refused else [f"without authentication it ended with {code}: {output[-500:]}"]
    password = secrets.token_hex(16)
    here.more |= _with_passwords(here, password)
    process = here.start(*arguments)
    try:
        _wait_until_ready(here, process)
        right, wrong = ("user", password), ("user", "wrong")
        asked = {
            "Prefect": (f"http://{OUTSIDE}:{prefect}/api/flows/count", {}),
            "MLflow": (f"http://{OUTSIDE}:{mlflow}/api/2.0/mlflow/experiments/search", {"max_results": 1}),
        }
        for name, (url, body) in asked.items():
            for who, expected in ((None, 401), (wrong, 401), (right, 200)):
                found = httpx.post(url, json=body, auth=who, timeout=60).status_code
                failures += [] if found == expected else [f"{name} answered {found} to {who and who[1]}"]
        failures += [f"listens on {a}" for a in _listening(process) if a != OUTSIDE]
        failures += _places_of(password, here, process)
    finally:
        _stop(process)
    return outcome(1, failures)


def _with_passwords(here: Place, password: str) -> dict[str, str]:
    """The environment that switches authentication on, as the operation page says."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "deployments" / "mlflow-auth.ini")
    settings["mlflow"]["database_uri"] = f"sqlite:///{here.folder / 'accounts.db'}"
    with open(here.folder / "auth.ini", "w") as file:
        settings.write(file)
    return {
        "PREFECT_SERVER_API_AUTH_STRING": f"user:{password}",
        "MLFLOW_AUTH_CONFIG_PATH": str(here.folder / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_USERNAME": "user",
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"{OUTSIDE}:*,localhost:*",
    }


def _places_of(password: str, here: Place, process: subprocess.Popen) -> list[str]:
    """Files and process lists in which the password stands."""
    files = [p for p in here.folder.rglob("*") if p.is_file() and password.encode() in p.read_bytes()]
    commands = [p.pid for p in _family(process) if password in " ".join(p.cmdline())]
    return [f"the password stands in {p}" for p in files] + [f"in the command of process {n}" for n in commands]


def scheduled(seed: int, late_s: float) -> Outcome:
    """A deployment's run is scheduled, everything is killed, and served again after the run was due: it runs once."""
    here = place("scheduled", MLFLOW_TRACKING_URI="", PREFECT_API_URL="")
    prefect, mlflow = free_port(), free_port()
    arguments = ["serve", "--prefect-port", str(prefect), "--mlflow-port", str(mlflow)]
    process = here.start(*arguments)
    try:
        _wait_until_ready(here, process)
        failures = [f"listens on {a}" for a in _listening(process) if a not in ("127.0.0.1", "::1")]
        with httpx.Client(base_url=f"http://127.0.0.1:{prefect}/api", timeout=60) as api:
            run = _schedule(api, late_s / 2)
            _kill_all(process)
            time.sleep(late_s)
            process = here.start(*arguments)
            _wait_until_ready(here, process)
            over = wait_until(lambda: _state(api, run) not in WAITING, process, limit_s=900, step_s=2)
            if not over or _state(api, run) != "COMPLETED":
                failures.append(f"the scheduled run is {_state(api, run)}")
            count = api.post("/flow_runs/count", json={}).json()
            failures += [] if count == 1 else [f"{count} runs instead of the one that was scheduled"]
    finally:
        _stop(process)
    return outcome(1, failures)


WAITING = ("SCHEDULED", "PENDING", "RUNNING")


def _schedule(api: httpx.Client, in_s: float) -> str:
    """Schedule the cheapest flow's deployment; the id of the run."""
    deployment = api.get(f"/deployments/name/{CHEAPEST}/transferopt").raise_for_status().json()["id"]
    when = (datetime.now(UTC) + timedelta(seconds=in_s)).isoformat()
    state = {"type": "SCHEDULED", "state_details": {"scheduled_time": when}}
    body = {"parameters": {"size": "smoke"}, "state": state}
    return api.post(f"/deployments/{deployment}/create_flow_run", json=body).raise_for_status().json()["id"]


def _state(api: httpx.Client, run: str) -> str:
    return api.get(f"/flow_runs/{run}").raise_for_status().json()["state_type"]


def _wait_until_ready(here: Place, process: subprocess.Popen) -> None:
    if not wait_until(lambda: READY in here.output(), process, limit_s=900, step_s=0.5):
        raise RuntimeError(f"transferopt serve did not come up: {here.output()[-1500:]}")


def _family(process: subprocess.Popen) -> list[psutil.Process]:
    """The child and everything below it, in whatever process group."""
    if process.poll() is not None:
        return []
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


def _listening(process: subprocess.Popen) -> set[str]:
    """Addresses on which the child's family waits for connections."""
    found = [c for p in _family(process) for c in p.net_connections() if c.status == psutil.CONN_LISTEN]
    return {c.laddr.ip for c in found}


def _kill_all(process: subprocess.Popen) -> None:
    for member in reversed(_family(process)):
        member.kill()
    process.wait()


def _stop(process: subprocess.Popen) -> None:
    """Ctrl-C; what is left after that is killed."""
    family = _family(process)
    if family:
        process.send_signal(signal.SIGINT)
        ended(process, limit_s=120)
    for member in family:
        if member.is_running():
            member.kill()
