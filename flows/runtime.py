"""What every flow shares: the Prefect flow, the MLflow parent run, the plan and the summary.

    @transfer_flow("merge", level="system", parameters=MergeParameters, problem=describe, title="...")
    def merge(parameters: MergeParameters) -> Artifact:
        ...chain stages, return the artifact whose rows and report are the result...

``merge`` is then a Prefect flow whose arguments are the fields of ``MergeParameters`` (so that the form in the UI shows
each with description, default, choices and bounds).
"""

import tasks  # noqa: F401  (sets the environment before Prefect reads it)

# isort: split

import inspect
import json
import os
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

from prefect import Flow
from prefect.runtime import deployment, flow_run
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from pydantic import Field

from core.config import Config
from core.evaluate.rows import Row
from core.merge.linalg import device
from core.registry import Registry
from core.transfer.problem import Problem
from flows.forms import Form, meaning
from tasks import courier, embedded, tracking
from tasks.addresses import without_password
from tasks.links import publish
from tasks.long_tags import split
from tasks.mlflow_store import open_early
from tasks.prepared import place
from tasks.runner import configured, prefect_runner, reachable_server
from tasks.spool import refused
from tasks.stage import Artifact, Planned, is_planning, of_size, planning
from tasks.tidying import keep_within_limit, limit_bytes

LEVELS = {
    "content": "few-shot distillation of prompt-tuned models",
    "structure": "architecture search that transfers across search spaces",
    "system": "merging many fine-tuned models",
    "transfer": "share, adjust or retrain, and does it pay",
    "operation": "benchmarks and chains of the other levels",
}
GPU_HEAVY = "gpu-heavy"  # a global limit of the Prefect server (deployments/server.yaml)
_has_gpu: ContextVar[bool] = ContextVar("has_gpu", default=False)
FLOWS: Registry["TransferFlow"] = Registry("flow", package="flows")


class Summary(Config):
    """What a finished flow hands back; ``--json`` writes it."""

    flow: str
    status: str
    rows: list[Row]
    metrics: dict[str, float]
    budget: dict[str, float]
    run_id: str
    mlflow_run_id: str | None
    prefect_flow_run_id: str | None
    artifact: Artifact
    refused: int = Field(0, description="records that MLflow did not take and never will")


class TransferFlow(Flow):
    """A Prefect flow made by :func:`transfer_flow`."""

    def __init__(self, name, level, body: Callable, form: type[Form], describe: Callable, title, headline):
        if level not in LEVELS:
            raise ValueError(f"unknown level {level!r}; allowed: {', '.join(LEVELS)}")
        self.level, self.body, self.form, self.describe, self.title = level, body, form, describe, title
        self.headline = headline

        def run(**values: Any) -> dict[str, Any]:
            return self._track(form(**values).resolved())

        run.__signature__, run.__doc__ = _signature(form), _docstring(title, form)
        run.__module__, run.__qualname__, run.__name__ = body.__module__, body.__qualname__, body.__name__
        # The form's own messages name the nearest key; Prefect's check of the same types would come first otherwise.
        super().__init__(
            run,
            name=name,
            description=title,
            flow_run_name=_run_name(name),
            task_runner=prefect_runner(configured()),
            log_prints=True,
            validate_parameters=False,
        )

    def __reduce__(self):
        """To a worker a flow is its name."""
        return _flow, (self.name,)

    def run(self, parameters: Form | None = None) -> Summary:
        """Run in this process; its fan-out goes to the configured runner."""
        values = parameters or self.form()
        place()
        if not courier.running():
            open_early()
        if embedded.running():  # it takes seconds to start, and so does importing what every flow loads models with
            import transformers.modeling_utils  # noqa: F401
        embedded.wait()
        with reachable_server(configured()), _naming_prefect(), _heartbeats():
            return Summary(**self(**{name: getattr(values, name) for name in self.form.model_fields}))

    def plan(self, parameters: Form) -> list[Planned]:
        """The stages that would run or be found, in order; nothing runs."""
        with planning() as lines, of_size(getattr(parameters, "size", "")):
            self.body(parameters.resolved())
        return list(lines)

    def part(self, parameters: Form, name: str) -> Artifact:
        """Run inside another flow, as a run below its run; the artifact whose rows are the result."""
        parameters = parameters.resolved()
        if is_planning():
            with of_size(getattr(parameters, "size", "")):
                return self.body(parameters)
        with tracking.nested(name, parameters, self._tags(parameters), self.describe(parameters)) as run:
            return self._recorded(run, parameters)

    def _track(self, parameters: Form) -> dict[str, Any]:
        limit_bytes()  # a wrong limit is told before the work, not after it
        tracking.artifact_limit_bytes()
        with tracking.start(
            self.name, self.level, self.describe(parameters), parameters, self._tags(parameters)
        ) as run:
            result = self._recorded(run, parameters)
            rows = result.rows()
            keep_within_limit()
        return Summary(
            flow=self.name,
            status="completed",
            rows=rows,
            metrics=tracking.row_metrics(rows),
            budget=_budget(result, rows),
            run_id=run.id,
            mlflow_run_id=publish(run, rows),
            prefect_flow_run_id=str(flow_run.id or "") or None,
            artifact=result,
            refused=len(refused(run.spool.folder)),
        ).model_dump(mode="json")

    def _tags(self, parameters: Form) -> dict[str, str]:
        return {
            "flow": self.name,
            "level": self.level,
            "mlflow.note.content": f"{self.title}\n\n`transferopt run {self.name}`",
            "prefect.flow_run_id": str(flow_run.id or ""),
            "prefect.url": prefect_page(),
            **split("config", parameters.model_dump(mode="json")),
        }

    def _recorded(self, run: tracking.Run, parameters: Form) -> Artifact:
        """Run the body and tell ``run`` what came out."""
        with gpu_in_turn(), of_size(getattr(parameters, "size", "")):
            result = self.body(parameters)
        rows = result.rows()
        run.rows(rows)
        run.artifact(result.folder)
        made = {"name": result.name, "sha256": result.sha256, "run": result.run, "path": result.path}
        run.tags(
            {
                "budget.spent": json.dumps(_budget(result, rows)),
                "output.sha256": result.sha256,
                "output.run": result.run,
            }
        )
        run.tags(split("inputs", [made]))
        run.spool.append("lineage", run.id)
        return result


