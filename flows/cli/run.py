"""``transferopt run FLOW``"""

import importlib.util
import os
from pathlib import Path
from typing import Annotated

import typer


def run(
    flow: Annotated[str, typer.Argument(help="name of the flow, see `transferopt flows`")],
    config: Annotated[Path | None, typer.Option(help="YAML or JSON file of parameters")] = None,
    set_: Annotated[list[str], typer.Option("--set", help="key=value, dots for nested keys; may be repeated")] = [],  # noqa: B006
    size: Annotated[
        str | None, typer.Option(help="smoke, default or full: a preset of the flow; settings override it")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="print stages, cache hits, time, memory, disk; run nothing")
    ] = False,
    log_examples: Annotated[
        bool, typer.Option("--log-examples", help="quote texts: confidently wrong test examples, in MLflow and report")
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="write a trace of each strategy's first fit, which chrome://tracing opens")
    ] = False,
    runner: Annotated[
        str | None, typer.Option(help="threads (default), processes[:N], ray[:N], or HOST:PORT of a Ray cluster")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write one summary object here")] = None,
) -> None:
    if runner is not None:
        os.environ["TRANSFEROPT_RUNNER"] = runner
    from core.state import write_bytes
    from flows.cli import beside
    from flows.cli import parameters as reader
    from flows.cli.show import console, show_plan, show_summary
    from tasks.addresses import choose_prefect, without_password

    reader.writable_file(json_file)
    values = reader.given(config, [*_preset(size), *set_])
    prefect = "" if plan else choose_prefect()
    file = flow.replace("-", "_")
    ours = file.isidentifier() and importlib.util.find_spec(f"flows.{file}") is not None
    if ours and not plan:  # while the flow is imported; not for a name that may be a slip of the pen
        beside.begin()
    from flows.runtime import FLOWS

    chosen = FLOWS.get(flow)
    switches = _switched_on(chosen, {"log_examples": log_examples, "profile": profile})
    parameters = chosen.form(**{**values, **switches})
    if plan:
        show_plan(chosen, parameters)
        return
    chosen.describe(parameters.resolved())  # a task that is not there is told before a server is waited for
    console.print(f"[bold]{flow}[/]: {chosen.title}", soft_wrap=True)
    console.print(
        f"Prefect: {prefect}   MLflow: {without_password(os.environ['MLFLOW_TRACKING_URI'])}",
        style="dim",
        soft_wrap=True,
    )
    try:
        summary = chosen.run(parameters)
    finally:
        beside.stop()
    show_summary(summary, chosen.headline)
    if json_file is not None:
        write_bytes(json_file, (summary.model_dump_json(indent=1) + "\n").encode())


def _switched_on(flow, asked: dict[str, bool]) -> dict[str, bool]:
    """Parameters for the switches that were given.

    Raises:
        ValueError: the flow has no such part.
    """
    lacking = {"log_examples": "analysis that quotes texts", "profile": "training that writes a trace"}
    for name in (n for n, on in asked.items() if on and n not in flow.form.model_fields):
        raise ValueError(f"the flow {flow.name} has no {lacking[name]}; leave --{name.replace('_', '-')} out")
    return {name: True for name, on in asked.items() if on}


def _preset(size: str | None) -> list[str]:
    size = size or os.environ.get("SIZE")
    if not size or size == "default":
        return []
    return [f"size={size}"]
