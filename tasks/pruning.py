"""What lies in the cache, and what of it may go: never what a registered model or a running flow needs.

A flow runs here while its process holds its spool. What it has used since it began may be needed by its next stage, so
that is told from the clock, not from the tracking store, which hears of it later or not at all.
"""

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from mlflow.exceptions import MlflowException
from mlflow.store.entities import PagedList

from core.state import MANIFEST, Cache
from tasks import mlflow_store, spool
from tasks.lineage import trace

log = logging.getLogger(__name__)
CLOCK_S = 2.0  # file systems keep times in coarse steps


@dataclass(frozen=True)
class Entry:
    """A cached folder. ``needed`` says by what it is protected; empty when it may go."""

    kind: str
    path: Path
    bytes: int
    age_s: float
    needed: str = ""


def entries(caches: Sequence[Cache]) -> list[Entry]:
    """All cached folders, oldest use first."""
    needed, since = protected(), running_since()
    found = []
    for cache in caches:
        for folder in sorted(cache.root.glob("*/*")) if cache.root.is_dir() else []:
            if not (folder.is_dir() and ((folder / MANIFEST).exists() or folder.suffix == ".part")):
                continue
            size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
            why, used = needed.get(folder.resolve(), ""), folder.stat().st_mtime
            if since is not None and used >= since - CLOCK_S:
                why = why or "a running flow"
            if held(folder.with_name(folder.name.removesuffix(".part"))):
                why = "in use"
            found.append(Entry(folder.parent.name, folder, size, time.time() - used, why))
    return sorted(found, key=lambda e: -e.age_s)


def protected() -> dict[Path, str]:
    """Folder (resolved: a home may be reached by several paths) -> what needs it.

    That are registered models with all they were made from, what running flows began with, and files whose records
    still wait for MLflow.
    """
    needed: dict[Path, str] = {}
    client = mlflow_store.client()
    for model in _all(client.search_registered_models):
        for version in _all(partial(client.search_model_versions, f"name='{model.name}'")):
            needed |= dict.fromkeys(_behind(version.run_id), f"model {model.name} v{version.version}")
    alive = {folder.name for folder in running()}
    experiments = [e.experiment_id for e in _all(client.search_experiments)] if alive else []
    going_on = partial(client.search_runs, experiments, "attributes.status = 'RUNNING'")
    for run in _all(going_on) if experiments else []:
        if run.data.tags.get(mlflow_store.LOCAL_ID) in alive:
            needed |= dict.fromkeys(_behind(run.info.run_id), f"run {run.info.run_name}")
    for folder in spool.folders():
        for path in map(Path.resolve, spool.waiting_paths(folder)):
            # a record may name a file in the folder
            needed |= dict.fromkeys([path, *path.parents], f"records of run {folder.name[:12]}, which wait for MLflow")
    return needed


def _all(search: Callable[..., PagedList]) -> Iterator[Any]:
    """What an MLflow search finds, page by page."""
    token = None
    while True:
        page = search(page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _behind(run: str | None) -> list[Path]:
    """Folders that a run, and all it was made from, read; none of a run that was removed from MLflow for good."""
    if not run:
        return []
    try:
        mlflow_store.client().get_run(run)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # nobody knows what it needs
            raise
        log.info("what run %s was made from is no longer known to MLflow: %s", run, error.message)
        return []
    return [Path(node.path).resolve() for node in trace(run).walk() if node.path]


def running() -> list[Path]:
    """Spools of the flows whose process lives; one that was killed holds nothing."""
    return [folder for folder in spool.folders() if held(folder / "run")]


def running_since() -> float | None:
    """When the first of the flows that run now began; None while none does."""
    # The owner's note is written when the spool is taken; asking for a lock touches the lock's own file.
    owners = [folder / "run.owner" for folder in running()]
    return min((owner.stat().st_mtime for owner in owners if owner.exists()), default=None)


def held(path: Path) -> bool:
    """Whether some process holds ``path`` (:func:`core.state.exclusive`); what a kill left behind does not count."""
    lock = Path(f"{path}.lock")
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


def prune(found: Sequence[Entry], *, max_age_s: float | None, max_bytes: int | None) -> list[Entry]:
    """Remove unprotected entries older than ``max_age_s``, then the longest unused ones until ``max_bytes`` hold."""
    gone = [e for e in found if not e.needed and max_age_s is not None and e.age_s > max_age_s]
    left = [e for e in found if e not in gone]
    total = sum(e.bytes for e in left)
    for entry in left:
        if max_bytes is None or total <= max_bytes:
            break
        if not entry.needed:
            gone.append(entry)
            total -= entry.bytes
    for entry in gone:
        shutil.rmtree(entry.path)
    return gone
