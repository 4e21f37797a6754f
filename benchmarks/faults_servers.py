"""MLflow and Prefect as child processes that can be killed, and the check that MLflow holds what was recorded."""

import json
import math
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.flow_process import ROOT, wait_until
from core.hashing import sha256_file


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@dataclass
class Server:
    """``kind`` is ``mlflow`` or ``prefect``; its state lies in ``folder`` and outlives a kill."""

    kind: str
    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}" + ("/api" if self.kind == "prefect" else "")

    @property
    def database(self) -> Path:
        return self.folder / f"{self.kind}.db"

    @property
    def artifacts(self) -> Path:
        return self.folder / "artifacts"

    def start(self) -> "Server":
        """Start it and wait until it answers.

        Raises:
            RuntimeError: it does not.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        where = ["--host", "127.0.0.1", "--port", str(self.port)]
        command = [sys.executable, "-m", "prefect", "server", "start", *where]
        if self.kind == "mlflow":
            stores = ["--backend-store-uri", f"sqlite:///{self.database}", "--artifacts-destination"]
            command = [sys.executable, "-m", "mlflow", "server", *where, "--workers", "1"]
            command += [*stores, self.artifacts.as_uri()]
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "MLFLOW"))}
        kept |= {"PREFECT_HOME": str(self.folder), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
        kept |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with open(self.folder / "server.txt", "ab") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, cwd=ROOT, env=kept, start_new_session=True)
        if not wait_until(self.answers, self.process, limit_s=600, step_s=0.5):
            self.kill()
            raise RuntimeError(f"{self.kind} did not start: {(self.folder / 'server.txt').read_text()[-1500:]}")
        return self

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}/health", timeout=5) as reply:
                return reply.status < 500
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        """As a power cut would end it."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def task_runs(self) -> int:
        """Task runs in Prefect's database."""
        with sqlite3.connect(f"file:{self.database}?mode=ro", uri=True) as db:
            return db.execute("SELECT count(*) FROM task_run").fetchone()[0]


def records(home: Path) -> Iterator[tuple[Path, dict]]:
    """Every record of every run's spool."""
    for path in sorted((home / "spool").glob("*/ops.jsonl")):
        for line in path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                yield path.parent, json.loads(line)


def recorded_metrics(home: Path) -> set[tuple]:
    """(run, metric, step, time, value) of every point that was recorded."""
    found = set()
    for _, op in records(home):
        for key, value, time_ms, step in op.get("metrics", []) if op["op"] == "values" else []:
            found.add((op["run"], key, step, time_ms, _number(value)))
    return found


def faults_of_delivery(home: Path, database: Path, artifacts: Path | None = None) -> list[str]:
    """What MLflow's database lacks, doubles or disorders of what the runs of a home recorded."""
    faults = []
    for folder in sorted({f for f, _ in records(home)}):
        done = folder / "delivered.json"
        if not done.exists() or json.loads(done.read_text()) != (folder / "ops.jsonl").stat().st_size:
            faults.append(f"{folder.name}: records still wait")
        if (folder / "refused.jsonl").exists():
            faults.append(f"{folder.name}: {(folder / 'refused.jsonl').read_text()[:300]}")
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as db:
        runs = db.execute("SELECT value, run_uuid FROM tags WHERE key = 'transferopt.id'").fetchall()
        columns = "run_uuid, key, step, timestamp, value, is_nan"
        points = db.execute(f"SELECT {columns} FROM metrics ORDER BY rowid").fetchall()
        state = dict(db.execute("SELECT run_uuid, status FROM runs").fetchall())
        places = dict(db.execute("SELECT run_uuid, artifact_uri FROM runs").fetchall())
    started = {op["run"] for _, op in records(home) if op["op"] == "start"}
    count = Counter(ours for ours, _ in runs)
    faults += [f"run {r} is {count[r]} times in MLflow" for r in started if count[r] != 1]
    ours = {uuid: own for own, uuid in runs}
    mine = [p for p in points if ours.get(p[0]) in started]
    found = [(ours[u], k, s, t, _number(math.nan if bad else v)) for u, k, s, t, v, bad in mine]
    expected = recorded_metrics(home)
    faults += [f"metric point missing: {p}" for p in list(expected - set(found))[:5]]
    faults += [f"metric point nobody recorded: {p}" for p in list(set(found) - expected)[:5]]
    faults += [f"{len(found) - len(set(found))} metric points doubled"] if len(found) != len(set(found)) else []
    faults += _disorder(found)
    mlflow_id = dict(runs)
    for _, op in records(home):
        if op["op"] == "end" and state.get(mlflow_id.get(op["run"], "")) != op["status"]:
            faults.append(f"run {op['run']} ended {op['status']}, MLflow says otherwise")
        elif op["op"] == "artifact" and op["run"] in mlflow_id:
            logged = _folder_of(places[mlflow_id[op["run"]]], artifacts)
            faults += _missing_files(Path(op["path"]), logged, op.get("at"))
    return faults


def _disorder(found: list[tuple]) -> list[str]:
    last: dict[tuple, int] = {}
    for run, key, _, time_ms, _ in found:
        if time_ms < last.get((run, key), 0):
            return [f"{key} of {run} arrived out of order"]
        last[run, key] = time_ms
    return []


def _folder_of(uri: str, artifacts: Path | None) -> Path:
    if uri.startswith("mlflow-artifacts:"):
        return artifacts / uri.removeprefix("mlflow-artifacts:").lstrip("/")
    return Path(uri.removeprefix("file://"))


def _missing_files(path: Path, logged: Path, at: str | None) -> list[str]:
    root = path if path.is_dir() else path.parent
    sent = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path] if path.exists() else []
    faults = []
    for p in sent:
        copy = logged / (at or "") / p.relative_to(root)
        if not copy.is_file() or sha256_file(copy) != sha256_file(p):
            faults.append(f"artifact {p} did not arrive as it is")
    return faults


def _number(value: float) -> float | str:
    return "nan" if value is None or math.isnan(value) else float(value)
