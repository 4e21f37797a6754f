"""A generation of merge candidates scored side by side on workers, with the results of scoring them one by one.

The search loop stays where it is: it asks for a generation, races it on a mini-batch, counts every example. What moves
is the arithmetic. When the first candidate of a generation is to be scored, all of the generation are sent out; workers
score the pieces of the mini-batch, and the race then reads the answers in its own order and applies its own rule, so
choices and budget are those of one process. A piece that the race drops has been scored for nothing; that is the price,
in seconds, never in the budget.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from pydantic import Field

from core.config import Config
from core.merge.fitness import Fitness
from core.merge.objectives import Scored
from core.merge.problem import MergeProblem, ProblemConfig, merge_problem
from core.merge.recipe_space import RecipeSpace
from tasks.merge_static import experts_of
from tasks.runner import Executor, Here
from tasks.stage import Artifact


class ProblemPlace(Config):
    """Where a worker finds the problem: folders that it maps, not arrays that travel."""

    base: Artifact
    experts: dict[str, Artifact]
    config: ProblemConfig = Field(description="recipe space and fitness")


@dataclass(frozen=True)
class Piece:
    """One candidate's work: its coefficients [n, g], the round, and how many pieces the mini-batch has."""

    coefficients: np.ndarray
    round: int
    pieces: int


@lru_cache(maxsize=1)
def _opened(place: str) -> MergeProblem:
    """The problem, opened once a worker process."""
    known = ProblemPlace.model_validate_json(place)
    return merge_problem(known.base.folder, experts_of(known.experts), known.config)


def score(place: str, piece: Piece) -> tuple[list[dict[str, Scored]], float]:
    """Per-example scores of every part of the round's mini-batch, and the seconds spent on merging."""
    fitness = _opened(place).fitness
    started = time.perf_counter()
    network = fitness.model.write(piece.coefficients)
    merging = time.perf_counter() - started
    parts = [fitness._scored(network, w, (piece.round, "piece", n)) for n, w in enumerate(pieces_of(fitness, piece))]
    return parts, merging


def pieces_of(fitness: Fitness, piece: Piece) -> list[dict[str, np.ndarray]]:
    """Task -> indices for each part of a round's mini-batch, as the race cuts it."""
    split = {t: np.array_split(fitness.indices(t, piece.round), piece.pieces) for t in fitness.tasks}
    return [{t: s[n] for t, s in split.items()} for n in range(piece.pieces)]


class Late:
    """Stands where the in-memory model stands: a candidate is merged here only if it is scored here."""

    def __init__(self, model: Any):
        self.model = model

    def write(self, coefficients: np.ndarray) -> np.ndarray:
        return np.array(coefficients)

    def hold(self, coefficients: np.ndarray, moving: Any) -> None:
        self.model.hold(coefficients, moving)

    def release(self) -> None:
        self.model.release()


class NotingSpace(RecipeSpace):
    """A recipe space that remembers which recipes were last decoded: a generation is decoded before it is raced."""

    KEPT = 512

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.decoded: list[np.ndarray] = []

    def coefficients(self, x: np.ndarray) -> np.ndarray:
        recipe = super().coefficients(x)
        self.decoded.append(recipe)
        del self.decoded[: -self.KEPT]
        return recipe


@dataclass
class PopulationFitness(Fitness):
    """Fitness whose race pieces come from workers; everything else (tuning, forms, finalists) is scored here."""

    space: NotingSpace | None = None
    place: str = ""
    pieces: int = 1
    executor: Executor = field(default_factory=Here)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._answers: dict[tuple[bytes, int], list[dict[str, Scored]]] = {}

    def _scored(self, network: np.ndarray, wanted: Mapping[str, np.ndarray], key: tuple | None) -> dict[str, Scored]:
        if key is None or key[1:2] != ("piece",):
            return super()._scored(self._merged(network), wanted, key)
        round_, _, number = key
        if (network.tobytes(), round_) not in self._answers:
            self._send_out(network, round_)
        return self._answers[network.tobytes(), round_][number]

    def _send_out(self, first: np.ndarray, round_: int) -> None:
        """Score ``first`` and what was decoded after it: the rest of its generation."""
        decoded = self.space.decoded
        at = max((i for i, r in enumerate(decoded) if np.array_equal(r, first)), default=None)
        generation = [first] if at is None else decoded[at:]
        work = [Piece(r, round_, self.pieces) for r in generation]
        answers = self.executor.map(score, work, self.place)
        self._answers = {(p.coefficients.tobytes(), round_): parts for p, (parts, _) in zip(work, answers, strict=True)}
        self.clock.merging += sum(seconds for _, seconds in answers)

    def _merged(self, coefficients: np.ndarray) -> Any:
        started = time.perf_counter()
        network = self.model.model.write(coefficients)
        seconds = time.perf_counter() - started
        self.clock.merging += seconds
        self.clock.scoring -= seconds  # the caller takes all of this for scoring
        return network


def on_workers(
    problem: MergeProblem, place: ProblemPlace, pieces: int, executor: Executor
) -> tuple[Fitness, RecipeSpace]:
    """The problem's fitness and space, their generations scored by ``executor``; themselves where it is this process.

    A race in one piece does not tell its rounds from other evaluations, so it stays here as well.
    """
    if isinstance(executor, Here) or pieces == 1:
        return problem.fitness, problem.space
    f = problem.fitness
    space = NotingSpace(f.model.vectors, problem.space.config)
    settings = {"batch": f.batch, "seed": f.seed, "smooth": f.smooth, "blocks": f.blocks}
    where = {"space": space, "place": place.model_dump_json(), "pieces": pieces, "executor": executor}
    return PopulationFitness(Late(f.model), f.objectives, **settings, **where), space
