"""MLflow's store as this process reaches it: the one client, and runs by what they are tagged with.

Whoever asks calls :func:`client` here: MLflow is imported with the first call, and takes seconds.
"""

import logging
import os
import threading
from contextlib import suppress
from functools import cache

from core.state import home
from tasks.addresses import without_password

LOCAL_ID = "transferopt.id"  # tag: the run's own id, known before MLflow gave it one


@cache
def client():
    """The MLflow client of this process."""
    import mlflow

    home().mkdir(parents=True, exist_ok=True)
    # a server that is away or a locked database is said once, by the spool, and not with every try or with a traceback
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    return mlflow.MlflowClient()


def open_early() -> None:
    """Import MLflow, and open its store in the background: both take seconds, in which Prefect's server starts.

    What is imported is imported here, in the caller's thread: two threads that import one package at once can see it
    half made. Without an address Prefect imports its server, which shares packages with MLflow's store.
    """
    import mlflow  # noqa: F401

    if not os.environ.get("PREFECT_API_URL"):
        import prefect.server.api.server  # noqa: F401

    def work() -> None:
        with suppress(Exception):  # a store that is away is reported where records are delivered
            client().search_experiments(max_results=1)

    threading.Thread(target=work, name="open tracking", daemon=True).start()


def find_run(local_id: str) -> str | None:
    """MLflow run id of a local id, or None."""
    return find_run_with(LOCAL_ID, local_id)


def find_run_with(tag: str, value: str) -> str | None:
    """MLflow id of the latest run with this tag, or None."""
    experiments = [e.experiment_id for e in client().search_experiments()]
    runs = client().search_runs(experiments, f"tags.`{tag}` = '{value}'", max_results=1)
    return runs[0].info.run_id if runs else None


def address() -> str:
    """Where the store is, as it may be shown."""
    return without_password(os.environ["MLFLOW_TRACKING_URI"])


def restore_command(*what: str) -> str:
    """The command that restores what was deleted."""
    return f"MLFLOW_TRACKING_URI={address()} mlflow {what[0]} restore {' '.join(what[1:])}"
