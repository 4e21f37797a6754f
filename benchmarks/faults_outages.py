"""Faults around running flows: MLflow or Prefect away, a locked database, a full disk, eight flows at once."""

import sqlite3
import subprocess
import threading
import time
from contextlib import closing

from benchmarks.faults_flows import CHEAPEST, Outcome, outcome, place, result_of, room, smoke, undisturbed
from benchmarks.faults_servers import Server, faults_of_delivery, recorded_metrics
from benchmarks.flow_process import ended, intact, one_line, wait_until

RETRIES = {"PREFECT_CLIENT_MAX_RETRIES": "2"}


def mlflow_down(seed: int, back_s: float) -> Outcome:
    """MLflow away when the run begins, back after a while."""
    server = Server("mlflow", room() / f"mlflow-down-{seed}")
    return _delivery("mlflow-down", server, back_s, start=False)


def mlflow_killed(seed: int, back_s: float) -> Outcome:
    """MLflow killed in the middle of a run, back after a while."""
    server = Server("mlflow", room() / f"mlflow-killed-{seed}").start()
    return _delivery("mlflow-killed", server, back_s, start=True)


def _delivery(name: str, server: Server, back_s: float, start: bool) -> Outcome:
    failures, span = [], undisturbed(CHEAPEST)[1] if start else 0.0
    here = place(name, MLFLOW_TRACKING_URI=server.address)
    try:
        process = here.start(*smoke(CHEAPEST), "--json", str(here.folder / "summary.json"))
        wait_until(lambda: bool(here.begun()), process)
        if start:
            time.sleep(0.3 * span)
            server.kill()
        time.sleep(back_s)
        server.start()
        if ended(process):
            failures.append(here.output()[-1500:])
        code, output = here.call("sync")
        failures += [output[-500:]] if code else []
        failures += faults_of_delivery(here.home, server.database, server.artifacts)
    finally:
        server.kill()
    return outcome(1, failures) | {"points": float(len(recorded_metrics(here.home)))}


