"""What lies in the cache, and what of it may go: never what a registered model or a running flow needs."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core.state import MANIFEST, Cache
from tasks import spool
from tasks.lineage import trace


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
    needed = protected()
    found = []
    for cache in caches:
        for folder in sorted(cache.root.glob("*/*")) if cache.root.is_dir() else []:
            if not (folder.is_dir() and ((folder / MANIFEST).exists() or folder.suffix == ".part")):
                continue
            size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
            why = needed.get(str(folder), "")
            if folder.with_name(f"{folder.name.removesuffix('.part')}.owner").exists():
                why = "in use"
            found.append(Entry(folder.parent.name, folder, size, time.time() - folder.stat().st_mtime, why))
    return sorted(found, key=lambda e: -e.age_s)


def protected() -> dict[str, str]:
    """Folder -> what needs it: registered models with all they were made from, and the inputs of running flows."""
    needed: dict[str, str] = {}
    client = spool.client()
    for model in client.search_registered_models():
        for version in client.search_model_versions(f"name='{model.name}'"):
            if version.run_id:
                for node in trace(version.run_id).walk():
                    if node.path:
                        needed[node.path] = f"model {model.name} v{version.version}"
    experiments = [e.experiment_id for e in client.search_experiments()]
    for run in client.search_runs(experiments, "attributes.status = 'RUNNING'"):
        for node in trace(run.info.run_id).walk():
            if node.path:
                needed[node.path] = f"run {run.info.run_name}"
        if "output.path" in run.data.tags:
            needed[run.data.tags["output.path"]] = f"run {run.info.run_name}"
    return needed


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
