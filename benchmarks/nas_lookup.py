"""How many NAS-Bench-201 look-ups a second: this project's vectorised oracle beside the official API.

The official API is timed on the three original records that are at hand locally; its cost a look-up does not depend on
how many records are loaded. Rows of the official API need ``TRANSFEROPT_DATA``; without it they stay absent.
"""

import bz2
import pickle
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from core.data.assets import find_local
from core.evaluate.benchmark import Benchmark, Cell, Goal, main
from core.evaluate.rows import Row
from core.nas.oracles import get_oracle
from core.nas.spaces.nb201 import NB201Cell

RECORDS = "nas/nats_examples/NATS-tss-v1_0-3ffb9-simple"
MODULES = ("core.nas.oracles.nb201",)
REPEATS = 5
GOAL = 1e6
METHODS = {
    "rows": "oracle.values(row numbers)",
    "operations": "oracle.lookup(operation digits)",
    "query": "oracle.query(genotype), one by one",
    "official get_more_info": "NASBench201API.get_more_info(index, 'cifar10-valid', hp='200')",
    "official by string": "the same after query_index_by_arch(string)",
}


def cells(size: str) -> list[Cell]:
    seeds = 1 if size == "smoke" else REPEATS
    names = [m for m in METHODS if not m.startswith("official") or find_local(RECORDS) is not None]
    return [Cell(name, {}, seed, MODULES) for seed in range(seeds) for name in names]


def measure(cell: Cell) -> list[Row]:
    """Look-ups a second, each counted query included (charging stays on)."""
    run, count = preparation(cell.method, np.random.default_rng(cell.seed))
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    return [cell.row("look-ups a second", count / seconds, oracle="NAS-Bench-201 cifar10")]


def preparation(method: str, rng: np.random.Generator) -> tuple[Callable[[], object], int]:
    """What is timed, and how many look-ups it makes. Inputs are made before the clock starts."""
    if method.startswith("official"):
        api, count = official(), 2_000
        indices = rng.choice(sorted(api.arch2infos_dict), count).tolist()
        if method.endswith("string"):
            names = [api.arch(i) for i in indices]
            return lambda: [_more(api, api.query_index_by_arch(name)) for name in names], count
        return lambda: [_more(api, i) for i in indices], count
    oracle = get_oracle("nb201")
    oracle.values(np.arange(1))
    if method == "query":
        genotypes = [NB201Cell(tuple(row)) for row in rng.integers(0, 5, (20_000, 6)).tolist()]
        return lambda: [oracle.query(g) for g in genotypes], len(genotypes)
    count = 2_000_000
    if method == "rows":
        rows = rng.integers(0, 15_625, count)
        return lambda: oracle.values(rows), count
    ops = rng.integers(0, 5, (count, 6))
    return lambda: oracle.lookup(ops), count


def _more(api, index: int) -> float:
    return api.get_more_info(index, "cifar10-valid", hp="200", is_random=False)["valid-accuracy"]


@cache
def official():
    """The official API over the three original records, through the safe loader."""
    import torch

    from core.nas.oracles.nb201_official import load_api

    folder = find_local(RECORDS)
    read = {p.name.split(".")[0]: pickle.loads(bz2.decompress(p.read_bytes())) for p in folder.glob("*.pbz2")}
    infos = {int(n): {"less": r["12"], "full": r["200"]} for n, r in read.items() if n.isdigit()}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "records.pth"
        torch.save({"meta_archs": read["meta"]["meta_archs"], "arch2infos": infos, "evaluated_indexes": []}, path)
        return load_api(path)


def speeds(rows: Sequence[Row]) -> dict[str, list[float]]:
    return {name: [r.value for r in rows if r.method == name] for name in METHODS}


def goals(rows: Sequence[Row]) -> list[Goal]:
    found = speeds(rows)
    result = []
    for name in ("rows", "operations"):
        values = found[name]
        low, high = (min(values), max(values)) if values else (None, None)
        median = float(np.median(values)) if values else None
        target = f"median >= {GOAL:.0f} look-ups a second"
        goal = f"vectorised NAS-Bench-201 look-up by {name} (low and high: slowest and fastest repeat)"
        result.append(Goal(goal, target, median, low, high, median is not None and median >= GOAL))
    return result


def page(rows: Sequence[Row], folder: Path) -> str:
    found = speeds(rows)
    base = np.median(found["official get_more_info"]) if found["official get_more_info"] else None
    lines = ["| look-up | what runs | median a second | repeats | times the official API |", "|---|---|---|---|---|"]
    for name, values in found.items():
        if values:
            median = np.median(values)
            ratio = "" if base is None else f"{median / base:,.1f}"
            lines.append(f"| {name} | `{METHODS[name]}` | {median:,.0f} | {len(values)} | {ratio} |")
    machines = ", ".join(sorted({r.hardware for r in rows}))
    return "\n".join(
        [*lines, "", f"Every look-up of the oracle is counted and charged once a cell. Machine: {machines}."]
    )


BENCHMARK = Benchmark(
    "nas_lookup",
    "NAS-Bench-201 look-ups",
    cells,
    measure,
    goals,
    page,
    timing_metrics=frozenset({"look-ups a second"}),
)

if __name__ == "__main__":
    main(BENCHMARK)