def locked(seed: int, hold_s: float) -> Outcome:
    """MLflow's database locked by another program during the run; all arrives once it is free."""
    failures: list[str] = []
    here = place("locked", MLFLOW_TRACKING_URI="")
    database = here.home / "mlflow.db"
    process = here.start(*smoke(CHEAPEST))
    wait_until(lambda: bool(here.begun()) and (here.home / "spool" / here.begun()[0] / "runs.json").exists(), process)
    with closing(sqlite3.connect(database, timeout=60, isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        time.sleep(hold_s)
        db.execute("ROLLBACK")
    failures += [here.output()[-1500:]] if ended(process) else []
    failures += ["Traceback shown"] if "Traceback" in here.output() else []
    here.call("sync")
    failures += faults_of_delivery(here.home, database)
    return outcome(1, failures)


def disk_full(seed: int, share: float) -> Outcome:
    """The home on a disk that fills in the middle: one clear error, earlier results whole; with room it ends equal.

    Needs root (a tmpfs is mounted); without, nothing is measured.
    """
    whole, _, aside = undisturbed(CHEAPEST)
    size = sum(p.stat().st_size for p in aside.rglob("*") if p.is_file() and not p.is_symlink())
    here, failures = place(CHEAPEST), []
    here.home.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={int(size * share)}", "none", str(here.home)], capture_output=True
    )
    if mounted.returncode:
        here.home.rmdir()
        return {}
    try:
        code, output = here.call(*smoke(CHEAPEST))
        if not code:
            failures.append("the run ended well on a full disk: the share is too large")
        elif not (one_line(output) and "space" in output):
            failures.append(output[-1500:])
        sealed_folders, faults = intact(here.home)
        failures += faults
        subprocess.run(["mount", "-o", f"remount,size={8 * size}", str(here.home)], check=True)
        result_of(here, smoke(CHEAPEST), whole, failures)
    finally:
        subprocess.run(["umount", "-l", str(here.home)], check=True)
    return outcome(1, failures) | {"kept": float(sealed_folders)}


def prefect_down(seed: int, count: int) -> Outcome:
    """Prefect does not answer when the run begins: the embedded server is used, and the output says so."""
    whole, _, _ = undisturbed(CHEAPEST)
    here = place(CHEAPEST, PREFECT_API_URL="http://127.0.0.1:9/api")
    failures: list[str] = []
    result_of(here, smoke(CHEAPEST), whole, failures)
    if "embedded, because http://127.0.0.1:9/api does not answer" not in here.output():
        failures.append("the output does not name the server in use")
    return outcome(1, failures)


def prefect_killed(seed: int, away_s: float) -> Outcome:
    """Prefect killed in the middle of a run, back after ``away_s``: the run ends as if nothing had been."""
    whole, span, _ = undisturbed(CHEAPEST)
    server = Server("prefect", room() / f"prefect-killed-{away_s:.0f}").start()
    here, failures = place(CHEAPEST, PREFECT_API_URL=server.address), []
    timer = threading.Timer(away_s + 0.3 * span, server.start)
    try:
        process = here.start(*smoke(CHEAPEST), "--json", str(here.folder / "summary.json"))
        wait_until(lambda: bool(here.begun()), process)
        timer.start()
        time.sleep(0.3 * span)
        server.kill()
        if ended(process):
            failures.append(here.output()[-1500:])
        timer.join()
        result_of(here, smoke(CHEAPEST), whole, failures)
    finally:
        timer.cancel()
        server.kill()
    return outcome(1, failures)


def prefect_gone(seed: int, count: int) -> Outcome:
    """Prefect killed for good (fewer retries, to see it soon): one readable error, and the next run continues."""
    whole, span, _ = undisturbed(CHEAPEST)
    server = Server("prefect", room() / "prefect-gone").start()
    here, failures = place(CHEAPEST, PREFECT_API_URL=server.address, **RETRIES), []
    process = here.start(*smoke(CHEAPEST))
    wait_until(lambda: bool(here.begun()), process)
    time.sleep(0.3 * span)
    server.kill()
    stopped = ended(process) != 0
    if not stopped:
        failures.append("the run ended without noticing that Prefect is gone")
    elif not (one_line(here.output()) and f"Prefect ({server.address})" in here.output()):
        failures.append(here.output()[-1500:])
    left = result_of(here, smoke(CHEAPEST), whole, failures)
    return outcome(1, failures) | {"paid_twice": float(left.paid_twice() if left else 0)}


def load(seed: int, flows: int, tables: int) -> Outcome:
    """Searches at once against one MLflow and one Prefect server, each with many short stages and metrics."""
    failures: list[str] = []
    folder = room() / f"load-{flows}"
    mlflow, orchestrator = Server("mlflow", folder / "mlflow"), Server("prefect", folder / "prefect")
    here = place(f"load-{flows}", MLFLOW_TRACKING_URI=mlflow.address, PREFECT_API_URL=orchestrator.address)
    try:
        mlflow.start()
        orchestrator.start()
        settings = [f"seeds={tables}", "graph_queries=40", "queries=1"]
        arguments = [a for s in settings for a in ("--set", s)]
        processes = [here.start(*smoke("search"), *arguments, "--set", f"seed={1000 * i}") for i in range(flows)]
        failures += [f"flow {i} ended with {p.returncode}" for i, p in enumerate(processes) if ended(p, 3600)]
        failures += [here.output()[-1500:]] if failures else []
        here.call("sync")
        failures += faults_of_delivery(here.home, mlflow.database, mlflow.artifacts)
        points, runs = len(recorded_metrics(here.home)), orchestrator.task_runs()
    finally:
        mlflow.kill()
        orchestrator.kill()
    return outcome(flows, failures) | {"points": float(points), "task_runs": float(runs)}
