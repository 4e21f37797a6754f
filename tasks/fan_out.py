"""Stages side by side: started one by one, collected together, on whatever runner is configured (tasks.runner).

    students = gather({m: distill.submit(DistilConfig(method=m), signals=signals) for m in methods})

A worker shares the home folder (this machine's disk, or a file system of the cluster): artifacts stay references, large
arrays are mapped from the content cache and so lie in memory once a machine. What a worker records is handed back with
the result and delivered by the process that holds the flow, so a worker that dies leaves no half-told run; its stage is
computed again elsewhere and takes up its own checkpoints.
"""

from collections.abc import Hashable, Mapping
from concurrent.futures import BrokenExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from core.config import Config
from core.transfer.problem import Problem
from tasks import tracking
from tasks.runner import RETRIES, configured, gpus_per_task
from tasks.spool import now_ms
from tasks.stage import Artifact, Stage, of_size, size

K = TypeVar("K", bound=Hashable)
LOST_WORKER = (
    "a worker process was ended from outside (short of memory?), which ends the others; finished stages are kept, "
    "and the same command continues, with fewer workers if memory was short (--runner processes:N)"
)


class Remote:
    """A stage that runs on a worker."""

    def __init__(self, stage: Stage, config: Config, inputs: Mapping[str, Any]):
        self.stage, self.config, self.run, self.started = stage, config, tracking.current(), now_ms()
        parent = ParentRun(
            id=self.run.id,
            name=self.run.name,
            experiment=self.run.experiment,
            folder=str(self.run.spool.folder),
            problem=self.run.problem.model_dump(),
            size=size(),
        )
        with _options():
            self.future = stage.prefect_task(on_worker).submit(stage, config, dict(inputs), parent)

    def result(self) -> Artifact:
        """Wait; the worker's records are told to the flow's run."""
        try:
            artifact, records = self.future.result()
        except BrokenExecutor as error:
            self._tell_failure(error)
            raise RuntimeError(LOST_WORKER) from error
        except BaseException as error:
            self._tell_failure(error)
            raise
        for record in records:
            self.run.spool.append(**record)
        return artifact

    def _tell_failure(self, error: BaseException) -> None:
        """A run for the stage that did not come back: what a worker noted before it failed was not handed over."""
        import uuid

        spool, run = self.run.spool, uuid.uuid4().hex
        tags = {**self.run.problem.tags(), "stage": self.stage.name, "error": f"{type(error).__name__}: {error}"[:5000]}
        head = {"name": self.stage.name, "experiment": self.run.experiment, "parent": self.run.id}
        spool.append("start", run, **head, tags=tags, time=self.started)
        spool.append("values", run, params=tracking.flatten(self.config.model_dump(mode="json")))
        spool.append("end", run, status="FAILED", time=now_ms())


def _options() -> AbstractContextManager:
    """What Ray is told of a stage; a process pool needs to be told nothing."""
    if configured().kind == "processes":
        return nullcontext()
    from prefect_ray.context import remote_options

    return remote_options(max_retries=RETRIES, num_gpus=gpus_per_task())


class ParentRun(Config):
    """What a worker must know of the flow's run."""

    id: str
    name: str
    experiment: str
    folder: str
    problem: dict[str, Any]
    size: str = ""


class Records:
    """Stands where a run's spool stands, on a worker: keeps what is recorded until it is handed back."""

    def __init__(self, folder: Path):
        self.folder, self.kept = folder, []

    def append(self, op: str, run: str, **fields: Any) -> None:
        self.kept.append({"op": op, "run": run, **fields})


def on_worker(stage: Stage, config: Config, inputs: dict[str, Any], parent: ParentRun) -> tuple[Artifact, list[dict]]:
    """Run a stage below its flow's run; the artifact and what was recorded."""
    records = Records(Path(parent.folder))
    run = tracking.Run(parent.id, parent.name, parent.experiment, records, Problem(**parent.problem))
    with tracking.inside(run), of_size(parent.size):
        artifact = stage.compute(config, inputs)
    return artifact, records.kept


def start(stage: Stage, config: Config, inputs: Mapping[str, Any]) -> Artifact | Remote:
    """Start a stage on the configured runner; in this process it is finished on return."""
    if configured().kind == "threads":
        return stage(config, **inputs)
    return Remote(stage, config, inputs)


def gather(started: Mapping[K, Artifact | Remote]) -> dict[K, Artifact]:
    """The artifacts under the same keys. All are waited for; then the first error is raised, if any."""
    done: dict[K, Artifact] = {}
    errors: list[Exception] = []
    for key, value in started.items():
        try:
            done[key] = value.result() if isinstance(value, Remote) else value
        except Exception as error:  # the others' results and records are kept before it is raised
            errors.append(error)
    if errors:
        raise errors[0]
    return done
