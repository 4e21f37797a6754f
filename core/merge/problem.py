"""The merge problem assembled: experts on disk and a space's settings become fitness, space and task owners."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from core.config import Config
from core.merge.basis import in_basis
from core.merge.batched import together
from core.merge.candidate import InMemoryModel
from core.merge.experts import Expert, check_tasks
from core.merge.fitness import Fitness
from core.merge.objectives import Objective
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
    for task, value in own_scores(InMemoryModel(encoder, raw, space.groups, dtype), tasks).items():
        tasks[task].reference = max(value, 1e-6)
    model = InMemoryModel(encoder, vectors, space.groups, dtype)
    size = min(config.batch, min(t.size for t in tasks.values()))
    fitness = together(Fitness(model, tasks, size, config.seed, config.smooth), config.together)
    owners: list[int | None] = [raw.names.index(t) for t in fitness.tasks]
    return MergeProblem(fitness, space, owners, raw, folders, Path(base))


def own_scores(model: InMemoryModel, tasks: Mapping[str, Objective]) -> dict[str, float]:
    """Share of right answers of each task's own expert (``model`` on raw task vectors)."""
    groups = 1 + max(group for group, *_ in model.slices)
    found = {}
    for row, name in enumerate(model.vectors.names):
        if name in tasks:
            alone = np.zeros((len(model.vectors.names), groups))
            alone[row] = 1.0
            found[name] = float(tasks[name].score(model.write(alone), np.arange(tasks[name].size)).mean())
    return found
