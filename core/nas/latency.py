"""Latency of cells, known without a query: a column of the oracle's table, or timed on this machine's network."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

import numpy as np

from core.evaluate.machine import hardware
from core.hashing import code_version, content_key
from core.nas.networks import build_network
from core.nas.oracles import Oracle, TableOracle
from core.nas.oracles.training import TrainingOracle, limited_threads
from core.nas.spaces import Genotype
from core.progress import track
from core.state import Cache, write_json

Latency = Callable[[Sequence[Genotype]], np.ndarray]
COLUMN, BATCH, REPEATS = "latency_s", 32, 5


def latency_of(oracle: Oracle, cache: Cache | None = None) -> Latency:
    """What answers with the latencies of cells, in seconds, ``[cells]``; asking costs no query.

    Args:
        oracle: a table with a column ``latency_s``, or a real training, whose networks are timed on a batch of
            :data:`BATCH` images (the fastest of :data:`REPEATS` passes; kept for each cell and machine).

    Raises:
        ValueError: an oracle that knows no latency and trains no network.
    """
    if isinstance(oracle, TableOracle) and COLUMN in oracle.columns:
        column = oracle.columns[COLUMN]
        return lambda cells: np.array([column[oracle.index(c)] for c in cells])
    if isinstance(oracle, TrainingOracle):
        return _Timed(oracle, cache or oracle.cache)
    raise ValueError(
        f"{oracle.describe()} knows no latency (a column {COLUMN}, or networks to be timed); weigh params or flops"
    )


class _Timed:
    """Latencies of trained cells, each timed once: a second timing would differ a little from the first."""

    def __init__(self, oracle: TrainingOracle, cache: Cache):
        self.oracle, self.cache = oracle, cache
        self.known: dict[str, float] = {}

    def __call__(self, cells: Sequence[Genotype]) -> np.ndarray:
        keys = [self.oracle.space.key(c) for c in cells]
        new = {k: c for k, c in zip(keys, cells, strict=True) if k not in self.known}
        if new:
            self.known |= dict(zip(new, _timed(self.oracle, list(new.values()), self.cache).tolist(), strict=True))
        return np.array([self.known[k] for k in keys])


def _timed(oracle: TrainingOracle, cells: Sequence[Genotype], cache: Cache) -> np.ndarray:
    device = oracle.device()
    version = code_version(["core.nas.latency", f"core.nas.networks.{oracle.space.name}"])
    shape = oracle.parts["train"][0].shape[1:]
    where = (oracle.space.full_name, oracle.settings.macro, list(shape), oracle.classes, oracle.settings.threads)
    texts = [oracle.space.format(oracle.space.canonical(c)) for c in cells]
    key = content_key(*where, device, hardware(), version, texts)

    def build(folder: Path) -> None:
        with limited_threads(oracle.settings.threads), track("time networks", len(cells), "network") as bar:
            times = []
            for cell in cells:
                times.append(_forward_seconds(oracle, cell, device))
                bar.advance()
        write_json(folder / "latency.json", times)

    return np.array(json.loads((cache.compute("nas-latency", key, build) / "latency.json").read_text()))


def _forward_seconds(oracle: TrainingOracle, cell: Genotype, device: str) -> float:
    import torch

    shape = oracle.parts["train"][0].shape[1:]
    network = build_network(oracle.space, cell, oracle.settings.macro, shape[0], oracle.classes, seed=0)
    network, images = network.to(device).eval(), torch.zeros(BATCH, *shape, device=device)
    times = []
    with torch.inference_mode():
        for _ in range(1 + REPEATS):  # the first pass allocates
            begin = perf_counter()
            network(images)
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            times.append(perf_counter() - begin)
    return min(times[1:])
