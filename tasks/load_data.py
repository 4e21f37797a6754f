"""Load a task's data: counts, schema and hashes become an artifact; the rows stay where they are."""

from collections import Counter

from pydantic import Field

from core.config import Config
from core.data.assets import declared, state
from core.data.tasks import Task, load_task
from core.hashing import content_key
from core.state import write_json
from tasks.stage import DATA, Artifact, Output, is_planning, stage


class DataConfig(Config):
    """Which data, and the hash of what the task says and of all its rows."""

    task: str = Field(description="built-in task or path of a task file")
    sha256: str = Field(description="hash over what the task says (prompts, label words, metric) and all its rows")


def load_data(task: str) -> Artifact:
    """The artifact of a task's data.

    Raises:
        TaskError: data that cannot be read (see :meth:`core.data.tasks.Task.splits`).
    """
    loaded = load_task(task)
    asset = loaded.source.asset
    absent = is_planning() and asset and state(declared(asset)) not in ("cached", "local")
    sha256 = loaded.key if absent else content_key(loaded.key, loaded.splits().sha256)
    return _load(DataConfig(task=task, sha256=sha256))


@stage("load-data", modules=["core.data.tasks"], keep="small")
def _load(out: Output, config: DataConfig) -> None:
    """Describe a task's splits: sizes, balance, licence. No row leaves its place."""
    task = load_task(config.task)
    splits = task.splits()
    names = ("train", "validation", "test")
    sizes = {name: len(getattr(splits, name)) for name in names}
    balance = {name: _balance(task, getattr(splits, name).labels) for name in names}
    schema = {"kind": task.kind, "labels": list(task.labels), "metric": task.metric}
    source = {"task": task.name, "licence": task.licence, **task.source.model_dump(exclude_defaults=True)}
    profile = {"rows": sizes, "balance": balance}
    described = {"name": task.name, "sha256": config.sha256, "source": source, "schema": schema, "profile": profile}
    write_json(out.folder / DATA, described)
    out.metrics({f"rows.{name}": size for name, size in sizes.items()})


def _balance(task: Task, labels: list) -> dict[str, int]:
    """Rows per class; nothing for numbers and texts, which are the users' own."""
    if not task.labels:
        return {}
    counts = Counter(labels)
    return {name: counts.get(i, 0) for i, name in enumerate(task.labels)}
