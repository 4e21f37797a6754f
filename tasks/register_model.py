"""Hand a package to the model registry: a new version, challenger at once, champion only on a significant gain."""

import json

from core.evaluate.rows import Row
from tasks import tracking
from tasks.one_load import load_one_at_a_time
from tasks.stage import Artifact


def register_model(name: str, package: Artifact, evaluated: Artifact, method: str) -> None:
    """Register ``package`` under ``name`` with the per-task test accuracies of ``method`` (promotion compares them)."""
    tags = {"sha256": package.sha256, "method": method, "accuracies": json.dumps(accuracies(evaluated.rows(), method))}
    run = tracking.current()
    load_one_at_a_time()  # MLflow tries what it logs, in the thread that delivers, while the flow goes on
    run.spool.append("model", run.id, path=package.path, name=name, alias="challenger", tags=tags)


def accuracies(rows: list[Row], method: str) -> dict[str, float]:
    """Task -> test accuracy of a method."""
    chosen = [r for r in rows if r.method == method and r.metric == "accuracy" and r.settings.get("task") != "mean"]
    return {str(r.settings["task"]): r.value for r in chosen if r.value is not None}
