"""What can be wrong with an installation, and what to do about each fault."""

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from core.data.assets import AssetError, data_folders, default_assets, state
from core.plugins import plugins
from core.state import home
from tasks import mlflow_store, spool
from tasks.addresses import without_password


@dataclass(frozen=True)
class Finding:
    """One check. ``remedy`` is empty when all is well; ``fatal`` when nothing works without it."""

    check: str
    found: str
    remedy: str = ""
    fatal: bool = False


def python() -> Finding:
    """Interpreter version (an older one cannot import this at all)."""
    text = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", text)


def packages() -> Finding:
    """Installed versions against what this project declares."""
    from packaging.requirements import Requirement

    wrong = []
    for line in importlib.metadata.requires("transferopt") or []:
        need = Requirement(line)
        if need.marker and not need.marker.evaluate({"extra": "flows"}):
            continue
        try:
            have = importlib.metadata.version(need.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{need.name} is missing")
            continue
        if not need.specifier.contains(have, prereleases=True):
            wrong.append(f"{need.name} {have} is not {need.specifier}")
    if wrong:
        return Finding("packages", "; ".join(wrong), "make install, or pip install 'transferopt[flows]'", True)
    return Finding("packages", "all declared packages fit")


def folder() -> Finding:
    """Is the home folder writable, and is there room?"""
    root = home()
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free / 1e9
    if not os.access(root, os.W_OK):
        return Finding("home", f"{root} is not writable", "set TRANSFEROPT_HOME to a folder you own", True)
    if free < 3:
        return Finding(
            "home", f"{root}, {free:.1f} GB free", "free some disk, or transferopt cache --prune --max-size-gb 2"
        )
    return Finding("home", f"{root}, {free:.0f} GB free")


def local_data() -> Finding:
    """Local data folders."""
    try:
        folders = data_folders()
    except AssetError as error:
        return Finding("local data", str(error), "correct TRANSFEROPT_DATA")
    return Finding(
        "local data", ", ".join(map(str, folders)) or "none (TRANSFEROPT_DATA is not set; archives are used)"
    )


def assets() -> Finding:
    """Which default assets are already here."""
    try:
        absent = [entry.name for entry in default_assets() if state(entry) not in ("cached", "local")]
    except AssetError as error:  # told with its remedy by the check of local data
        return Finding("assets", f"not looked for: {error}", "correct TRANSFEROPT_DATA")
    if absent:
        return Finding("assets", f"not fetched yet: {', '.join(absent)}", f"transferopt assets {' '.join(absent)}")
    return Finding("assets", "all default assets are here")


def third_party() -> Finding:
    """Do the packages that add methods import?"""
    broken, there = [], []
    for point in plugins():
        try:
            point.load()
        except Exception as error:  # whatever a foreign package raises is the finding
            broken.append(f"{point.name} ({point.value}): {type(error).__name__}: {error}")
        else:
            there.append(point.name)
    if broken:
        return Finding("third-party methods", "; ".join(broken), "repair or uninstall the package that declares it")
    return Finding("third-party methods", ", ".join(there) or "none")


def mlflow_server() -> Finding:
    """Does the tracking store answer?"""
    uri = os.environ["MLFLOW_TRACKING_URI"]
    shown = without_password(uri)
    try:
        count = len(mlflow_store.client().search_experiments())
    except Exception as error:  # whatever the store raises is the finding
        return Finding(
            "MLflow", f"{shown}: {type(error).__name__}", "start it (make serve) or unset MLFLOW_TRACKING_URI"
        )
    return Finding("MLflow", f"{shown}, {count} experiments")


def undelivered() -> Finding:
    """Records that wait for MLflow."""
    root = spool.spool_root()
    left = sum(spool.pending(f) for f in root.iterdir()) if root.is_dir() else 0
    lost = sum(len(spool.refused(f)) for f in spool.folders())
    if left or lost:
        return Finding("spool", f"{left} records wait, {lost} were refused", "transferopt sync")
    return Finding("spool", "empty")


def prefect_server() -> Finding:
    """Does the Prefect server answer?"""
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        return Finding("Prefect", "embedded server (PREFECT_API_URL is not set)")
    import httpx

    try:
        httpx.get(f"{url.rstrip('/')}/health", timeout=5).raise_for_status()
    except httpx.HTTPError as error:
        shown = without_password(url)
        return Finding("Prefect", f"{shown}: {type(error).__name__}", "start it (make serve) or unset PREFECT_API_URL")
    return Finding("Prefect", without_password(url))


def accelerator() -> Finding:
    """CUDA devices and CPU features that decide the speed."""
    import torch

    from core.models.score import resolve_dtype

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    cpu = f"{os.cpu_count()} cores, scores in {resolve_dtype('auto', 'cpu')}"
    gpu = Path("/proc/driver/nvidia/version").exists()
    if gpu and not names:
        return Finding(
            "GPU", f"a driver but no usable device; {cpu}", "install the CUDA build of torch for this driver"
        )
    return Finding("GPU", ", ".join(names) + "; " + cpu if names else f"none; {cpu}")


CHECKS: list[Callable[[], Finding]] = [
    python,
    packages,
    folder,
    local_data,
    assets,
    third_party,
    mlflow_server,
    undelivered,
    prefect_server,
    accelerator,
]
