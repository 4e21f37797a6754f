"""``transferopt serve``"""

from pathlib import Path
from typing import Annotated

import typer


def serve(
    host: Annotated[str | None, typer.Option(help="address to bind (default loopback)")] = None,
    prefect_port: Annotated[int | None, typer.Option(help="default 4200")] = None,
    mlflow_port: Annotated[int | None, typer.Option(help="default 5000")] = None,
    project: Annotated[Path, typer.Option(help="folder with flows/ and deployments/")] = Path("."),
    register: Annotated[
        bool, typer.Option("--register", help="only tell the server at PREFECT_API_URL pools, limits, deployments")
    ] = False,
) -> None:
    import os

    import tasks  # noqa: F401
    from flows.cli.show import console
    from tasks import servers

    config = servers.read_config(project, host=host, prefect_port=prefect_port, mlflow_port=mlflow_port)

    if register:
        if not os.environ.get("PREFECT_API_URL"):
            raise ValueError("--register talks to a running server; set PREFECT_API_URL to its address")
        servers.register(config, {"TRANSFEROPT_PROJECT": str(config.project), **os.environ})
        console.print(f"registered with {os.environ['PREFECT_API_URL']}", soft_wrap=True)
        return

    def ready(c: servers.ServeConfig) -> None:
        console.print(f"Prefect  {c.prefect_url.removesuffix('/api')}   flows, schedules, runs", soft_wrap=True)
        console.print(f"MLflow   {c.mlflow_url}   metrics, artifacts, lineage, models", soft_wrap=True)
        console.print("Ctrl-C stops both; state is kept")

    console.print("starting MLflow, Prefect and a worker ...")
    servers.serve(config, ready)
    console.print("stopped")
