"""The merge problem of causal language models: adapters of one base become fitness, space and owners.

What comes out is the :class:`core.merge.problem.MergeProblem` that encoders give, so every search and every static
method works on it unchanged. Each task's own prompts and label words (or its free answers) are its objective.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.merge.adapter_experts import AdapterConfig, label_words, prompts_of
from core.merge.adapter_vectors import adapter_vectors
from core.merge.basis import in_basis
from core.merge.candidate import InMemoryModel
from core.merge.experts import Expert, check_tasks
from core.merge.fitness import Fitness
from core.merge.objectives import Scored
from core.merge.objectives_lm import GenerationObjective, LikelihoodObjective
from core.merge.problem import MergeProblem, ProblemConfig, own_scores
from core.merge.recipe_space import RecipeSpace
from core.merge.task_vectors import TaskVectors
from core.state import Cache

LanguageObjective = LikelihoodObjective | GenerationObjective


class LanguageFitness(Fitness):
    """Fitness of language objectives: their smooth values rank candidates, their hits decide among finalists.

    Nothing is generated for mini-batches that smooth values rank; the answers' ``hits`` of such tasks are NaN.
    """

    def _scored(self, network: Any, wanted: Mapping[str, np.ndarray], key: tuple | None) -> dict[str, Scored]:
        hits = not self.smooth or key == ("full",)
        return {task: self.objectives[task].judge(network, indices, hits) for task, indices in wanted.items()}


def language_objectives(
    experts: Sequence[Expert], tokenizer: Any, split: str, limit: int | None = None, seed: int = 0
) -> dict[str, LanguageObjective]:
    """Each expert's task on a split, prompted as in its training.

    Args:
        split: ``validation`` or ``test``.
        limit: at most so many examples a task, drawn with ``seed``; None takes all.
    """
    found: dict[str, LanguageObjective] = {}
    for expert in experts:
        task, config = expert.definition, AdapterConfig(**expert.card["config"])
        examples = getattr(task.splits(), split)
        if limit is not None:
            examples = examples.sample(limit, seed)
        prompts = prompts_of(task, examples, config.max_words)
        if task.kind == "generation":
            made = GenerationObjective(expert.task, tokenizer, prompts, [str(y) for y in examples.labels])
            made.max_new_tokens = 1 + max(len(ids) for listed in made.tokens[1] for ids in listed)
            found[expert.task] = made
        else:
            labels = [int(y) for y in examples.labels]
            found[expert.task] = LikelihoodObjective(expert.task, tokenizer, prompts, label_words(task), labels)
    return found


def language_problem(
    base: Any, experts: Sequence[Expert], config: ProblemConfig, cache: Cache | None = None
) -> MergeProblem:
    """Assemble the problem; each task's reference score is its own expert's on the same validation examples.

    Args:
        base: asset, folder or name of the model the adapters were trained on.
        experts: folders of :func:`core.merge.adapter_experts.train_adapter`, loaded.
        config: ``max_length`` is not used; texts are cut as in training.

    Raises:
        ValueError: experts of different bases, of another base than this one, of one task, or one that answers nothing
            rightly (see also the parts).
    """
    import torch

    from core.models.gguf import dequantised
    from core.models.load import load_causal, locate
    from core.models.score import resolve_dtype

    check_tasks(experts)
    source = locate(base)
    for expert in experts:
        if expert.card["base_sha256"] != source.sha256:
            raise ValueError(f"expert {expert.task!r} was trained on {expert.base}, which is not this {source.name}")
    folder = dequantised(source, cache) if source.gguf else source.path
    raw = adapter_vectors(folder, {e.task: e.folder for e in experts}, cache)
    lm = load_causal(source, cache=cache)
    tasks = language_objectives(experts, lm.tokenizer, "validation", config.validation_examples, config.seed)
    dtype = getattr(torch, resolve_dtype(config.precision, next(lm.model.parameters()).device.type))
    vectors = in_basis(raw, config.space.basis, cache)
    space = RecipeSpace(vectors, config.space)
    for task, value in own_scores(in_memory(lm.model, raw, space.groups, dtype), tasks).items():
        if not value > 0:
            raise ValueError(
                f"expert {task!r} answers none of its {tasks[task].size} validation examples rightly, which leaves "
                "nothing to normalise by; train it longer"
            )
        tasks[task].reference = value
    model = in_memory(lm.model, vectors, space.groups, dtype)
    size = min(config.batch, min(t.size for t in tasks.values()))
    fitness = LanguageFitness(model, tasks, size, config.seed, config.smooth)
    owners: list[int | None] = [raw.names.index(t) for t in fitness.tasks]
    # a recipe names an adapter with the base it belongs to, as the engine reads it
    folders = {e.task: Path(f"{folder}+{e.folder}") for e in experts}
    return MergeProblem(fitness, space, owners, raw, folders, Path(folder))


def in_memory(network: Any, vectors: TaskVectors, groups: Sequence[int], dtype: Any) -> InMemoryModel:
    """An in-memory model whose buffers keep their precision: rotary frequencies in bfloat16 would move positions."""
    kept = dict(network.named_buffers())
    model = InMemoryModel(network, vectors, groups, dtype)
    for name, buffer in kept.items():
        owner, _, own = name.rpartition(".")
        setattr(network.get_submodule(owner), own, buffer)
    return model
