"""Flows as child processes of the ``transferopt`` command, killed and run again; what they leave behind, compared."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.warm import Forked, Warm
from core.evaluate.rows import read_rows
from core.hashing import content_key, sha256_file
from core.state import MANIFEST, StateError, home, verify

PROGRAM = "from flows.cli import main; main()"
ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 1800
TIMINGS = ("second", "minute", "hour", "time")  # parts of the name of a metric or a budget unit
NOTES = ("commit", "hardware", "inputs")
Child = subprocess.Popen | Forked
KEPT = (".safetensors", ".yaml", ".onnx")  # weights and recipes


@dataclass
class Place:
    """A home for runs: every path in what they write is the same whenever they start anew here.

    Args:
        more: variables of the environment.
        before: Python that runs before the command.
        warm: forks the children, which then need not import anything; its environment is this place's.
    """

    folder: Path
    more: dict[str, str] = field(default_factory=dict)
    before: str = ""
    warm: Warm | None = None

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def environment(self) -> dict[str, str]:
        """Own stores, the assets that are already here, one thread, no server unless ``more`` names one."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "MLFLOW"))}
        own = {
            "TRANSFEROPT_HOME": str(self.home),
            "TRANSFEROPT_ASSETS": os.environ.get("TRANSFEROPT_ASSETS", str(home() / "assets")),
            "COLUMNS": "200",
            "OMP_NUM_THREADS": "1",
        }
        return kept | own | self.more

    def start(self, *arguments: str) -> Child:
        """A child in a process group of its own; its output goes to ``output.txt``, emptied before."""
        if self.warm is not None:
            return self.warm.start(arguments, self.folder / "output.txt")
        with open(self.folder / "output.txt", "wb") as out:
            return subprocess.Popen(
                [sys.executable, "-c", self.before + PROGRAM, *arguments],
                stdout=out,
                stderr=out,
                cwd=ROOT,
                env=self.environment(),
                start_new_session=True,
            )

    def output(self) -> str:
        return (self.folder / "output.txt").read_text(errors="replace")

    def call(self, *arguments: str) -> tuple[int, str]:
        """Run to the end: exit status and output."""
        code = ended(self.start(*arguments))
        return code, self.output()

    def run(self, *arguments: str) -> dict[str, Any]:
        """Run a command that must succeed, with ``--json``: its summary.

        Raises:
            RuntimeError: it did not.
        """
        summary = self.folder / "summary.json"
        summary.unlink(missing_ok=True)
        code, output = self.call(*arguments, "--json", str(summary))
        if code or not summary.exists():
            raise RuntimeError(f"transferopt {' '.join(arguments)} ended with {code}:\n{output[-2000:]}")
        return json.loads(summary.read_text())

    def begun(self) -> list[str]:
        """Ids of the runs begun here, oldest first."""
        found = (self.home / "spool").glob("*/ops.jsonl")
        return [p.parent.name for p in sorted(found, key=lambda p: p.stat().st_mtime_ns)]

    def set_aside(self, name: str) -> Path:
        """Move the home away so that the next run starts anew; where it lies now."""
        target = self.folder / name
        shutil.rmtree(target, ignore_errors=True)
        self.home.rename(target)
        return target


def ended(process: Child, limit_s: float = LIMIT_S) -> int:
    """The exit status of a child; one that hangs is killed with its group.

    Raises:
        TimeoutError: it hung.
    """
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        kill(process)
        raise TimeoutError(f"{process.args} did not end within {limit_s} s") from None


