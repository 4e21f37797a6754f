"""Timed runs for the merge benchmark: the yardstick, our command, the peer's command, and what each used."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PEER = "mergekit==0.1.5"
PEER_EXTRA = ("immutables==0.21",)
PIECE = 8 << 20
# A process inherits the peak memory of the one it was started from (Linux keeps it through exec), and a benchmark that
# has compared models is large: a small process in between starts the command and measures it.
MEASURE = """
import os, sys, time
started = time.perf_counter()
process = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(process, 0)
seconds = time.perf_counter() - started
found = [seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, os.waitstatus_to_exitcode(status)]
open(sys.argv[1], "w").write(" ".join(map(str, found)))
"""


@dataclass(frozen=True)
class Run:
    """One finished command: wall seconds, CPU seconds and peak resident memory."""

    seconds: float
    cpu: float
    megabytes: float


def run(command: Sequence[str], log: Path, refused: str = "") -> Run:
    """Run a command to its end; with ``refused`` it must fail and say this word.

    Raises:
        RuntimeError: it ended otherwise; the message holds the end of its output.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        environment.pop(name, None)  # both sides may use every core
    report = log.with_suffix(".usage")
    with open(log, "wb") as handle:
        measured = [sys.executable, "-S", "-c", MEASURE, str(report), *command]
        subprocess.run(measured, stdout=handle, stderr=subprocess.STDOUT, env=environment, check=True)
    seconds, cpu, megabytes, code = map(float, report.read_text().split())
    if (code != 0) != bool(refused) or refused not in log.read_text(errors="replace"):
        raise RuntimeError(f"{' '.join(command)} ended with {code:g}:\n{log.read_text()[-2000:]}")
    return Run(seconds, cpu, megabytes)


def yardstick(files: Sequence[Path], out_bytes: int, folder: Path) -> float:
    """L: seconds to read all ``files`` once and write ``out_bytes`` once, one thread, no fsync, warm page cache."""
    buffer = bytearray(PIECE)
    target = folder / "yardstick.bin"
    started = time.perf_counter()
    for path in files:
        with open(path, "rb", buffering=0) as handle:
            while handle.readinto(buffer):
                pass
    with open(target, "wb", buffering=0) as handle:
        left = out_bytes
        while left > 0:
            left -= handle.write(memoryview(buffer)[: min(left, PIECE)])
    seconds = time.perf_counter() - started
    target.unlink()
    return seconds


def ours() -> list[str]:
    """Our command: the installed ``transferopt``, or the module where it is not installed."""
    script = Path(sys.executable).parent / "transferopt"
    return [str(script)] if script.exists() else [sys.executable, "-c", "from flows.cli import main; main()"]


def peer(work: Path) -> list[str]:
    """The peer's command in a virtual environment of its own, which shares this one's torch and transformers."""
    home = Path(os.environ.get("PEER_VENV", work / "peer"))
    command = home / "bin" / "mergekit-yaml"
    if not command.exists():
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        packages = next((home / "lib").glob("python3*")) / "site-packages"
        shared = [p for p in sys.path if p.endswith("site-packages")]
        (packages / "shared.pth").write_text("\n".join(shared) + "\n")
        install = [str(home / "bin" / "pip"), "install", "--quiet", "--no-deps", PEER, *PEER_EXTRA]
        subprocess.run(install, check=True)
    return [str(command)]


def clear(folder: Path) -> None:
    """Remove what a run wrote."""
    shutil.rmtree(folder, ignore_errors=True)
    for leftover in folder.parent.glob(folder.name + ".part*"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
