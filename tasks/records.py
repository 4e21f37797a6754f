"""What each kind of record tells MLflow: a run's start and end, its values, files, data sets, models and lineage.

Telling one twice is harmless: runs are found by their own id, parameters, tags and files are overwritten with equal
content, and MLflow keeps one copy of equal metric points.
"""

import json
import math
import os
from functools import cache
from pathlib import Path
from typing import Any

from core.state import home
from tasks import mlflow_store
from tasks.spool import NotDelivered

# MLflow's own limits for one log_batch are 1,000 metrics, 100 parameters, 100 tags and 1,000 of all together
BATCH = {"metrics": 800, "params": 100, "tags": 100}


class Refused(ValueError):
    """A record that can never be delivered: the run it belongs to was refused."""


def apply(op: dict, ids: dict[str, str], fresh: bool) -> None:
    """Tell MLflow one record.

    Args:
        ids: local id -> MLflow run id of the runs that are there; a start adds its own.
        fresh: MLflow cannot know of it yet.

    Raises:
        Refused: the run that it belongs to is not there.
        Exception: of MLflow's many kinds.
    """
    needed = op.get("parent") if op["op"] == "start" else op["run"]
    if needed and needed not in ids:
        raise Refused(f"run {needed} was refused, so what belongs to it has no place")
    if op["op"] == "start" and not fresh and (there := mlflow_store.find_run(op["run"])):
        ids[op["run"]] = there
        return
    APPLY[op["op"]](op, ids)


def joined(ops: list[dict]) -> dict:
    """Records of values as one.

    Raises:
        Refused: two values of one parameter; MLflow takes the first, the second is refused on its own.
    """
    if len(ops) == 1:
        return ops[0]
    one: dict[str, Any] = {"op": "values", "run": ops[0]["run"], "metrics": [], "params": {}, "tags": {}}
    for op in ops:
        for name, value in op.get("params", {}).items():
            if one["params"].setdefault(name, value) != value:
                raise Refused(f"parameter {name} has two values")
        one["metrics"] += op.get("metrics", [])
        one["tags"] |= op.get("tags", {})
    return one


def _start(op: dict, ids: dict[str, str]) -> None:
    from mlflow.exceptions import MlflowException

    tags = {mlflow_store.LOCAL_ID: op["run"], **_cut(op["tags"])}
    if op.get("parent"):
        tags["mlflow.parentRunId"] = ids[op["parent"]]
    begun = {"start_time": op["time"], "tags": tags, "run_name": op["name"]}
    try:
        created = mlflow_store.client().create_run(experiment_id(op["experiment"]), **begun)
    except MlflowException:
        experiment_id.cache_clear()  # it may have been deleted since it was found: then this says so
        experiment_id(op["experiment"])
        raise
    ids[op["run"]] = created.info.run_id


@cache
def experiment_id(name: str) -> str:
    """Id of the experiment, created on first use; artifacts lie under TRANSFEROPT_HOME for the embedded store.

    Raises:
        NotDelivered: it was deleted; MLflow takes no new one of its name.
    """
    found = mlflow_store.client().get_experiment_by_name(name)
    if found is not None:
        if found.lifecycle_stage == "deleted":
            raise NotDelivered(
                f"experiment {name!r} was deleted in MLflow; restore it and its runs arrive: "
                f"{mlflow_store.restore_command('experiments', '--experiment-id', found.experiment_id)}"
            )
        return found.experiment_id
    uri = os.environ["MLFLOW_TRACKING_URI"]
    location = (home().resolve() / "mlartifacts" / name).as_uri() if uri.startswith("sqlite") else None
    # so that MLflow shows description, parameters and charts of its runs, not the pages of language applications
    kind = {"mlflow.experimentKind": "custom_model_development"}
    return mlflow_store.client().create_experiment(name, artifact_location=location, tags=kind)


def _cut(tags: dict[str, str]) -> dict[str, str]:
    return {k: str(v)[:5000] for k, v in tags.items()}


def _values(op: dict, ids: dict[str, str]) -> None:
    from mlflow.entities import Metric, Param, RunTag

    values = {
        "metrics": [Metric(key, value, time_ms, step) for key, value, time_ms, step in op.get("metrics", [])],
        "params": [Param(k, str(v)[:6000]) for k, v in op.get("params", {}).items()],
        "tags": [RunTag(k, v) for k, v in _cut(op.get("tags", {})).items()],
    }
    for i in range(max(math.ceil(len(v) / BATCH[kind]) for kind, v in values.items())):
        batch = {kind: v[i * BATCH[kind] : (i + 1) * BATCH[kind]] for kind, v in values.items()}
        mlflow_store.client().log_batch(ids[op["run"]], **batch)


def _artifact(op: dict, ids: dict[str, str]) -> None:
    path = Path(op["path"])
    if _is_gone(path, ids[op["run"]]):
        return
    if path.is_dir():
        mlflow_store.client().log_artifacts(ids[op["run"]], str(path), op.get("at") or None)
    else:
        mlflow_store.client().log_artifact(ids[op["run"]], str(path), op.get("at") or None)


def _is_gone(path: Path, run: str) -> bool:
    """Whether files were removed before they could be logged; the run then says so."""
    if path.exists():
        return False
    mlflow_store.client().set_tag(run, f"missing.{path.name}", f"{path} was removed before it could be logged")
    return True


def _dataset(op: dict, ids: dict[str, str]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=op["name"],
        digest=op["sha256"][:36],
        source_type="transferopt",
        source=json.dumps(op["source"]),
        schema=json.dumps(op.get("schema", {})),
        profile=json.dumps(op.get("profile", {})),
    )
    tags = [InputTag("sha256", op["sha256"])]
    mlflow_store.client().log_inputs(ids[op["run"]], datasets=[DatasetInput(dataset, tags)])


def _model(op: dict, ids: dict[str, str]) -> None:
    from tasks.serving import log_model

    package = Path(op["path"])
    if not _is_gone(package, ids[op["run"]]):
        log_model(ids[op["run"]], package, op["name"], op["alias"], op.get("tags", {}))


def _lineage(op: dict, ids: dict[str, str]) -> None:
    """Log the run's lineage as a page whose nodes open the upstream runs."""
    from tasks.lineage import log_graph

    log_graph(ids[op["run"]])


def _end(op: dict, ids: dict[str, str]) -> None:
    mlflow_store.client().set_terminated(ids[op["run"]], status=op["status"], end_time=op["time"])


APPLY = {
    "start": _start,
    "values": _values,
    "artifact": _artifact,
    "dataset": _dataset,
    "model": _model,
    "lineage": _lineage,
    "end": _end,
}
