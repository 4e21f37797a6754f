"""Faults under running flows: kills, damaged results, two runs in one place, another random state, more threads."""

import atexit
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import yaml

from benchmarks.faults_files import sealed
from benchmarks.faults_servers import Server
from benchmarks.flow_process import (
    ROOT,
    Left,
    Place,
    ended,
    intact,
    kill_in_work,
    left_by,
    one_line,
    records_of,
    telling,
    wait_until,
)
from benchmarks.warm import NOTE, Warm
from core.data.assets import resolve

Outcome = dict[str, float]
FLOWS = ("merge", "search", "transfer", "distill", "evolve-merge")
CHEAPEST = "transfer"


@cache
def room() -> Path:
    """A folder for this process, removed at its end."""
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def prefect() -> Server:
    """One Prefect server for all cells that do not kill it."""
    server = Server("prefect", room() / "prefect").start()
    atexit.register(server.kill)
    return server


def place(name: str, **more: str) -> Place:
    """A fresh place whose records go to one database and whose Prefect server lives on, unless ``more`` says so."""
    folder = room() / name
    shutil.rmtree(folder / "home", ignore_errors=True)
    folder.mkdir(exist_ok=True)
    own = {"MLFLOW_TRACKING_URI": f"sqlite:///{room() / 'tracking.db'}"}
    if "PREFECT_API_URL" not in more:
        own["PREFECT_API_URL"] = prefect().address
    return Place(folder, {k: v for k, v in (own | more).items() if v})


def smoke(flow: str) -> list[str]:
    return ["run", flow, "--size", "smoke"]


@cache
def undisturbed(flow: str) -> tuple[Left, float, Path]:
    """What the flow leaves when nothing happens, the seconds its body takes, and a copy of its home.

    It ran in the very place in which it is disturbed later, so that paths are equal.
    """
    here = place(flow)
    here.before = NOTE.format(path=str(here.folder / "modules.txt"))
    process = here.start(*smoke(flow), "--json", str(here.folder / "summary.json"))
    wait_until(lambda: bool(here.begun()), process)
    begun = time.monotonic()
    if ended(process):
        raise RuntimeError(f"{flow} fails without any fault:\n{here.output()[-2000:]}")
    span = time.monotonic() - begun
    summary = yaml.safe_load((here.folder / "summary.json").read_text())
    aside = here.set_aside("undisturbed")
    return left_by(summary, aside), span, aside


@cache
def warm(flow: str) -> Warm:
    """Forks runs in the flow's place, after what the undisturbed one imported."""
    here = place(flow)
    parent = Warm(here.folder / "modules.txt", here.environment(), ROOT)
    atexit.register(parent.close)
    return parent


def kills(flow: str, seed: int, count: int) -> Outcome:
    """Kill -9 at random moments of the flow's work, up to five in a row; every second time ``resume`` finishes it."""
    whole, span, aside = undisturbed(flow)
    rng, failures, killed, twice, chains = np.random.default_rng([seed, len(flow)]), [], 0, 0, 0
    moment = _moments(rng, span, aside)
    while killed < count:
        here, chain = place(flow), 0
        here.warm = warm(flow)
        while chain < 5 and killed < count and kill_in_work(here, smoke(flow), *moment()):
            chain, killed = chain + 1, killed + 1
        again = ["resume", here.begun()[-1]] if chains % 2 else smoke(flow)
        left = result_of(here, again, whole, failures)
        twice += left.paid_twice() if left else 0
        chains += 1
    return outcome(killed, failures) | {"paid_twice": float(twice), "chains": float(chains)}


def _moments(rng: np.random.Generator, span_s: float, aside: Path) -> Callable[[], tuple[int, float]]:
    """Draws a moment of a flow's work: after so many of its records, and then up to two mean gaps between records."""
    whole = max(records_of(p.parent) for p in (aside / "spool").glob("*/ops.jsonl"))
    return lambda: (int(rng.integers(1, whole)), float(rng.uniform(0, 2 * span_s / whole)))


def result_of(here: Place, arguments: list[str], whole: Left, failures: list[str]) -> Left | None:
    """Finish the run; what differs from the undisturbed one is noted."""
    try:
        left = left_by(here.run(*arguments), here.home)
    except (RuntimeError, TimeoutError) as error:
        failures.append(str(error))
        return None
    failures += left.differences(whole)
    failures += intact(here.home)[1]
    return left


def torn_results(flow: str, seed: int, count: int) -> Outcome:
    """Every file of every cached folder that a flow leaves, cut and bit-flipped: noticed and named."""
    trials, failures = 0, []
    for manifest in sorted((undisturbed(flow)[2] / "cache").glob("*/*/artifact.json")):
        done, wrong = sealed(manifest.parent, seed, count)
        trials, failures = trials + done, failures + wrong
    return outcome(trials, failures)


