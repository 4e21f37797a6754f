"""Hand a package to the model registry: a new version, challenger at once, champion only on a significant gain.

The registry keeps models whole. One above :data:`LIMIT_GB` stays where the flow packaged it.
"""

import json
from collections.abc import Mapping

from core.evaluate.rows import Row
from core.packages import described, open_package
from tasks import tracking
from tasks.hits import Hits
from tasks.stage import Artifact

LIMIT_GB = 4.0


def register_model(name: str, package: Artifact, evaluated: Artifact, method: str, hits: Mapping[str, Hits]) -> str:
    """Register ``package`` under ``name`` with what ``method`` got right of each task (promotion compares it).

    A package that does not open or answer ends here, with what its loader raises.

    Returns:
        What a report says of it: the name in the registry, or why it is not there.
    """
    size = sum(f.stat().st_size for f in package.folder.rglob("*") if f.is_file()) / 1e9
    if size > LIMIT_GB:
        return f"not registered: {size:.1f} GB, and the registry keeps copies of at most {LIMIT_GB:g} GB"
    first, pair = next(iter(described(package.folder).pairs.items()))
    open_package(package.folder).predict(["Does it answer?"], ["It should."] if pair else None, task=first)
    rows = evaluated.rows()
    tags = {"sha256": package.sha256, "method": method, "accuracies": json.dumps(accuracies(rows, method))}
    tags |= Hits.tags(hits)
    run = tracking.current()
    run.spool.append("model", run.id, path=package.path, name=name, alias="challenger", tags=tags)
    return f"registered as {name}"


def accuracies(rows: list[Row], method: str) -> dict[str, float]:
    """Task -> test accuracy of a method."""
    chosen = [r for r in rows if r.method == method and r.metric == "accuracy" and r.settings.get("task") != "mean"]
    return {str(r.settings["task"]): r.value for r in chosen if r.value is not None}
