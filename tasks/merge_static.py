"""Static merges: choose each operator's scale on validation, in memory."""

import json
from collections.abc import Mapping

import numpy as np
from pydantic import Field

from core.config import Config
from core.merge.candidate import InMemoryModel
from core.merge.experts import Expert, check_tasks, load_expert
from core.merge.objectives import EncoderObjective, score_encoder
from core.merge.static import static_deltas, static_methods, tune
from core.merge.suite import objectives
from core.merge.task_vectors import TaskVectors, task_vectors
from core.models.load import load_encoder
from core.models.score import resolve_dtype
from core.state import write_json
from core.transfer.budget import Budget
from tasks.costed import costed
from tasks.stage import Artifact, Output, stage

CHOICE = "choice.json"


class StaticConfig(Config):
    """Which operators are tried, and on how much validation data."""

    methods: tuple[str, ...] = Field(description="names of static methods")
    validation_examples: int = Field(200, ge=20, description="validation examples a task for choosing the scale")
    max_length: int = Field(64, ge=8, description="longest text in tokens")
    seed: int = Field(0, description="draw of validation examples, random operators")


def experts_of(artifacts: Mapping[str, Artifact]) -> list[Expert]:
    """Experts in the order of their task names, checked to be of one base and of different tasks."""
    found = [load_expert(artifacts[name].folder) for name in sorted(artifacts)]
    check_tasks(found)
    return found


def vectors_of(base: Artifact, experts: list[Expert]) -> TaskVectors:
    """The experts' task vectors."""
    return task_vectors(base.folder, {e.task: e.folder for e in experts})


@stage("tune-static-merges", modules=["core.merge.static", "core.merge.suite"])
@costed
def tune_static(out: Output, config: StaticConfig, base: Artifact, experts: Mapping[str, Artifact]) -> None:
    """Merge with every operator at several scales and choose each one's scale on validation data."""
    found = experts_of(experts)
    methods = static_methods(config.methods, len(found))
    components = static_deltas(vectors_of(base, found), methods, config.seed)
    encoder = load_encoder(base.folder)
    encoder.max_length = min(config.max_length, encoder.max_length)
    tasks = objectives(encoder, found, "validation", config.validation_examples, config.seed)
    model = InMemoryModel(encoder, components, [0] * len(components.tensors), _dtype(encoder.device.type))
    budget = Budget("task_examples")
    tuned = tune(components, methods, lambda c: _score(model.write(c), tasks, budget))
    for name, t in tuned.items():
        out.curve(f"validation/{name}", [(round(1000 * scale), value) for scale, value in t.curve])
    write_json(out.folder / CHOICE, {n: {"scale": t.scale, "curve": list(t.curve)} for n, t in tuned.items()})
    out.metrics({f"scale/{n}": t.scale for n, t in tuned.items()})
    out.budget(budget.counts)


def best_on_validation(tuned: Artifact) -> str:
    """The method whose best scale scored highest on validation; the first among equals."""
    choice = json.loads((tuned.folder / CHOICE).read_text())
    return max(choice, key=lambda name: max(value for _, value in choice[name]["curve"]))


def _dtype(device: str):
    import torch

    return getattr(torch, resolve_dtype("auto", device))


def _score(encoder, tasks: Mapping[str, EncoderObjective], budget: Budget) -> float:
    """Mean validation accuracy over the tasks."""
    wanted = {name: np.arange(task.size) for name, task in tasks.items()}
    budget.spend(sum(len(w) for w in wanted.values()))
    return float(np.mean([s.correct.mean() for s in score_encoder(encoder, tasks, wanted).values()]))
