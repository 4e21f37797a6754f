"""``transferopt resume RUN``"""

import json
from pathlib import Path
from typing import Annotated

import typer


def resume(
    run: Annotated[str, typer.Argument(help="MLflow run id of a flow, or the id it printed")],
    json_file: Annotated[Path | None, typer.Option("--json", help="write one summary object here")] = None,
) -> None:
    from core.state import write_bytes
    from flows.cli import beside
    from tasks.addresses import choose_prefect

    prefect = choose_prefect()
    beside.begin()
    from flows.cli.show import console, show_summary
    from flows.runtime import FLOWS
    from tasks import delivery, mlflow_store
    from tasks.long_tags import joined

    delivery.deliver_all()
    mlflow_id = mlflow_store.find_run(run) or run
    found = _tags(mlflow_id)
    _refuse_running(mlflow_id)
    flow = FLOWS.get(found["flow"])
    parameters = flow.form.model_validate_json(json.dumps(joined("config", found, {})))
    mlflow_store.client().set_tag(mlflow_id, "resumed", "yes")
    if mlflow_store.client().get_run(mlflow_id).info.status == "RUNNING":
        mlflow_store.client().set_terminated(mlflow_id, status="KILLED")
    console.print(f"continuing {flow.name} of run {mlflow_id[:12]}: finished stages are taken from the cache")
    console.print(f"Prefect: {prefect}", style="dim", soft_wrap=True)
    try:
        summary = flow.run(parameters)
    finally:
        beside.stop()
    show_summary(summary, flow.headline)
    if json_file is not None:
        write_bytes(json_file, (summary.model_dump_json(indent=1) + "\n").encode())


def _refuse_running(mlflow_id: str) -> None:
    """See that no process of this home works on the run: a second one would wait for its stages, and it be told dead.

    Raises:
        StateError: one does.
    """
    from core.state import StateError
    from tasks import mlflow_store, spool
    from tasks.pruning import held

    outermost = mlflow_id  # of a flow inside a flow it is the outer one that holds the records
    while parent := mlflow_store.client().get_run(outermost).data.tags.get("mlflow.parentRunId"):
        outermost = parent
    tags = mlflow_store.client().get_run(outermost).data.tags
    lock = spool.spool_root() / tags.get(mlflow_store.LOCAL_ID, "") / "run"
    if held(lock):
        owner = lock.with_name("run.owner")
        who = owner.read_text().strip() if owner.exists() else "another process"
        raise StateError(f"run {mlflow_id[:12]} is still running in {who}; wait for it, or stop it and resume then")


def _tags(mlflow_id: str) -> dict[str, str]:
    from mlflow.exceptions import MlflowException

    from tasks import mlflow_store
    from tasks.addresses import without_password

    try:
        tags = mlflow_store.client().get_run(mlflow_id).data.tags
    except MlflowException:
        raise ValueError(f"no run {mlflow_id!r} in {without_password(mlflow_store.client().tracking_uri)}") from None
    if "config" not in tags or "flow" not in tags:
        raise ValueError(f"run {mlflow_id} is a stage, not a flow; give its parent run")
    return tags
