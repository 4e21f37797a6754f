"""MLflow, Prefect and a worker as child processes of one command: started in order, stopped in reverse."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import yaml
from pydantic import Field

from core.config import Config
from core.state import exclusive, home, write_bytes

STOP_S = 10
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class ServeConfig(Config):
    """Addresses and folders of the servers."""

    host: str = Field("127.0.0.1", description="address to bind; anything but loopback needs authentication")
    prefect_port: int = Field(4200, ge=1, le=65535)
    mlflow_port: int = Field(5000, ge=1, le=65535)
    mlflow_workers: int = Field(1, ge=1)
    backend_store_uri: str
    artifacts_destination: str
    pools: list[dict] = Field(default_factory=list)
    global_limits: list[dict] = Field(default_factory=list)
    project: Path = Field(description="folder that holds flows/ and deployments/")

    @property
    def mlflow_url(self) -> str:
        return f"http://{self.host}:{self.mlflow_port}"

    @property
    def prefect_url(self) -> str:
        return f"http://{self.host}:{self.prefect_port}/api"


def read_config(project: Path, **overrides: object) -> ServeConfig:
    """Configuration from ``mlflow/server.yaml`` and ``deployments/server.yaml`` of a project, then ``overrides``.

    Raises:
        ValueError: not a project folder.
    """
    paths = project / "mlflow" / "server.yaml", project / "deployments" / "server.yaml"
    if not all(p.is_file() for p in paths):
        raise ValueError(
            f"{project} has no mlflow/server.yaml and deployments/server.yaml; run from the project's folder"
        )
    tracking, server = (yaml.safe_load(p.read_text().replace("${HOME_FOLDER}", str(home().resolve()))) for p in paths)
    values = {
        "host": server["host"],
        "prefect_port": server["port"],
        "mlflow_port": tracking["port"],
        "mlflow_workers": tracking["workers"],
        "backend_store_uri": tracking["backend_store_uri"],
        "artifacts_destination": tracking["artifacts_destination"],
        "pools": server["pools"],
        "global_limits": server["global_limits"],
        "project": project.resolve(),
    }
    return ServeConfig(**(values | {k: v for k, v in overrides.items() if v is not None}))


def check(config: ServeConfig) -> None:
    """Refuse what cannot work or is not safe, before anything starts.

    Raises:
        ValueError: a port is taken (by whom, if it is an earlier server of ours), or a public address without
            authentication.
    """
    for name, port, health in (
        ("Prefect", config.prefect_port, f"{config.prefect_url}/health"),
        ("MLflow", config.mlflow_port, f"{config.mlflow_url}/health"),
    ):
        if not _taken(config.host, port):
            continue
        who = f"a running {name} server" if _answers(health) else "another program or a half-dead earlier server"
        raise ValueError(f"port {port} for {name} is taken by {who}; stop it or give another port")
    if config.host not in LOOPBACK:
        missing = [v for v in ("PREFECT_SERVER_API_AUTH_STRING", "MLFLOW_AUTH_CONFIG_PATH") if not os.environ.get(v)]
        if missing:
            raise ValueError(
                f"{config.host} can be reached from outside, so authentication must be on: set {' and '.join(missing)} "
                "(Prefect: user:password; MLflow: path of a basic-auth configuration), or bind 127.0.0.1"
            )


@dataclass
class Servers:
    """The running children. Use as a context manager."""

    config: ServeConfig
    children: list[tuple[str, subprocess.Popen]] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        """Environment of the children: they talk to these servers and share this home."""
        values = {
            "MLFLOW_TRACKING_URI": self.config.mlflow_url,
            "PREFECT_API_URL": self.config.prefect_url,
            "TRANSFEROPT_HOME": str(home().resolve()),
            "TRANSFEROPT_PROJECT": str(self.config.project),
            "PREFECT_LOGGING_LEVEL": "INFO",
        }
        if auth := os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
            values["PREFECT_API_AUTH_STRING"] = auth
        if self.config.host not in LOOPBACK:
            values["MLFLOW_FLASK_SERVER_SECRET_KEY"] = _form_secret()
        return {**os.environ, **values}

    def start(self) -> None:
        """Start MLflow and Prefect, register pools, limits and deployments, then start a worker.

        Raises:
            RuntimeError: a server does not come up; the end of its log is shown.
        """
        c = self.config
        self._spawn("mlflow", [*_python("mlflow"), "server", *_mlflow_arguments(c)])
        self._spawn(
            "prefect", [*_python("prefect"), "server", "start", "--host", c.host, "--port", str(c.prefect_port)]
        )
        self._wait("mlflow", f"{c.mlflow_url}/health")
        self._wait("prefect", f"{c.prefect_url}/health")
        for pool in c.pools:
            limit = ["--concurrency-limit", str(pool["concurrency_limit"])] if "concurrency_limit" in pool else []
            create = ["work-pool", "create", pool["name"], "--type", pool["type"], "--overwrite"]
            self._call(*create)
            if limit:
                self._call("work-pool", "set-concurrency-limit", pool["name"], limit[1])
        for entry in c.global_limits:
            self._limit(entry["name"], entry["limit"])
        self._call("--no-prompt", "deploy", "--all", "--prefect-file", "deployments/prefect.yaml")
        for pool in c.pools:
            self._spawn(f"worker-{pool['name']}", [*_python("prefect"), "worker", "start", "--pool", pool["name"]])

    def stop(self) -> None:
        """End the children in reverse order, politely first."""
        for _, child in reversed(self.children):
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGINT)
                try:
                    child.wait(STOP_S)
                except subprocess.TimeoutExpired:
                    os.killpg(child.pid, signal.SIGKILL)
                    child.wait()
        self.children.clear()

    def died(self) -> str | None:
        """Name of a child that ended by itself, or None."""
        return next((name for name, child in self.children if child.poll() is not None), None)

    def log(self, name: str) -> Path:
        return home() / "logs" / f"{name}.log"

    def __enter__(self) -> "Servers":
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _spawn(self, name: str, command: Sequence[str]) -> None:
        path = self.log(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as out:
            child = subprocess.Popen(
                command, stdout=out, stderr=out, cwd=self.config.project, env=self.environment(), start_new_session=True
            )
        self.children.append((name, child))

    def _wait(self, name: str, url: str, limit_s: float = 90) -> None:
        child = dict(self.children)[name]
        until = time.monotonic() + limit_s
        while time.monotonic() < until:
            if _answers(url):
                return
            if child.poll() is not None:
                break
            time.sleep(0.3)
        raise RuntimeError(f"{name} did not come up; the end of {self.log(name)}:\n{_tail(self.log(name))}")

    def _call(self, *arguments: str) -> None:
        done = subprocess.run(
            [*_python("prefect"), *arguments],
            cwd=self.config.project,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=300,
        )
        if done.returncode:
            raise RuntimeError(f"prefect {' '.join(arguments)} failed:\n{(done.stdout + done.stderr)[-2000:]}")

    def _limit(self, name: str, limit: int) -> None:
        body = {"name": name, "limit": limit, "active": True}
        reply = httpx.post(f"{self.config.prefect_url}/v2/concurrency_limits/", json=body, headers=_auth(), timeout=30)
        if reply.status_code == 409:
            reply = httpx.patch(
                f"{self.config.prefect_url}/v2/concurrency_limits/{name}", json=body, headers=_auth(), timeout=30
            )
        reply.raise_for_status()


def _mlflow_arguments(c: ServeConfig) -> list[str]:
    arguments = ["--host", c.host, "--port", str(c.mlflow_port), "--workers", str(c.mlflow_workers)]
    arguments += ["--backend-store-uri", c.backend_store_uri, "--artifacts-destination", c.artifacts_destination]
    if c.host not in LOOPBACK:
        arguments += ["--app-name", "basic-auth"]
    return arguments


def _python(module: str) -> list[str]:
    return [sys.executable, "-m", module]


def _auth() -> Mapping[str, str]:
    import base64

    text = os.environ.get("PREFECT_SERVER_API_AUTH_STRING")
    return {"Authorization": f"Basic {base64.b64encode(text.encode()).decode()}"} if text else {}


def _taken(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=3).status_code < 500
    except httpx.HTTPError:
        return False


def _tail(path: Path, lines: int = 15) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def _form_secret() -> str:
    """A secret for MLflow's basic-auth forms, made once and kept readable by this user only."""
    path = home() / "mlflow.secret"
    if not path.exists():
        write_bytes(path, secrets.token_hex(32).encode())
        path.chmod(0o600)
    return path.read_text()


def serve(config: ServeConfig, ready) -> None:
    """Run the servers until interrupted; ``ready(config)`` is called when all answer.

    Raises:
        ValueError: see :func:`check`.
        RuntimeError: a server ended by itself.
    """
    with exclusive(home() / "serve"):
        check(config)
        stopped: list[int] = []
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda n, _: stopped.append(n))
        with Servers(config) as servers:
            ready(config)
            while not stopped:
                if name := servers.died():
                    raise RuntimeError(f"{name} ended by itself; the end of its log:\n{_tail(servers.log(name))}")
                time.sleep(0.3)
