"""A generation of merge candidates scored side by side on workers (see :mod:`core.merge.population`)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from pydantic import Field

from core.config import Config
from core.merge.align import Head
from core.merge.fitness import Clock, Fitness
from core.merge.language import LanguageFitness
from core.merge.objectives import Scored
from core.merge.population import PopulationFitness
from core.merge.problem import MergeProblem, ProblemConfig
from tasks.assemble import OwnFitness, problem_of
from tasks.runner import Executor, Here
from tasks.stage import Artifact


class ProblemPlace(Config):
    """Where a worker finds the problem: folders that it maps, not arrays that travel."""

    base: Artifact
    experts: dict[str, Artifact]
    config: ProblemConfig = Field(description="recipe space and fitness")
    fitness: OwnFitness | None = Field(None, description="a user's function in place of the tasks' own scores")
    choices: tuple[str, ...] = Field((), description="components that a recipe may choose from")


@dataclass(frozen=True)
class Piece:
    """One candidate's work: its coefficients [n, g], the round, the pieces of its mini-batch, and aligned heads."""

    coefficients: np.ndarray
    round: int
    pieces: int
    heads: dict[str, Head] = field(default_factory=dict)


@lru_cache(maxsize=1)
def _opened(place: str) -> MergeProblem:
    """The problem, opened once a worker process; a call is one candidate, so none are scored together."""
    known = ProblemPlace.model_validate_json(place)
    alone = known.config.model_copy(update={"together": 1})
    return problem_of(known.base, known.experts, alone, known.fitness, known.choices)


def score(place: str, piece: Piece) -> tuple[list[dict[str, Scored]], Clock]:
    """Per-example scores of every part of the round's mini-batch, and the seconds they took."""
    fitness = _opened(place).fitness
    fitness.clock = Clock()
    fitness.use(piece.heads)
    (parts,) = fitness.in_pieces([piece.coefficients], piece.round, piece.pieces)
    return list(parts), fitness.clock


@dataclass(frozen=True)
class OnWorkers:
    """A :class:`core.merge.population.Generation` whose candidates are sent out, one a call."""

    place: str
    executor: Executor

    def __call__(
        self, fitness: Fitness, candidates: Sequence[np.ndarray], round_: int, parts: int
    ) -> list[list[dict[str, Scored]]]:
        tasks = {t: fitness.objectives[t] for t in fitness.targets}
        heads = {t: Head(o.weight, o.bias) for t, o in tasks.items()}
        answers = self.executor.map(score, [Piece(c, round_, parts, heads) for c in candidates], self.place)
        for _, clock in answers:
            fitness.clock.add(clock)
        return [scored for scored, _ in answers]


class LanguagePopulation(LanguageFitness, PopulationFitness):
    """Generations of a language model's recipes; what is scored one by one is scored as a language model."""


def on_workers(fitness: Fitness, place: ProblemPlace, executor: Executor) -> Fitness:
    """The fitness with its generations scored by ``executor``; itself where that is this process."""
    if isinstance(executor, Here):
        return fitness
    kind = LanguagePopulation if isinstance(fitness, LanguageFitness) else PopulationFitness
    return kind.of(fitness, OnWorkers(place.model_dump_json(), executor))
