"""Distil on several GPUs: every training step is shared by the processes that Accelerate starts.

    accelerate launch --num_processes 4 deployments/distill_multi_gpu.py OUT --set task=mr_reviews --set teacher=mpnet

The processes work in step, so each has an empty cache of its own: one that waited for another's lock, or found done
what the others still do, would stop all. A stopped launch therefore starts anew. The first process writes the student
to OUT; it opens with ``core.distill.export.load_student(OUT)``. Parameters are those of the flow ``distill``; no server
is needed.
"""

import argparse
import os
import shutil
from pathlib import Path

from core.distill.export import export_student
from core.distill.study import Study
from core.state import Cache, home
from flows.cli.parameters import read
from flows.distill import DistillForm, method_names, study_of


def main() -> None:
    """Train in step with the other processes; the first of them writes the result."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("out", type=Path, help="folder of the student; must not exist")
    asked.add_argument("--method", default="prompt_distiller", help="method of the table")
    asked.add_argument("--set", action="append", default=[], help="key=value of the flow's parameters")
    given = asked.parse_args()
    if given.out.exists():
        raise SystemExit(f"error: {given.out} exists; give another folder")
    form = read(DistillForm, None, given.set).resolved()
    method_names(form.model_copy(update={"methods": (given.method,)}))
    rank = int(os.environ.get("RANK", "0"))
    folder = home() / "processes" / str(rank)
    shutil.rmtree(folder, ignore_errors=True)
    study = Study(study_of(form), Cache(folder))
    study.cache_signals(given.method)
    model, budget, _ = study.train(given.method)
    shutil.rmtree(folder, ignore_errors=True)
    if rank == 0:
        given.out.mkdir(parents=True)
        export_student(model, given.out, study.task.labels, study.task.name)
        print(f"{given.out}: {given.method} on {form.task}, {int(budget.counts.get('train_steps', 0))} steps")


if __name__ == "__main__":
    main()
