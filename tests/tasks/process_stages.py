"""Stages and a flow that worker processes import, and a program that runs the flow (to be killed)."""

import os
import sys
import time
from pathlib import Path

import tasks  # noqa: F401  (before Prefect)

# isort: split

from prefect import flow

from core.config import Config
from core.transfer.problem import Problem
from tasks import tracking
from tasks.fan_out import gather
from tasks.processes import process_runner
from tasks.stage import stage

PROBLEM = Problem(source="s", target="t", knowledge="k", domain="d", objective="f", budget="3 queries")


class Nap(Config):
    """How long to sleep, and where to say that it has begun."""

    seconds: float
    marks: str


@stage("nap", modules=["core.evaluate.statistics"])
def nap(out, config):
    """Say who sleeps, then sleep."""
    Path(config.marks, str(os.getpid())).write_text(os.environ["OMP_NUM_THREADS"])
    time.sleep(config.seconds)
    if config.seconds < 0.2:
        raise ValueError(f"{config.seconds} s is no nap")
    out.budget({"queries": 1})


@flow(name="naps", task_runner=process_runner(2))
def naps(marks: str, seconds: list[float], interrupt: bool = False) -> dict[float, str]:
    """One stage a nap; ``interrupt`` stops the flow once two of them sleep."""
    with tracking.start("test", "system", PROBLEM, None, {"flow": "test"}):
        started = {s: nap.submit(Nap(seconds=s, marks=marks)) for s in seconds}
        if interrupt:
            while len(list(Path(marks).iterdir())) < 2:
                time.sleep(0.05)
            raise KeyboardInterrupt
        return {s: a.sha256 for s, a in gather(started).items()}


if __name__ == "__main__":
    naps(sys.argv[1], [60.0, 61.0])
