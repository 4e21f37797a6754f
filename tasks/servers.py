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
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # bound to all addresses: the one at which our own processes ask
HOSTS = "MLFLOW_SERVER_ALLOWED_HOSTS"
ACCOUNT = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
ADMINISTRATOR = "MLFLOW_AUTH_ADMIN_USERNAME", "MLFLOW_AUTH_ADMIN_PASSWORD"


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
        """Where processes of this machine reach MLflow."""
        return f"http://{self._name}:{self.mlflow_port}"

    @property
    def prefect_url(self) -> str:
        """Where processes of this machine reach Prefect's API."""
        return f"http://{self._name}:{self.prefect_port}/api"

    @property
    def _name(self) -> str:
        host = EVERYWHERE.get(self.host, self.host)
        return f"[{host}]" if ":" in host else host


def read_config(project: Path, **overrides: object) -> ServeConfig:
    """Configuration from ``mlflow/server.yaml`` and ``deployments/server.yaml`` of a project, the environment (MLflow's
    stores), then ``overrides``.

    Raises:
        ValueError: not a project folder.
    """
    paths = project / "mlflow" / "server.yaml", project / "deployments" / "server.yaml"
    if not all(p.is_file() for p in paths):
        raise ValueError(
            f"{project} has no mlflow/server.yaml and deployments/server.yaml; run from the project's folder"
        )
    tracking, server = (yaml.safe_load(p.read_text().replace("${HOME_FOLDER}", str(home().resolve()))) for p in paths)
    stores = {"backend_store_uri": "MLFLOW_BACKEND_STORE_URI", "artifacts_destination": "MLFLOW_ARTIFACTS_DESTINATION"}
    tracking |= {key: os.environ[name] for key, name in stores.items() if os.environ.get(name)}
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
        ValueError: a port is taken (by whom, if it is an earlier server of ours), a public address without
            authentication, or no account of MLflow for the worker.
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
        if not _account():
            raise ValueError(
                f"the worker needs an account of MLflow: set {' and '.join(ACCOUNT)}, or "
                f"{' and '.join(ADMINISTRATOR)}, with which MLflow makes its first account"
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
            values |= {"MLFLOW_FLASK_SERVER_SECRET_KEY": _form_secret(), **_account()}
            if not os.environ.get("PREFECT_SERVER_UI_API_URL"):
                # else the page would send browsers of other machines to PREFECT_API_URL, which is this machine's own
                values["PREFECT_UI_API_URL"] = os.environ.get("PREFECT_UI_API_URL") or "/api"
        # MLflow answers to these names alone, and to those of loopback and of private networks when none is given
        allowed = os.environ.get(HOSTS)
        if allowed or self.config.host not in (*LOOPBACK, *EVERYWHERE):
            ours = self.config.mlflow_url.removeprefix("http://")
            values[HOSTS] = f"{allowed},{ours}" if allowed else ours
        # MLflow's own background jobs: nothing here uses them, and they are two more processes
        return {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **os.environ, **values}

    def start(self) -> None:
        """Start MLflow and Prefect, register pools, limits and deployments, then start a worker.

        Raises:
            RuntimeError: a server does not come up; the end of its log is shown.
        """
        self.start_servers()
        register(self.config, self.environment())
        for pool in self.config.pools:
            self._spawn(f"worker-{pool['name']}", _python(*worker_command(pool["name"])))

    def start_servers(self) -> None:
        """Start MLflow and Prefect alone, and wait until both answer."""
        c = self.config
        # the stores are no arguments: those are in every process list, and a URI may hold a password
        stores = {
            "MLFLOW_BACKEND_STORE_URI": c.backend_store_uri,
            "MLFLOW_ARTIFACTS_DESTINATION": c.artifacts_destination,
        }
        self._spawn("mlflow", _python(*mlflow_command(c)), stores)
        self._spawn("prefect", _python(*prefect_command(c)))
        self._wait("mlflow", f"{c.mlflow_url}/health")
        self._wait("prefect", f"{c.prefect_url}/health")

    def stop(self) -> None:
        """End the children in reverse order, politely first."""
        for _, child in reversed(self.children):
            # a shell that starts its jobs in the background makes them ignore the first of these
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
                if child.poll() is not None:
                    break
                os.killpg(child.pid, number)
                try:
                    child.wait(STOP_S)
                except subprocess.TimeoutExpired:
                    continue
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

    def _spawn(self, name: str, command: Sequence[str], variables: Mapping[str, str] | None = None) -> None:
        path = self.log(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as out:
            child = subprocess.Popen(
                command,
                stdout=out,
                stderr=out,
                cwd=self.config.project,
                env={**self.environment(), **(variables or {})},
                start_new_session=True,
            )
        self.children.append((name, child))

    def _wait(self, name: str, url: str, limit_s: float = 600) -> None:
        child = dict(self.children)[name]
        until = time.monotonic() + limit_s
        while time.monotonic() < until:
            if _answers(url):
                return
            if child.poll() is not None:
                break
            time.sleep(0.3)
        raise RuntimeError(f"{name} did not come up; the end of {self.log(name)}:\n{_tail(self.log(name))}")


def mlflow_command(c: ServeConfig) -> list[str]:
    """The tracking server; its stores come from ``MLFLOW_BACKEND_STORE_URI`` and ``MLFLOW_ARTIFACTS_DESTINATION``."""
    command = ["mlflow", "server", "--host", c.host, "--port", str(c.mlflow_port), "--workers", str(c.mlflow_workers)]
    return command if c.host in LOOPBACK else [*command, "--app-name", "basic-auth"]


def prefect_command(c: ServeConfig) -> list[str]:
    """The Prefect server; its database comes from ``PREFECT_SERVER_DATABASE_CONNECTION_URL``, if that is set."""
    return ["prefect", "server", "start", "--host", c.host, "--port", str(c.prefect_port)]


def worker_command(pool: str) -> list[str]:
    """A worker of a pool."""
    return ["prefect", "worker", "start", "--pool", pool]


def register(c: ServeConfig, environment: Mapping[str, str]) -> None:
    """Make pools, limits and deployments known to the Prefect server that ``environment`` names; may be repeated.

    Raises:
        RuntimeError: the server refused something.
    """

    def call(*arguments: str) -> None:
        done = subprocess.run(
            _python("prefect", *arguments), cwd=c.project, env=environment, capture_output=True, text=True, timeout=300
        )
        if done.returncode:
            raise RuntimeError(f"prefect {' '.join(arguments)} failed:\n{(done.stdout + done.stderr)[-2000:]}")

    for pool in c.pools:
        call("work-pool", "create", pool["name"], "--type", pool["type"], "--overwrite")
        if "concurrency_limit" in pool:
            call("work-pool", "set-concurrency-limit", pool["name"], str(pool["concurrency_limit"]))
    for entry in c.global_limits:
        _limit(environment["PREFECT_API_URL"], entry["name"], entry["limit"], _auth(environment))
    call("--no-prompt", "deploy", "--all", "--prefect-file", "deployments/prefect.yaml")


def _limit(api: str, name: str, limit: int, headers: Mapping[str, str]) -> None:
    body = {"name": name, "limit": limit, "active": True}
    reply = httpx.post(f"{api}/v2/concurrency_limits/", json=body, headers=headers, timeout=30)
    if reply.status_code == 409:
        reply = httpx.patch(f"{api}/v2/concurrency_limits/{name}", json=body, headers=headers, timeout=30)
    reply.raise_for_status()


def _python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def _auth(environment: Mapping[str, str]) -> Mapping[str, str]:
    """What a client of Prefect sends; without a variable of its own, what the server on this machine asks for."""
    import base64

    text = environment.get("PREFECT_API_AUTH_STRING") or environment.get("PREFECT_SERVER_API_AUTH_STRING")
    return {"Authorization": f"Basic {base64.b64encode(text.encode()).decode()}"} if text else {}


def _account() -> dict[str, str]:
    """What clients of MLflow show it: an account of their own, else its first administrator's; empty without either."""
    for names in (ACCOUNT, ADMINISTRATOR):
        if all(os.environ.get(name) for name in names):
            return {mine: os.environ[name] for mine, name in zip(ACCOUNT, names, strict=True)}
    return {}


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
        starting = True

        def stop(number: int, _: object) -> None:
            stopped.append(number)
            if starting and len(stopped) == 1:  # servers that come up are waited for, for minutes if need be
                raise KeyboardInterrupt

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        try:
            with Servers(config) as servers:
                starting = False
                ready(config)
                while not stopped:
                    if name := servers.died():
                        raise RuntimeError(f"{name} ended by itself; the end of its log:\n{_tail(servers.log(name))}")
                    time.sleep(0.3)
        except KeyboardInterrupt:
            if not stopped:
                raise
