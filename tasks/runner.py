"""Where stages and candidates run: in this process, in worker processes of this machine, or on Ray workers.

``TRANSFEROPT_RUNNER``, or ``transferopt run --runner``:

    threads           one stage after the other in this process, torch's threads on every core (default)
    processes:2       stages side by side in 2 processes of this machine (processes: as many as cores)
    ray, ray:4        Ray workers of this machine for the time of the run, as many as cores, or 4
    HOST:PORT, auto   a running Ray cluster

Two trainings never share a process: torch draws dropout from one generator a process, so trainings in threads would
change each other's results. Several at a time therefore means several processes: on one machine a plain pool of them,
and Ray for candidates side by side, for GPUs and for more machines.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol

from pydantic import Field

from core.config import Config
from core.state import home

VARIABLE = "TRANSFEROPT_RUNNER"
LOOPBACK = ("127.0.0.1", "localhost", "auto")
# What a worker on another machine must know; Prefect's own settings travel with each task.
SHARED = (VARIABLE, "TRANSFEROPT_DATA", "TRANSFEROPT_ASSETS", "TRANSFEROPT_TASK_GPUS", "OMP_NUM_THREADS", "PYTHONPATH")
RETRIES = 5  # of a task whose worker or machine was lost; an error of the task itself is not repeated


class RunnerConfig(Config):
    """Where a flow's fan-out runs."""

    kind: Literal["threads", "processes", "ray", "cluster"] = Field(
        "threads", description="this process, several of this machine, Ray here, or a cluster"
    )
    workers: int | None = Field(None, ge=1, description="workers on this machine; as many as cores when empty")
    address: str = Field("", description="address of a running Ray cluster")

    @property
    def embeds(self) -> bool:
        """Whether a server that the command begins itself, on loopback, is enough."""
        return self.kind in ("threads", "processes")


def configured(text: str | None = None) -> RunnerConfig:
    """The runner that ``text`` or the environment asks for.

    Raises:
        ValueError: not one of the forms above; or a cluster without its token authentication.
    """
    text = (text if text is not None else os.environ.get(VARIABLE, "")).strip() or "threads"
    if text == "threads":
        return RunnerConfig()
    if found := re.fullmatch(r"(processes|ray)(?::(\d+))?", text):
        return RunnerConfig(kind=found[1], workers=int(found[2]) if found[2] else None)
    if text != "auto" and not re.fullmatch(r"(ray://)?[\w.-]+:\d+", text):
        raise ValueError(
            f"{VARIABLE}={text}: allowed are threads, processes[:N], ray[:N], auto, HOST:PORT of a cluster"
        )
    if os.environ.get("RAY_AUTH_MODE", "token") != "token":
        raise ValueError(
            f"RAY_AUTH_MODE={os.environ['RAY_AUTH_MODE']}: whoever reaches a cluster without authentication runs code "
            "on it; unset RAY_AUTH_MODE and give the cluster's token (RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH)"
        )
    return RunnerConfig(kind="cluster", address=text)


def prefect_runner(config: RunnerConfig) -> Any:
    """Prefect's task runner for a flow; None for its default.

    Raises:
        ValueError: Ray is asked for and not installed.
    """
    if config.kind == "threads":
        return None
    if config.kind == "processes":
        from tasks.processes import process_runner

        return process_runner(config.workers)
    try:
        from prefect_ray import RayTaskRunner
    except ImportError:
        raise ValueError("Ray is not installed; pip install 'transferopt[ray]', or take the runner threads") from None
    settings: dict[str, Any] = {"log_to_driver": False}
    if config.kind == "ray":
        return RayTaskRunner(init_kwargs=settings | {"num_cpus": config.workers, "include_dashboard": False})
    variables = {name: os.environ[name] for name in SHARED if name in os.environ}
    variables["TRANSFEROPT_HOME"] = str(home().resolve())
    return RayTaskRunner(address=config.address, init_kwargs=settings | {"runtime_env": {"env_vars": variables}})


@contextmanager
def reachable_server(config: RunnerConfig) -> Iterator[None]:
    """Inside, Prefect's settings name a server that workers reach: the embedded one is started and named.

    Raises:
        ValueError: a cluster on other machines, and only the embedded server, which listens on this one alone.
    """
    from prefect.settings import PREFECT_API_URL, temporary_settings

    if config.kind == "threads" or PREFECT_API_URL.value():
        yield
        return
    host = config.address.removeprefix("ray://").rpartition(":")[0] or config.address
    if config.kind == "cluster" and host not in LOOPBACK:
        raise ValueError(
            f"workers of the cluster {config.address} cannot reach the embedded Prefect server; start one "
            "(transferopt serve --host ...) and set PREFECT_API_URL to its address"
        )
    from prefect.server.api.server import SubprocessASGIServer

    server = SubprocessASGIServer()
    server.start()
    with temporary_settings({PREFECT_API_URL: server.api_url}):
        yield


class Executor(Protocol):
    """What ``core`` is handed where it may evaluate many things at once: a plain ``map``."""

    def map(self, function: Callable[[Any, Any], Any], items: Sequence[Any], shared: Any = None) -> list[Any]:
        """``[function(shared, item) for item in items]``, in order."""


class Here:
    """One after the other in this process."""

    def map(self, function: Callable[[Any, Any], Any], items: Sequence[Any], shared: Any = None) -> list[Any]:
        return [function(shared, item) for item in items]


class OnRay:
    """On the workers of the Ray cluster this process is connected to.

    ``shared`` is put into the object store once and arrives once a machine: numpy arrays in it are then one piece of
    shared memory for all workers of that machine, read-only. A call whose worker dies is made again elsewhere.
    """

    def map(self, function: Callable[[Any, Any], Any], items: Sequence[Any], shared: Any = None) -> list[Any]:
        import ray

        remote = ray.remote(max_retries=RETRIES, num_gpus=gpus_per_task())(function)
        held = ray.put(shared)
        return ray.get([remote.remote(held, item) for item in items])


def executor() -> Executor:
    """Ray where this process is connected to it, else this process.

    A stage on a worker keeps its GPU while it waits, so what it sends out could wait for that very one: it works alone.
    """
    import sys

    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return Here()
    on_worker = ray.get_runtime_context().worker.mode == ray.WORKER_MODE
    return Here() if on_worker and ray.get_gpu_ids() else OnRay()


def gpus_per_task() -> float:
    """GPUs a task asks for: ``TRANSFEROPT_TASK_GPUS`` (default 1) where the cluster has any."""
    import ray

    return float(os.environ.get("TRANSFEROPT_TASK_GPUS", "1")) if ray.cluster_resources().get("GPU") else 0.0
