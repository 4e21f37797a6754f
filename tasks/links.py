"""Links both ways: the MLflow run from Prefect, the Prefect flow run from MLflow, and the result table in Prefect."""

import logging
import os
import re
from collections.abc import Sequence

from core.evaluate.rows import Row
from core.hashing import content_key
from tasks import mlflow_store, spool, tracking
from tasks.addresses import link_base, without_password

TABLE_ROWS = 200
log = logging.getLogger(__name__)


def mlflow_url(run_id: str) -> str | None:
    """Address of a run in the MLflow UI; None for the embedded store, which has no server, and while that is away."""
    base = link_base(os.environ["MLFLOW_TRACKING_URI"])
    if base is None:
        return None
    from mlflow.exceptions import MlflowException

    try:
        experiment = mlflow_store.client().get_run(run_id).info.experiment_id
    except MlflowException as error:
        log.warning("Prefect gets no link to MLflow, which is away: %s", without_password(str(error))[:200])
        return None
    return f"{base}/#/experiments/{experiment}/runs/{run_id}?workflowType=machine_learning"


def publish(run: tracking.Run, rows: Sequence[Row]) -> str | None:
    """Create the link and table artifacts of a finished run in Prefect; the MLflow run id, None while undelivered."""
    from prefect.artifacts import create_link_artifact, create_table_artifact

    mlflow_id = spool.delivered_id(run.spool.folder, run.id)
    key = re.sub("[^a-z0-9]+", "-", run.name.lower()).strip("-")
    if mlflow_id is not None:
        url = mlflow_url(mlflow_id)
        if url:
            create_link_artifact(url, link_text=f"MLflow run {mlflow_id[:8]}", key=f"{key}-mlflow")
    if rows:
        table = [
            {"method": r.method, **{k: str(v) for k, v in r.settings.items()}, r.metric: r.value}
            for r in rows[:TABLE_ROWS]
        ]
        create_table_artifact(_merged(table), key=f"{key}-result", description=f"{run.name}: {len(rows)} rows")
    return mlflow_id


def _merged(table: list[dict]) -> list[dict]:
    """One line per method and settings, metrics side by side."""
    lines: dict[str, dict] = {}
    for entry in table:
        names = {k: v for k, v in entry.items() if isinstance(v, str)}
        lines.setdefault(content_key(names), names).update(entry)
    return list(lines.values())