def kill(process: Child, number: int = signal.SIGKILL) -> None:
    """Send a signal to the child's whole group and wait for the child."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    process.wait()


def wait_until(check, process: Child | None = None, limit_s: float = 300, step_s: float = 0.02) -> bool:
    """Whether ``check()`` became true before the limit (and before the child ended)."""
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        if check():
            return True
        if process is not None and process.poll() is not None:
            return bool(check())
        time.sleep(step_s)
    return False


def kill_in_work(place: Place, arguments: Sequence[str], records: int, delay_s: float) -> bool:
    """Start, kill ``delay_s`` after the run has written so many records; False when it ended well before that.

    Raises:
        RuntimeError: it ended by itself with an error.
    """
    before = set(place.begun())
    process = place.start(*arguments)

    def far_enough() -> bool:
        new = [run for run in place.begun() if run not in before]
        return bool(new) and records_of(place.home / "spool" / new[-1]) >= records

    try:
        if wait_until(far_enough, process, limit_s=LIMIT_S):
            process.wait(delay_s)
    except subprocess.TimeoutExpired:
        kill(process)
        return True
    if ended(process):
        raise RuntimeError(f"ended with {process.returncode} before it was killed:\n{place.output()[-2000:]}")
    return False


def records_of(spool: Path) -> int:
    """Records a run has written so far."""
    return (spool / "ops.jsonl").read_bytes().count(b"\n")


@dataclass(frozen=True)
class Left:
    """What a finished run left: rows without timings, weights and recipes by name, stages computed."""

    rows: list[dict[str, Any]]
    files: dict[str, list[str]]
    paid: Counter

    def differences(self, other: "Left") -> list[str]:
        """In words; empty when both are the same."""
        found = [] if self.rows == other.rows else [f"rows: {_first_difference(self.rows, other.rows)}"]
        for name in sorted(self.files.keys() | other.files.keys()):
            if self.files.get(name) != other.files.get(name):
                found.append(f"{name}: {self.files.get(name)} and {other.files.get(name)}")
        return found

    def paid_twice(self) -> int:
        """Stages that were computed to their end more than once under the same key."""
        return sum(count - 1 for count in self.paid.values())


def left_by(summary: dict[str, Any], folder: Path) -> Left:
    """Read a finished run's results.

    Args:
        summary: what ``--json`` wrote.
        folder: the home as it lies now.
    """
    files: dict[str, list[str]] = {}
    for path in sorted((folder / "cache").rglob("*")):
        if path.suffix in KEPT and path.is_file() and ".part" not in str(path):
            kind = path.relative_to(folder / "cache").parts[0]
            files.setdefault(f"{kind}/{path.name}", []).append(sha256_file(path))
    history = folder / "history.jsonl"
    entries = [json.loads(line) for line in history.read_text().splitlines()] if history.exists() else []
    paid = Counter((e["stage"], e["key"]) for e in entries)
    return Left(canonical(summary["rows"]), {n: sorted(set(h)) for n, h in files.items()}, paid)


def canonical(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without timings, without what names the machine, and without the hashes of inputs, in a fixed order.

    Those are of whole folders, some of which note the seconds that their making took; weights and recipes in them are
    compared by themselves.
    """
    kept = []
    for row in rows:
        if any(word in row["metric"] for word in TIMINGS):
            continue
        budget = {u: a for u, a in row["budget"].items() if not any(word in u for word in TIMINGS)}
        kept.append({k: v for k, v in row.items() if k not in NOTES} | {"budget": budget})
    return sorted(kept, key=content_key)


def _first_difference(a: list[dict], b: list[dict]) -> str:
    if len(a) != len(b):
        return f"{len(a)} and {len(b)} rows"
    for one, two in zip(a, b, strict=True):
        if one != two:
            return "; ".join(f"{k} {one.get(k)!r} and {two.get(k)!r}" for k in one if one.get(k) != two.get(k))[:500]
    return ""


def intact(folder: Path) -> tuple[int, list[str]]:
    """Sealed folders of a home's cache: how many, and what is wrong with them."""
    faults, count = [], 0
    for manifest in (folder / "cache").glob(f"*/*/{MANIFEST}"):
        if manifest.parent.name.endswith(".part"):
            continue
        count += 1
        try:
            verify(manifest.parent)
            read_rows(manifest.parent / "rows.jsonl")
        except StateError as error:
            faults.append(str(error))
    return count, faults


def telling(output: str, most: int = 1500) -> str:
    """The part of an output that says what went wrong: from the first traceback on, else its end."""
    at = output.find("Traceback")
    return output[-most:] if at < 0 else output[max(0, at - 300) : at + most]


def one_line(output: str) -> bool:
    """Whether a failed command said why in one line and showed no traceback."""
    lines = [line for line in output.splitlines() if line.startswith("error:")]
    return len(lines) == 1 and "Traceback" not in output
