"""The merge problem of a base and its experts: an encoder with heads, or a causal language model with adapters."""

import logging
from collections.abc import Mapping, Sequence

from pydantic import Field

from core.config import Config
from core.merge.batched import free_memory
from core.merge.candidate import needed_memory
from core.merge.choices import with_choices
from core.merge.fitness import Fitness
from core.merge.language import language_problem
from core.merge.objectives import FunctionObjective
from core.merge.own_fitness import identity, load_function, scored_by
from core.merge.problem import MergeProblem, ProblemConfig, merge_problem
from tasks.load_model import opened
from tasks.merge_static import are_adapters, experts_of
from tasks.stage import Artifact

log = logging.getLogger(__name__)


class OwnFitness(Config):
    """A user's function in place of the tasks' own scores."""

    name: str = Field(description="module:function, file.py:function, or lm-eval:task")
    sha256: str = Field(description="of its file, or of the tasks")


def own_fitness(name: str) -> OwnFitness | None:
    """The function called ``name`` as its file is now; None for no name.

    Raises:
        ValueError: no such file or module.
    """
    return OwnFitness(name=name, sha256=identity(name)) if name else None


def problem_of(
    base: Artifact,
    experts: Mapping[str, Artifact],
    config: ProblemConfig,
    fitness: OwnFitness | None = None,
    choices: Sequence[str] = (),
) -> MergeProblem:
    """What every search and form works on, whichever kind of model the base is.

    Args:
        choices: components that a recipe may choose from; none is the one basis of ``config``.

    Raises:
        ValueError: experts of different bases, of one task, or not matching the base; one that answers nothing rightly.
    """
    problem = _problem(base, experts, config, fitness)
    return with_choices(problem, choices) if choices else problem


def exactly(
    problem: MergeProblem,
    base: Artifact,
    experts: Mapping[str, Artifact],
    config: ProblemConfig,
    choices: Sequence[str] = (),
) -> Fitness | None:
    """The problem's fitness in float32.

    None where it is scored so already, by a user's function, or where a second model would not leave half of the memory
    that is free now.
    """
    import torch

    model = problem.fitness.model
    own = any(isinstance(o, FunctionObjective) for o in problem.fitness.objectives.values())
    if own or model.dtype == torch.float32:
        return None
    need = needed_memory(model.vectors) + 4 * sum(p.numel() for p in model.model.parameters())
    if need > (free := free_memory(model.device)) / 2:
        log.warning(
            "finalists are scored in %s: float32 takes %.0f MiB more, %.0f MiB are free",
            str(model.dtype).removeprefix("torch."),
            need / 2**20,
            free / 2**20,
        )
        return None
    return problem_of(base, experts, config.model_copy(update={"precision": "float32"}), choices=choices).fitness


def _problem(
    base: Artifact, experts: Mapping[str, Artifact], config: ProblemConfig, fitness: OwnFitness | None
) -> MergeProblem:
    found = experts_of(experts)
    if are_adapters(found):
        problem = language_problem(opened(base), found, config)
        tokenizer = next(iter(problem.fitness.objectives.values())).tokenizer
    else:
        problem = judged(merge_problem(base.folder, found, config))
        tokenizer = problem.fitness.model.model.tokenizer
    if fitness is None:
        return problem
    return scored_by(problem, fitness.name, load_function(fitness.name), tokenizer, config.seed)


def judged(problem: MergeProblem) -> MergeProblem:
    """The problem, when every task can be scored relative to its expert.

    Raises:
        ValueError: an expert that got no validation example right. A single right answer on its task would count for
            more than all other tasks together.
    """
    for name, task in problem.fitness.objectives.items():
        if task.reference < 1 / task.size:  # less than one answer
            raise ValueError(
                f"the expert of {name!r} got none of its {task.size} validation examples right, and a search scores "
                "every merge relative to it; give it more examples or epochs, or leave the task out (flow merge "
                "reports such a task beside the others)"
            )
    return problem
