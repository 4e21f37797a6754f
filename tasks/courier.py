"""A process that delivers to MLflow beside the flow: importing MLflow and its database calls take seconds of a core.

A command begins it; the spool's thread then only asks it and waits. Without one, or when it was lost, the thread
delivers itself. It ends with the process that began it.
"""

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

from core.state import StateError
from tasks import delivery, mlflow_store
from tasks.spool import NotDelivered

STOP_S = 1.0  # a run has waited for its own records before; what is left stays in the spool
_process: subprocess.Popen | None = None
_one = threading.Lock()


class CourierLost(RuntimeError):
    """The process is gone; what it did not deliver is still in the spool."""


def begin() -> None:
    """Start it; it imports MLflow and opens the store at once."""
    global _process
    if _process is not None:
        return
    # A session of its own: Ctrl-C is for the flow, whose last records are still to be delivered.
    _process = subprocess.Popen(
        [sys.executable, "-c", "from tasks.courier import serve; serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    atexit.register(stop)


def running() -> bool:
    return _process is not None


def deliver(folder: Path | None, fresh: bool) -> None:
    """Deliver a run's spool (None: those of earlier runs), through the process where there is one.

    Raises:
        NotDelivered, StateError: see :func:`tasks.delivery.deliver`; of what the process could not do, NotDelivered.
    """
    if running():
        try:
            said = ask(folder, fresh)
        except CourierLost:
            fresh = False  # part of it may be there
        else:
            if said is not None:
                raise NotDelivered(said)
            return
    _deliver(folder, fresh)


def _deliver(folder: Path | None, fresh: bool) -> None:
    delivery.deliver_all() if folder is None else delivery.deliver(folder, fresh)


def ask(folder: Path | None, fresh: bool = False) -> str | None:
    """Let it deliver a run's spool (see :func:`tasks.delivery.deliver`), with None those of all earlier runs.

    Returns:
        why it could not; None when it did.

    Raises:
        CourierLost: it ended before it answered.
    """
    global _process
    with _one:
        try:
            _process.stdin.write(json.dumps([None if folder is None else str(folder), fresh]) + "\n")
            _process.stdin.flush()
            return json.loads(_process.stdout.readline())
        except (OSError, ValueError, AttributeError):
            _process = None
            raise CourierLost("the process that delivers to MLflow ended") from None


def serve() -> None:
    """Be the process: a line of JSON asks, a line answers; ends when nobody can ask any more."""
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # what libraries print must not look like an answer
        with contextlib.suppress(Exception):  # a store that is away is told when something is delivered
            mlflow_store.client().search_experiments(max_results=1)
        for line in sys.stdin:
            folder, fresh = json.loads(line)
            try:
                _deliver(None if folder is None else Path(folder), fresh)
                said = None
            except (NotDelivered, StateError, OSError) as error:
                said = str(error)
            try:
                print(json.dumps(said), file=answers, flush=True)
            except BrokenPipeError:  # nobody waits for the answer any more; nor must the exit find the pipe broken
                os.dup2(os.open(os.devnull, os.O_WRONLY), answers.fileno())
                return


def stop() -> None:
    """End it after what it is delivering."""
    global _process
    if _process is None:
        return
    _process.stdin.close()
    try:
        _process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        _process.kill()
        _process.wait()
    _process = None
