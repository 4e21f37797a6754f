"""Cancelling: what a worker does to a run (SIGTERM) stops it, and `resume` ends with the same rows.

Ten seconds are promised; on a machine that runs other tests beside this one, three times as many are waited.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prefect.server.api.server import SubprocessASGIServer

from core.evaluate.rows import read_rows
from flows.runtime import FLOWS
from tests.core.transfer import tiny

pytestmark = pytest.mark.timeout(1800)
TIMES = {"seconds", "energy_wh", "peak_memory_mb"}
STOP_S = 10
CLI = [sys.executable, "-c", "from flows.cli import main; main()"]


def long_transfer(place: Path) -> dict:
    """Parameters of a transfer flow: two strategies on a tiny encoder and a csv, each trained for some seconds."""
    examples = tiny.texts(1200)
    lines = ["text,label", *(f"{t},{['no', 'yes'][y]}" for t, y in zip(examples.texts, examples.labels))]
    (place / "toy.csv").write_text("\n".join(lines) + "\n")
    task = place / "toy.yaml"
    task.write_text("kind: single\nsource: {path: toy.csv}\nlabels: ['no', 'yes']\nmetric: accuracy\n")
    model = tiny.build("bert", place / "model")
    return {
        "size": "smoke",
        "sources": (str(model),),
        "target": str(task),
        "strategies": ("full", "scratch"),
        "examples": 600,
        "passes": 20_000,
        "max_length": 16,
    }


def told(rows):
    return {(r.method, r.metric, r.seed, str(r.settings)): r.value for r in rows if r.metric not in TIMES}


def test_a_terminated_run_stops_and_is_taken_up(home, tmp_path):
    values = long_transfer(tmp_path)
    flow = FLOWS.get("transfer")
    expected = flow.run(flow.form(**values))
    assert expected.rows
    server = next(iter(SubprocessASGIServer._instances.values()))
    own = tmp_path / "child"
    environment = {
        **os.environ,
        "TRANSFEROPT_HOME": str(own),
        "MLFLOW_TRACKING_URI": f"sqlite:///{own / 'mlflow.db'}",
        "PREFECT_API_URL": server.api_url,
    }
    settings = [f"{k}={list(v) if isinstance(v, tuple) else v}" for k, v in values.items()]
    command = [*CLI, "run", "transfer", *(part for s in settings for part in ("--set", s))]
    with open(tmp_path / "log", "w") as log:
        child = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        until = time.monotonic() + 600
        lasting = set()  # a fit that goes on: a short one may end before it is asked to
        while not lasting:
            assert child.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < until, (tmp_path / "log").read_text()
            begun = set(own.glob("cache/adapt/*.part"))
            time.sleep(0.5)
            lasting = begun & set(own.glob("cache/adapt/*.part"))
        asked = time.monotonic()
        child.send_signal(signal.SIGTERM)
        child.wait(3 * STOP_S)
        print(f"stopped after {time.monotonic() - asked:.1f} s")
    finally:
        child.kill()
        child.wait()
    assert child.returncode != 0, (tmp_path / "log").read_text()
    assert list(own.glob("cache/adapt/*.part")), "it was stopped in the middle of the work"
    assert not list(own.glob("cache/report-transfer/*"))

    (run,) = [p.name for p in (own / "spool").iterdir()]
    summary = tmp_path / "summary.json"
    done = subprocess.run(
        [*CLI, "resume", run, "--json", str(summary)], env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "continuing transfer" in done.stdout
    (report,) = [p for p in own.glob("cache/report-transfer/*") if p.is_dir()]
    assert told(read_rows(report / "rows.jsonl")) == told(expected.rows)
