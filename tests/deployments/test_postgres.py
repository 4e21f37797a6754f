"""The wiring of compose.yaml against a real PostgreSQL: both servers on it, a flow runs, its run is found in both."""

import importlib.util
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml

from tasks import servers

BINARIES = next((p for p in Path("/usr/lib/postgresql").glob("*/bin") if (p / "postgres").exists()), None)
ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.postgres,
    pytest.mark.timeout(600),
    pytest.mark.skipif(BINARIES is None, reason="needs PostgreSQL (Debian: postgresql)"),
    pytest.mark.skipif(
        not all(importlib.util.find_spec(m) for m in ("asyncpg", "psycopg2")),
        reason="needs asyncpg and psycopg2 (pip install 'transferopt[postgres]')",
    ),
    pytest.mark.skipif(
        os.geteuid() == 0 and not shutil.which("runuser"), reason="PostgreSQL refuses to run as root; needs runuser"
    ),
]
FLOW = """
import json, sys
from tests.tasks.fan_stages import Draw, PROBLEM, draw
from prefect import flow
from tasks import tracking

@flow(name="small")
def small():
    with tracking.start("small", "operation", PROBLEM, None, {"flow": "small"}) as run:
        made = draw(Draw(seed=5))
    print(json.dumps({"run": run.id, "delivered": run.spool.close(), "sha256": made.sha256}))

small()
"""


def free() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def postgres():
    """A fresh cluster with the role and databases of the compose file; answers (port, password)."""
    folder, port, password = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp")), free(), secrets.token_hex(12)
    (folder / "password").write_text(password)
    as_user = []
    if os.geteuid() == 0:
        owner = "postgres" if subprocess.run(["id", "postgres"], capture_output=True).returncode == 0 else "nobody"
        for path in (folder, folder / "password"):
            shutil.chown(path, owner)
        as_user = ["runuser", "-u", owner, "--"]

    def call(*command, **options):
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=120, **options)
        assert done.returncode == 0, done.stdout + done.stderr

    data, quick = str(folder / "data"), "-c fsync=off -c full_page_writes=off"
    start = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' {quick}"
    ctl = [*as_user, str(BINARIES / "pg_ctl"), "-D", data]
    role = ["-U", "transferopt", "--auth=scram-sha-256", f"--pwfile={folder / 'password'}", "--no-sync"]
    call(*as_user, str(BINARIES / "initdb"), "-D", data, *role)
    call(*ctl, "-l", str(folder / "log"), "-w", "-o", start, "start", stdin=subprocess.DEVNULL)
    try:
        psql = [str(BINARIES / "psql"), "-h", "127.0.0.1", "-p", str(port), "-U", "transferopt", "-d", "postgres"]
        call(*psql, "-f", str(ROOT / "deployments" / "postgres.sql"), env={**os.environ, "PGPASSWORD": password})
        yield port, password
    finally:
        call(*ctl, "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


def stored(url: str, query: str) -> list[tuple]:
    import psycopg2

    connection = psycopg2.connect(url)
    try:
        with connection.cursor() as cursor:
            cursor.execute(query)
            return cursor.fetchall()
    finally:
        connection.close()


def test_servers_on_postgresql_and_a_flow(postgres, tmp_path, monkeypatch):
    port, password = postgres
    compose = yaml.safe_load((ROOT / "deployments" / "compose.yaml").read_text())["services"]

    def url(service: str, name: str) -> str:
        """The compose file's own URL, with this server's address and password."""
        text = compose[service]["environment"][name]
        return text.replace("${POSTGRES_PASSWORD}", password).replace("@postgres:5432", f"@127.0.0.1:{port}")

    monkeypatch.setenv("TRANSFEROPT_HOME", str(tmp_path))
    tracking = url("mlflow", "MLFLOW_BACKEND_STORE_URI")
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", tracking)
    orchestration = url("prefect", "PREFECT_SERVER_DATABASE_CONNECTION_URL")
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", orchestration)
    config = servers.read_config(ROOT, prefect_port=free(), mlflow_port=free())
    assert config.backend_store_uri == tracking
    running = servers.Servers(config)
    try:
        running.start_servers()
        lines = Path(f"/proc/{dict(running.children)['mlflow'].pid}/cmdline").read_text()
        assert password not in lines, "a password in a process list is everybody's"
        done = subprocess.run(
            [sys.executable, "-c", FLOW],
            capture_output=True,
            text=True,
            timeout=180,
            cwd=ROOT,
            env={**running.environment(), "PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        told = yaml.safe_load(done.stdout.splitlines()[-1])
        assert told["delivered"]
        found = stored(
            tracking.replace("+psycopg2", ""),
            f"select r.run_uuid, r.status from runs r join tags t on t.run_uuid = r.run_uuid "
            f"where t.key = 'transferopt.id' and t.value = '{told['run']}'",
        )
        assert [status for _, status in found] == ["FINISHED"]
        stages = "select t.value from tags t where t.key = 'output.sha256'"
        assert (told["sha256"],) in stored(tracking.replace("+psycopg2", ""), stages)
        flows = stored(orchestration.replace("+asyncpg", ""), "select state_type::text from flow_run")
        assert flows == [("COMPLETED",)]
        page = _get(f"{config.mlflow_url}/api/2.0/mlflow/runs/get?run_id={found[0][0]}")
        assert page["run"]["info"]["status"] == "FINISHED"
    finally:
        running.stop()
    assert not any(_taken(p) for p in (config.prefect_port, config.mlflow_port))


def _get(address: str) -> dict:
    import httpx

    return httpx.get(address, timeout=20).raise_for_status().json()


def _taken(port: int) -> bool:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)):
                return False
        time.sleep(0.2)
    return True