def torn_part(flow: str, seed: int, count: int) -> Outcome:
    """Files of unfinished stages damaged after a kill: the next run ends equal, or refuses and names the file.

    A refused file is removed, as its message says, and the run repeated.
    """
    whole, span, aside = undisturbed(flow)
    rng, failures, trials, refused, tries = np.random.default_rng(seed), [], 0, 0, 0
    moment = _moments(rng, span, aside)
    while trials < count and tries < 4 * count:
        tries += 1
        here = place(flow)
        here.warm = warm(flow)
        if not kill_in_work(here, smoke(flow), *moment()):
            continue
        parts = [p for p in (here.home / "cache").rglob("*") if p.is_file() and ".part/" in str(p) and p.stat().st_size]
        if not parts:
            continue
        path = parts[int(rng.integers(len(parts)))]
        data = bytearray(path.read_bytes())
        at = int(rng.integers(len(data)))
        data[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(data[:at] if trials % 2 else data)
        trials += 1
        code, output = here.call(*smoke(flow))
        if code:
            refused += 1
            if not (one_line(output) and path.name in output):
                failures.append(f"{path}: {telling(output)}")
            path.unlink(missing_ok=True)
        result_of(here, smoke(flow), whole, failures)
    return outcome(trials, failures) | {"refused": float(refused)}


def another_state(flow: str, seed: int, count: int) -> Outcome:
    """The flow again under another state of the global random generators: equal rows, weights and recipes."""
    generators = "random.seed, numpy.random.seed, torch.manual_seed"
    return _again(flow, {}, f"import random, numpy, torch\nfor put in ({generators}): put({int(count)})\n")


def more_threads(flow: str, seed: int, count: int) -> Outcome:
    """The flow again on so many threads instead of one."""
    return _again(flow, {"OMP_NUM_THREADS": str(int(count))}, "")


def _again(flow: str, more: dict[str, str], before: str) -> Outcome:
    whole, failures = undisturbed(flow)[0], []
    here = place(flow, **more)
    here.before = before
    left = result_of(here, smoke(flow), whole, failures)
    differ = sum(a != b for a, b in zip(left.rows, whole.rows)) if left else len(whole.rows)
    return outcome(1, failures) | {"rows": float(len(whole.rows)), "rows_differ": float(differ)}


def two_at_once(seed: int, count: int) -> Outcome:
    """The same run several times at once in one place: all end equal, nothing is computed twice."""
    whole, _, _ = undisturbed(CHEAPEST)
    here, failures = place(CHEAPEST), []
    summaries = [here.folder / f"summary-{i}.json" for i in range(count)]
    processes = [here.start(*smoke(CHEAPEST), "--json", str(s)) for s in summaries]
    for process, path in zip(processes, summaries, strict=True):
        if ended(process):
            failures.append(here.output()[-1500:])
        else:
            failures += left_by(yaml.safe_load(path.read_text()), here.home).differences(whole)
            path.unlink()
    left = result_of(here, smoke(CHEAPEST), whole, failures)
    return outcome(count, failures) | {"paid_twice": float(left.paid_twice() if left else 0)}


def same_output(seed: int, count: int) -> Outcome:
    """Two merges into one folder: the second says who holds it; the first, stopped meanwhile, ends right."""
    here, failures = place("same-output"), []
    base, twin = str(resolve("all-minilm-l6-v2").path), str(here.folder / "twin")  # a model stands in a recipe once
    shutil.copytree(base, twin, dirs_exist_ok=True)
    recipe = here.folder / "recipe.yaml"
    parts = [{"model": base, "parameters": {"weight": 0.25}}, {"model": twin, "parameters": {"weight": 0.75}}]
    recipe.write_text(yaml.safe_dump({"merge_method": "linear", "models": parts, "dtype": "float32"}))
    for i in range(count):
        out = here.folder / f"out-{i}"
        first = here.start("merge", str(recipe), str(out))
        if not wait_until(lambda out=out: bool(list(out.parent.glob(f"{out.name}.part*"))), first, step_s=0.001):
            failures.append("the first merge was over before the second began")
            continue
        first.send_signal(signal.SIGSTOP)
        code, output = here.call("merge", str(recipe), str(out))
        first.send_signal(signal.SIGCONT)
        if not code or not one_line(output) or str(first.pid) not in output:
            failures.append(f"the second merge ended with {code}: {output[-500:]}")
        if ended(first) or not (out / "model.safetensors").exists():
            failures.append("the first merge failed")
        if code := here.call("merge", str(recipe), str(here.folder / "alone"))[0]:
            failures.append(f"a merge alone ended with {code}")
        elif _weights(out) != _weights(here.folder / "alone"):
            failures.append("the weights differ from those of a merge alone")
        shutil.rmtree(here.folder / "alone")
    return outcome(count, failures)


def _weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def outcome(trials: int, failures: list[str]) -> Outcome:
    """Counts for the table; the first failures are printed."""
    for line in failures[:5]:
        print(line, flush=True)
    return {"trials": float(trials), "failures": float(len(failures))}
