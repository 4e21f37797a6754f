"""Runs beside each other: what differs in their configuration, and paired statistics of their rows."""

from collections.abc import Sequence
from dataclasses import dataclass

from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException

from core.evaluate.curves import ends, uncurved
from core.evaluate.rows import Row, read_rows
from core.evaluate.statistics import bootstrap_mean, holm, paired_wilcoxon
from core.hashing import content_key
from tasks import mlflow_store
from tasks.addresses import without_password
from tasks.long_tags import joined
from tasks.tracking import flatten


@dataclass(frozen=True)
class Loaded:
    """A finished flow run: its configuration and rows, read from MLflow."""

    id: str
    name: str
    config: dict[str, str]
    rows: list[Row]


@dataclass(frozen=True)
class Line:
    """One metric of one method, paired over everything that both runs measured (seeds, tasks, settings)."""

    run: str
    metric: str
    pairs: int
    first: float
    second: float
    difference: float
    low: float | None
    high: float | None
    p: float | None


def load(run: str) -> Loaded:
    """A run by MLflow id or printed id.

    Raises:
        ValueError: no such run, or it has no rows.
    """
    mlflow_id = mlflow_store.find_run(run) or run
    try:
        found = mlflow_store.client().get_run(mlflow_id)
        path = download_artifacts(run_id=mlflow_id, artifact_path="rows.jsonl")
    except MlflowException:
        where = without_password(mlflow_store.client().tracking_uri)
        raise ValueError(f"no finished flow run {run!r} with rows in {where}") from None
    tags = found.data.tags
    config = {k: str(v) for k, v in flatten(joined("config", tags, {})).items()}
    return Loaded(mlflow_id, f"{tags.get('flow', found.info.run_name)} {mlflow_id[:6]}", config, read_rows(path))


def differences(runs: Sequence[Loaded]) -> dict[str, list[str]]:
    """Parameter -> value in each run, where they differ."""
    keys = sorted({k for r in runs for k in r.config})
    values = {k: [r.config.get(k, "(none)") for r in runs] for k in keys}
    return {k: v for k, v in values.items() if len(set(v)) > 1}


def compare(first: Loaded, second: Loaded) -> list[Line]:
    """Paired differences (second - first) per method and metric; p by Wilcoxon from six pairs on, Holm-corrected.

    Rows of the mean over tasks are no pair of their own: they say nothing that the tasks do not. Of a curve only the
    end is compared, whatever each run spent to reach it.
    """
    pairs: dict[tuple[str, str], list[tuple[float, float]]] = {}
    before, after = (ends([r for r in run.rows if r.value is not None]) for run in (first, second))
    twins = {_key(r): r for r in before}
    for row in (r for r in after if r.settings.get("task") != "mean"):
        twin = twins.get(_key(row))
        if twin is not None:
            pairs.setdefault((row.method, row.metric), []).append((twin.value, row.value))
    lines, tested = [], []
    for (method, metric), values in pairs.items():
        a, b = [v[0] for v in values], [v[1] for v in values]
        interval = bootstrap_mean([y - x for x, y in values])
        enough = len(values) >= 6 and a != b
        if enough:
            tested.append(len(lines))
        p = paired_wilcoxon(b, a, alternative="two-sided") if enough else None
        name = f"{method}/{metric}"
        means = sum(a) / len(a), sum(b) / len(b)
        lines.append(Line(second.name, name, len(values), *means, interval.mean, interval.low, interval.high, p))
    corrected = holm([lines[i].p for i in tested]) if tested else []
    for i, p in zip(tested, corrected, strict=True):
        lines[i] = Line(**{**vars(lines[i]), "p": float(p)})
    return lines


def _key(row: Row) -> str:
    return content_key(row.method, row.metric, uncurved(row.settings), row.seed)
