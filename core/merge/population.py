"""A generation of merge candidates scored together, with the results of scoring them one by one.

The search loop stays as it is: it asks for a generation, races it on a mini-batch, counts every example. What moves is
the arithmetic. The whole generation is scored on the whole mini-batch first; the race then reads the answers in its own
order and applies its own rule, so choices and budget are those of one candidate after the other. A piece that the race
drops has been scored for nothing; that is the price, in seconds, never in the budget.

Where that pays: many candidates in one forward of an accelerator (:mod:`core.merge.batched`), or workers side by side.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Protocol

import numpy as np

from core.merge.fitness import Fitness
from core.merge.objectives import Scored


class Generation(Protocol):
    """Scores all candidates of a generation."""

    def __call__(
        self, fitness: Fitness, candidates: Sequence[np.ndarray], round_: int, parts: int
    ) -> list[list[dict[str, Scored]]]:
        """For each candidate, task -> scores on each piece of the round's mini-batch.

        Args:
            fitness: what is asked for; its model may be used, its clock takes the seconds and the candidates.
            candidates: coefficients [n, g] each.
            parts: pieces, as :meth:`Fitness.pieces` cuts them.
        """


@dataclass
class PopulationFitness(Fitness):
    """Fitness whose generations are scored by ``generation``; tuning, forms and finalists stay one by one."""

    generation: Generation = field(kw_only=True)

    @classmethod
    def of(cls, fitness: Fitness, generation: Generation) -> "PopulationFitness":
        """The same fitness, its generations scored by ``generation``."""
        same = cls(**{f.name: getattr(fitness, f.name) for f in fields(Fitness)}, generation=generation)
        same.control = fitness.control
        return same

    def in_pieces(self, candidates: Sequence[np.ndarray], round_: int, parts: int) -> list[list[dict[str, Scored]]]:
        return self.generation(self, candidates, round_, parts)