@contextmanager
def gpu_in_turn() -> Iterator[None]:
    """Runs of deployments queue up for the GPU, where there is one; a run by hand is its user's own decision."""
    if not deployment.id or device() is None or _has_gpu.get():
        yield
        return
    from prefect.concurrency.sync import concurrency

    with concurrency(GPU_HEAVY):
        token = _has_gpu.set(True)  # a flow inside this one (a benchmark's part) does not wait for its own turn
        try:
            yield
        finally:
            _has_gpu.reset(token)


@contextmanager
def _naming_prefect() -> Iterator[None]:
    """Say which server went away for longer than it is waited for.

    Raises:
        RuntimeError: Prefect's client gave up.
    """
    import httpx

    try:
        yield
    except httpx.TransportError as error:
        server = without_password(os.environ.get("PREFECT_API_URL", "")) or "its embedded server"
        raise RuntimeError(
            f"Prefect ({server}) does not answer any more: {str(error) or type(error).__name__}; finished stages are "
            "kept and the same command continues, on an embedded server if this one stays away"
        ) from error


@contextmanager
def _heartbeats() -> Iterator[None]:
    """None to the embedded server: nothing there acts on them, and a run's end would wait a second for the last."""
    silent = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None} if embedded.running() else {}
    with temporary_settings(silent):
        yield


def _flow(name: str) -> TransferFlow:
    return FLOWS.get(name)


def prefect_page() -> str:
    """Address of this flow run's page; empty with the embedded server, which shows no pages."""
    return "" if embedded.running() else str(flow_run.ui_url or "")


def transfer_flow(
    name: str,
    *,
    level: str,
    parameters: type[Form],
    problem: Callable[[Any], Problem],
    title: str,
    headline: Sequence[str] = (),
) -> Callable[[Callable[[Any], Artifact]], TransferFlow]:
    """Make and register a flow of ``body(parameters) -> Artifact`` (its rows are the result).

    Args:
        problem: resolved form -> the transfer problem.
        headline: metrics of the printed table, one column a task (further metrics only for the mean); without any,
            every metric is a column and every setting a line.
    """

    def wrap(body: Callable) -> TransferFlow:
        made = TransferFlow(name, level, body, parameters, problem, title, tuple(headline))
        # Prefect loads a deployment's file under a name of its own; to the registry it is the same flow.
        made.__module__ = f"flows.{Path(body.__code__.co_filename).stem}"
        FLOWS.register(name, summary=title, level=level)(made)
        return made

    return wrap


def _run_name(name: str) -> Callable[[], str]:
    """A telling run name: the flow, its size and seed, and Prefect's own words to tell runs apart."""

    def run_name() -> str:
        given = flow_run.parameters or {}
        own = given.get("tasks") or given.get("experts")  # then the suite is not read
        keys = ("size", *(() if own else ("suite",)), "task", "target")
        parts = [f"{given[key]}" for key in keys if isinstance(given.get(key), str)]
        seed = [f"seed {given['seed']}"] if isinstance(given.get("seed"), int) else []
        return " ".join([name, *parts, *seed])

    return run_name


def _signature(form: type[Form]) -> inspect.Signature:
    fields = []
    for name, field in form.model_fields.items():
        kind = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        default = inspect.Parameter.empty if field.is_required() else field.get_default(call_default_factory=True)
        fields.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind))
    return inspect.Signature(fields, return_annotation=dict)


def _docstring(title: str, form: type[Form]) -> str:
    lines = [f"    {name}: {meaning(name, field)}" for name, field in form.model_fields.items()]
    return textwrap.dedent(f"{title}\n\nArgs:\n") + "\n".join(lines) + "\n"


def _budget(result: Artifact, rows: list[Row]) -> dict[str, float]:
    """What its stage says of the whole flow; else the largest amount of each unit: rows state what led up to them."""
    stated = result.facts().get("budget")
    if stated:
        return stated
    total: dict[str, float] = {}
    for row in rows:
        for unit, amount in row.budget.items():
            total[unit] = max(total.get(unit, 0), amount)
    return total
