"""The command ``transferopt``. A command's module is imported only when it is called, so that light ones start fast."""

import copy
import errno
import importlib
import logging
import os
import sys
from pathlib import Path
from typing import NoReturn

import typer
from typer.core import TyperGroup

UNUSABLE = (errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS)
INTERRUPTED = 130  # exit code of a command that Ctrl-C ended, as shells have it
COMMANDS = {
    "run": "run a flow in this process (or only plan it)",
    "flows": "list the flows and their parameters",
    "methods": "list the methods of every family",
    "merge": "merge models by a recipe file, streaming",
    "diagnose": "say why a merge will lose, before it is made",
    "task": "write a task file from a csv",
    "check": "look at a task before any run: balance, duplicates, leaks, a rendered prompt",
    "assets": "list or fetch the models and data that need no hub",
    "cache": "show and prune what was computed",
    "predict": "use a distilled or merged model on a text or a file",
    "lineage": "walk from a run back to its source hashes, and verify them",
    "resume": "continue a run that was stopped or failed",
    "compare": "differences of configuration and paired statistics of runs",
    "sync": "deliver to MLflow what was kept on disk while it was away",
    "serve": "start MLflow, Prefect, the deployments and a worker on this machine",
    "doctor": "check installation, assets, servers and GPU",
}


class LazyGroup(TyperGroup):
    """Commands by name; a command's module is imported when it is called."""

    def list_commands(self, ctx) -> list[str]:
        return [name for name in COMMANDS if importlib.util.find_spec(f"flows.cli.{name}")]

    def get_command(self, ctx, name: str):
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"flows.cli.{name}")
        app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        app.command(name=name, help=COMMANDS[name])(getattr(module, name))
        return typer.main.get_command(app)

    def format_commands(self, ctx, formatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name]) for name in self.list_commands(ctx)])

    def resolve_command(self, ctx, args):
        from core.registry import nearest

        if args and args[0] not in COMMANDS:
            ctx.fail(f"unknown command {args[0]!r}{nearest(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=LazyGroup, no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
)


@app.callback()
def transferopt(
    debug: bool = typer.Option(False, "--debug", help="show the traceback of an error"),
) -> None:
    """Transfer optimization for deep models: distil, search, merge; counted budgets, honest gains."""
    if debug:
        os.environ["TRANSFEROPT_DEBUG"] = "1"


class OneLine(logging.Formatter):
    """A log line without the traceback that a library adds to it; other handlers still get that."""

    def format(self, record: logging.LogRecord) -> str:
        plain = copy.copy(record)
        plain.exc_info = plain.exc_text = plain.stack_info = None
        return super().format(plain)


def not_told_again(record: logging.LogRecord) -> bool:
    """False for what Prefect says of an error that stands on the terminal already: once when a stage fails, once at the
    end; and of Ctrl-C, of which :func:`main` tells."""
    again = ("Finished in state", "Encountered exception during execution", "Crash detected! Execution was aborted by")
    return not (record.name.startswith("prefect.") and record.getMessage().startswith(again))


def quiet_logs() -> None:
    """Warnings on the terminal, a line each. Prefect keeps the root handler it finds instead of its own."""
    handler = logging.StreamHandler()
    handler.addFilter(not_told_again)
    handler.setFormatter(OneLine("%(asctime)s | %(levelname)-7s | %(name)s - %(message)s", "%H:%M:%S"))
    logging.getLogger().addHandler(handler)
    logging.raiseExceptions = False  # of handlers whose server is away


def main() -> None:
    """Entry point: an error is one readable line and exit code 1 (2: wrong call, 130: Ctrl-C); ``--debug`` shows the
    traceback."""
    if "--debug" in sys.argv[1:]:
        sys.argv = [sys.argv[0], *(a for a in sys.argv[1:] if a != "--debug")]
        os.environ["TRANSFEROPT_DEBUG"] = "1"
    if not os.environ.get("TRANSFEROPT_DEBUG"):
        quiet_logs()
    try:
        app()
    except KeyboardInterrupt:
        _stopped()
    except SystemExit as ended:  # typer makes one of a KeyboardInterrupt
        if ended.code == INTERRUPTED:
            _stopped()
        raise
    except Exception as error:  # the one place where errors become a message for a person
        if os.environ.get("TRANSFEROPT_DEBUG"):
            raise
        sys.exit(f"error: {message(error)}")


def _stopped() -> NoReturn:
    print("stopped; the same command continues where it stood", file=sys.stderr)
    sys.exit(INTERRUPTED)


def message(error: BaseException) -> str:
    """One readable message: a pydantic error names each field, others are themselves."""
    if type(error).__name__ == "ValidationError" and hasattr(error, "errors"):
        lines = []
        for e in error.errors():
            where = ".".join(str(part) for part in e["loc"])
            text = e["msg"].removeprefix("Value error, ")
            lines.append(f"{where}: {text}" if where else text)
        return "; ".join(lines)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        from core.state import home

        return (
            f"{error}; make room for {home()} (transferopt cache --prune removes what is old) and repeat the command: "
            "what is finished is kept"
        )
    if isinstance(error, OSError) and error.filename and error.errno in UNUSABLE:
        from core.state import home

        place = Path(str(error.filename))
        forbidden = error.errno not in (errno.EEXIST, errno.ENOENT) and home() in place.parents
        if forbidden or place in (home(), *home().parents):
            return f"{error}; set TRANSFEROPT_HOME (now {home()}) to a folder that can be made and written"
    if isinstance(error, (ValueError, RuntimeError, OSError)) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}"
