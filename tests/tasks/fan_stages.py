"""Stages and functions that workers of another process import."""

import os
import signal
import time
from pathlib import Path

import numpy as np
from prefect import flow
from prefect_ray import RayTaskRunner

from core.config import Config
from core.evaluate.rows import Row
from core.evaluate.statistics import bootstrap_mean
from core.transfer.problem import Problem
from tasks import tracking
from tasks.fan_out import gather
from tasks.stage import stage

PROBLEM = Problem(source="s", target="t", knowledge="k", domain="d", objective="f", budget="3 queries")


class Draw(Config):
    """A seed; ``deadly`` names a file: the worker that finds it dies once, half-way."""

    seed: int
    deadly: str = ""


@stage("draw", modules=["core.evaluate.statistics"])
def draw(out, config):
    """Bootstrap some numbers; write who did it beside the result."""
    half = out.folder / "half"
    half.write_text("kept")
    trap = Path(config.deadly) if config.deadly else None
    if trap is not None and trap.exists():
        trap.rename(trap.with_suffix(f".{os.getpid()}"))
        os.kill(os.getpid(), signal.SIGKILL)
    if config.seed < 0:
        raise ValueError(f"seed {config.seed} is negative")
    mean = bootstrap_mean(np.random.default_rng(config.seed).normal(size=200), seed=config.seed).low
    out.rows([Row(method="draw", metric="low", value=mean, seed=config.seed)])
    out.budget({"queries": 3})
    out.facts["pid"] = os.getpid()


@flow(task_runner=RayTaskRunner())
def draws(seeds: list[int], deadly: str) -> dict[int, float]:
    """One stage a seed, the second of them on a worker that dies."""
    with tracking.start("test", "system", PROBLEM, None, {"flow": "test"}) as run:
        made = gather({s: draw.submit(Draw(seed=s, deadly=deadly if s == seeds[1] else "")) for s in seeds})
    return {"run": run.id, "values": {s: a.rows()[0].value for s, a in made.items()}, "made": made}


def slow_sum(shared: dict, item: int) -> tuple[int, bool, int]:
    """Sum of a shared array times the item; whether the array may be written; which process did it."""
    Path(shared["marks"], f"{item}-{os.getpid()}").touch()
    time.sleep(0.5)
    return item * int(shared["array"].sum()), bool(shared["array"].flags.writeable), os.getpid()
