"""What earlier runs learned, found through MLflow and offered as a source: ``source: latest``.

The artifact that is offered is the one its run recorded: same hash, and the run stands behind it, so lineage walks from
the new run into the old one. Where its folder was pruned, its files are fetched from MLflow.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from core.hashing import content_key
from core.state import MANIFEST, Cache, StateError, verify
from tasks import mlflow_store
from tasks.addresses import without_password
from tasks.long_tags import joined
from tasks.stage import Artifact

LATEST = "latest"


def latest(
    flow: str, stage: str | tuple[str, ...], params: Mapping[str, str] | None = None, **configured: str
) -> Artifact:
    """The output of ``stage`` in the latest finished run of ``flow`` that has one.

    Args:
        stage: its name, or those of several that make the same; the first that a run has.
        params: parameters of the flow's run as MLflow shows them (``{"base": "all-minilm-l6-v2"}``).
        configured: parameters of the stage's run (``method="emfto"``).

    Raises:
        ValueError: no finished run of the flow has such a stage.
        StateError: its files are neither on disk nor in MLflow as they were recorded.
    """
    stages = (stage,) if isinstance(stage, str) else stage
    for run in _finished(flow, params or {}):
        for made in (made for name in stages for made in _stages(run, name)):
            if all(made.data.params.get(k) == v for k, v in configured.items()):
                return _artifact(made)
    wanted = ", ".join(f"{k} {v}" for k, v in {**(params or {}), **configured}.items())
    named = " or ".join(map(repr, stages))
    raise ValueError(
        f"source latest: no finished run of {flow!r} with a stage {named}{f' ({wanted})' if wanted else ''} in "
        f"{without_password(mlflow_store.client().tracking_uri)}; run {flow} once without it"
    )


def made_from(artifact: Artifact) -> set[str]:
    """sha256 of everything that the stage of an artifact read; empty for one that no run stands behind."""
    run = mlflow_store.find_run(artifact.run)
    tags = {} if run is None else mlflow_store.client().get_run(run).data.tags
    return {entry["sha256"] for entry in joined("inputs", tags, [])}


def outputs(flow: str, stage: str) -> list[Artifact]:
    """All outputs of ``stage`` in the latest finished run of ``flow``; empty without a run."""
    run = next(_finished(flow, {}), None)
    return [] if run is None else [_artifact(r) for r in _stages(run, stage)]


def _finished(flow: str, params: Mapping[str, str]) -> Iterator:
    """Finished runs of a flow, latest first; those inside another flow (a benchmark) count."""
    conditions = [f"tags.flow = '{flow}'", "attributes.status = 'FINISHED'"]
    conditions += [f"params.`{k}` = '{v}'" for k, v in params.items()]
    yield from _search(" and ".join(conditions))


def _stages(run, stage: str) -> list:
    """Finished runs of a stage below a flow's run, the last first."""
    below = f"tags.`mlflow.parentRunId` = '{run.info.run_id}' and tags.stage = '{stage}'"
    return [r for r in _search(f"{below} and attributes.status = 'FINISHED'") if r.data.tags.get("output.sha256")]


def _search(query: str) -> Iterator:
    experiments = [e.experiment_id for e in mlflow_store.client().search_experiments()]
    token = None
    while True:
        page = mlflow_store.client().search_runs(
            experiments, query, max_results=50, order_by=["attributes.start_time DESC"], page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def _artifact(run) -> Artifact:
    tags = run.data.tags
    name, digest, folder = tags["stage"], tags["output.sha256"], Path(tags["output.path"])
    if not _intact(folder, digest):
        folder = Cache().compute("earlier", content_key(name, digest), lambda out: _fetch(run, out))
        if not _intact(folder, digest):
            raise StateError(
                f"the output of {name!r} in MLflow run {run.info.run_id} is not what was recorded ({digest[:12]}); "
                "run its flow again, or take another source"
            )
    return Artifact(name=name, path=str(folder), sha256=digest, run=tags["output.run"])


def _intact(folder: Path, digest: str) -> bool:
    try:
        return verify(folder)["sha256"] == digest
    except (FileNotFoundError, StateError):
        return False


def _fetch(run, out: Path) -> dict[str, Any]:
    """Download a stage's files; manifest and log are no content. What the stage noted about itself is kept."""
    from mlflow.artifacts import download_artifacts

    download_artifacts(run_id=run.info.run_id, dst_path=str(out))
    facts = json.loads((out / MANIFEST).read_text())["facts"]
    for extra in (MANIFEST, "log.txt"):
        (out / extra).unlink(missing_ok=True)
    return facts
