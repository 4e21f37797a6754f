"""The merge problem assembled: experts on disk and a space's settings become fitness, space and task owners."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from core.config import Config
from core.merge.align import Head, embed
from core.merge.basis import in_basis
from core.merge.batched import together
from core.merge.candidate import InMemoryModel
from core.merge.experts import Expert, check_tasks
from core.merge.fitness import Fitness
from core.merge.objectives import EncoderObjective, Objective, judge
from core.merge.recipe_space import RecipeSpace, SpaceConfig
from core.merge.suite import objectives
from core.merge.task_vectors import TaskVectors, task_vectors
from core.state import Cache


class ProblemConfig(Config):
    """What is searched and how it is scored."""

    space: SpaceConfig = Field(SpaceConfig(granularity="blocks:3"), description="the recipe space")
    batch: int = Field(32, ge=1, description="validation examples a task in a mini-batch")
    validation_examples: int = Field(200, ge=20, description="validation examples a task")
    max_length: int = Field(64, ge=8, description="longest text in tokens")
    smooth: bool = Field(True, description="score by margin-smoothed hits (plain hits decide among finalists)")
    precision: str = Field("auto", description="dtype of scoring: auto, float32, bfloat16")
    seed: int = Field(0, description="draw and order of validation examples")
    align: bool = Field(
        True, description="fit each task's head to its expert's answers on the merged encoder (closed form, no labels)"
    )
    together: int | None = Field(
        None, ge=1, description="candidates scored in one forward; by the hardware when empty (many on CUDA, else one)"
    )


@dataclass
class MergeProblem:
    """Everything a search needs."""

    fitness: Fitness
    space: RecipeSpace
    owners: list[int | None]
    raw: TaskVectors
    folders: dict[str, Path]
    base: Path

    def recipe(self, coefficients: np.ndarray) -> dict[str, Any]:
        """The recipe file's content for coefficients [n, g]."""
        return self.space.recipe(coefficients, self.base, self.folders)


def merge_problem(
    base: str | Path, experts: Sequence[Expert], config: ProblemConfig, cache: Cache | None = None
) -> MergeProblem:
    """Assemble the problem; each task's reference score is its own expert's on the same validation examples.

    Raises:
        ValueError: experts of different bases, of one task, or not matching the base (see the parts).
    """
    import torch

    from core.models.load import load_encoder
    from core.models.score import resolve_dtype

    check_tasks(experts)
    folders = {e.task: e.folder for e in experts}
    raw = task_vectors(base, folders, cache)
    encoder = load_encoder(base)
    encoder.max_length = min(config.max_length, encoder.max_length)
    tasks = objectives(encoder, experts, "validation", config.validation_examples, config.seed)
    dtype = getattr(torch, resolve_dtype(config.precision, encoder.device.type))
    vectors = in_basis(raw, config.space.basis, cache)
    space = RecipeSpace(vectors, config.space)
    targets = own_logits(InMemoryModel(encoder, raw, space.groups, dtype), tasks)
    for task, logits in targets.items():
        tasks[task].reference = max(float(judge(logits, tasks[task].labels).correct.mean()), 1e-6)
    model = InMemoryModel(encoder, vectors, space.groups, dtype)
    size = min(config.batch, min(t.size for t in tasks.values()))
    fitness = Fitness(model, tasks, size, config.seed, config.smooth, targets=targets if config.align else {})
    fitness = together(fitness, config.together)
    owners: list[int | None] = [raw.names.index(t) for t in fitness.tasks]
    return MergeProblem(fitness, space, owners, raw, folders, Path(base))


def own_logits(model: InMemoryModel, tasks: Mapping[str, EncoderObjective]) -> dict[str, np.ndarray]:
    """Task -> logits [n, C] of its own expert on all its examples (``model`` on raw task vectors)."""
    found = {}
    for name, network in experts_alone(model, tasks):
        head = Head(tasks[name].weight, tasks[name].bias)
        found[name] = head.logits(embed(network, {name: tasks[name]})[name])
    return found


def own_scores(model: InMemoryModel, tasks: Mapping[str, Objective]) -> dict[str, float]:
    """Share of right answers of each task's own expert (``model`` on raw task vectors)."""
    alone = experts_alone(model, tasks)
    return {name: float(tasks[name].score(network, np.arange(tasks[name].size)).mean()) for name, network in alone}


def experts_alone(model: InMemoryModel, tasks: Mapping[str, Objective]) -> Iterator[tuple[str, Any]]:
    """Each task's expert by itself, written into the model when it is read."""
    groups = 1 + max(group for group, *_ in model.slices)
    for row, name in enumerate(model.vectors.names):
        if name in tasks:
            alone = np.zeros((len(model.vectors.names), groups))
            alone[row] = 1.0
            yield name, model.write(alone)
