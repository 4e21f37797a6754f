"""What lies in the cache, and what of it may go: never what a registered model or a running flow needs.

A flow runs here while its process holds its spool. What it has used since it began may be needed by its next stage, so
that is told from the clock, not from the tracking store, which hears of it later or not at all.
"""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from core.state import MANIFEST, Cache
from tasks import spool
from tasks.lineage import trace

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
            why, used = needed.get(str(folder), ""), folder.stat().st_mtime
            if since is not None and used >= since - CLOCK_S:
                why = why or "a running flow"
            if held(folder.with_name(folder.name.removesuffix(".part"))):
                why = "in use"
            found.append(Entry(folder.parent.name, folder, size, time.time() - used, why))
    return sorted(found, key=lambda e: -e.age_s)


def protected() -> dict[str, str]:
    """Folder -> what needs it: registered models with all they were made from, and what running flows began with."""
    needed: dict[str, str] = {}
    client = spool.client()
    for model in client.search_registered_models():
        for version in client.search_model_versions(f"name='{model.name}'"):
            if version.run_id:
                for node in trace(version.run_id).walk():
                    if node.path:
                        needed[node.path] = f"model {model.name} v{version.version}"
    alive = {folder.name for folder in running()}
    experiments = [e.experiment_id for e in client.search_experiments()] if alive else []
    for run in client.search_runs(experiments, "attributes.status = 'RUNNING'") if experiments else []:
        if run.data.tags.get(spool.LOCAL_ID) in alive:
            for node in trace(run.info.run_id).walk():
                if node.path:
                    needed[node.path] = f"run {run.info.run_name}"
    return needed


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
