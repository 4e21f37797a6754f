"""Hand a package to the model registry: a new version, challenger at once, champion only on a significant gain."""

import json
from collections.abc import Mapping

from core.evaluate.rows import Row
from core.models.classifier import TextClassifier
from tasks import tracking
from tasks.hits import Hits
from tasks.stage import Artifact


def register_model(name: str, package: Artifact, evaluated: Artifact, method: str, hits: Mapping[str, Hits]) -> None:
    """Register ``package`` under ``name`` with what ``method`` got right of each task (promotion compares it).

    A package that does not open or answer ends here, with what its loader raises.
    """
    packaged = TextClassifier(package.folder)
    first = next(iter(packaged.heads))
    packaged.predict(["Does it answer?"], ["It should."] if packaged.heads[first].pair else None, task=first)
    rows = evaluated.rows()
    tags = {"sha256": package.sha256, "method": method, "accuracies": json.dumps(accuracies(rows, method))}
    tags |= Hits.tags(hits)
    run = tracking.current()
    run.spool.append("model", run.id, path=package.path, name=name, alias="challenger", tags=tags)


def accuracies(rows: list[Row], method: str) -> dict[str, float]:
    """Task -> test accuracy of a method."""
    chosen = [r for r in rows if r.method == method and r.metric == "accuracy" and r.settings.get("task") != "mean"]
    return {str(r.settings["task"]): r.value for r in chosen if r.value is not None}
