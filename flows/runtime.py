"""What every flow shares: the Prefect flow, the MLflow parent run, the plan, the summary, the result tables.

@transfer_flow("merge", level="system", problem=describe, title="...")
def merge(parameters: MergeParameters) -> Artifact:
    ...chain stages, return the artifact whose rows and report are the result...
"""

import functools
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import tasks  # noqa: F401  (environment first: see its docstring)
from core.config import Config
from core.evaluate.rows import Row
from core.registry import Registry
from core.transfer.problem import Problem
from tasks import tracking
from tasks.stage import Artifact, Planned, is_planning, planning

LEVELS = ("content", "structure", "system", "transfer", "operation")
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


class TransferFlow:
    """A flow made by :func:`transfer_flow`. Calling it runs it; ``deployable`` is the Prefect flow object."""

    def __init__(self, name: str, level: str, body: Callable, parameters: type[Config], describe: Callable, title: str):
        from prefect import flow

        if level not in LEVELS:
            raise ValueError(f"unknown level {level!r}; allowed: {', '.join(LEVELS)}")
        self.name, self.level, self.body, self.parameters, self.describe = name, level, body, parameters, describe
        self.__doc__, self.__module__, self.__qualname__ = title, body.__module__, body.__qualname__

        def run(parameters=None):
            return self._run(parameters or self.parameters())

        run.__annotations__ = {"parameters": parameters, "return": dict}
        run.__defaults__ = (parameters(),)
        run.__doc__ = title
        run.__module__, run.__qualname__, run.__name__ = body.__module__, body.__qualname__, body.__name__
        self.deployable = flow(name=name, description=title, persist_result=False, log_prints=True)(run)

    def __call__(self, parameters: Config | None = None) -> Summary:
        return Summary(**self.deployable(parameters or self.parameters()))

    def plan(self, parameters: Config) -> list[Planned]:
        """The stages that would run or be found, in order; nothing runs."""
        with planning() as lines:
            self.body(parameters)
        return list(lines)

    def _run(self, parameters: Config) -> dict[str, Any]:
        from prefect.runtime import flow_run

        tags = {
            "flow": self.name,
            "level": self.level,
            "mlflow.note.content": f"{self.__doc__}\n\n`transferopt run {self.name}`",
            "prefect.flow_run_id": str(flow_run.id or ""),
            "prefect.url": str(flow_run.ui_url or ""),
            "config": parameters.model_dump_json(),
        }
        with tracking.start(self.name, self.level, self.describe(parameters), parameters, tags) as run:
            result = self.body(parameters)
            rows = result.rows()
            run.rows(rows)
            run.artifact(result.folder)
            budget = _budget(rows)
            run.tags({"budget.spent": json.dumps(budget), "output.sha256": result.sha256, "output.run": result.run})
            run.tags(
                {"inputs": json.dumps([{"name": result.name, **result.model_dump(include={"sha256", "run", "path"})}])}
            )
        from tasks.links import publish

        mlflow_id = publish(run, rows)
        return Summary(
            flow=self.name,
            status="completed",
            rows=rows,
            metrics={tracking.row_metric(r): r.value for r in rows if r.value is not None},
            budget=budget,
            run_id=run.id,
            mlflow_run_id=mlflow_id,
            prefect_flow_run_id=str(flow_run.id or "") or None,
            artifact=result,
        ).model_dump(mode="json")


def transfer_flow(
    name: str, *, level: str, parameters: type[Config], problem: Callable[[Any], Problem], title: str
) -> Callable[[Callable[[Any], Artifact]], TransferFlow]:
    """Make and register a flow of ``body(parameters) -> Artifact`` (its rows are the result)."""

    def wrap(body: Callable) -> TransferFlow:
        made = TransferFlow(name, level, body, parameters, problem, title)
        functools.update_wrapper(made, body, assigned=("__module__",), updated=())
        FLOWS.register(name, summary=title, level=level)(made)
        return made

    return wrap


def _budget(rows: list[Row]) -> dict[str, float]:
    """The largest amount of each unit over rows: what the whole run spent is stated by its last row."""
    total: dict[str, float] = {}
    for row in rows:
        for unit, amount in row.budget.items():
            total[unit] = max(total.get(unit, 0), amount)
    return total


def stop_embedded_server() -> None:
    """End Prefect's embedded server before the interpreter exits, so that it prints no traceback then."""
    if "prefect.server.api.server" not in sys.modules:
        return
    from prefect.server.api.server import SubprocessASGIServer

    for server in list(SubprocessASGIServer._instances.values()):
        server.stop()


def server_in_use() -> str:
    """The Prefect server this process talks to, in words."""
    return os.environ.get("PREFECT_API_URL") or "embedded (no PREFECT_API_URL)"


__all__ = ["FLOWS", "Summary", "TransferFlow", "is_planning", "server_in_use", "stop_embedded_server", "transfer_flow"]
