"""Random search."""

from collections.abc import Sequence
from typing import TypeVar

from core.evolve.frame import OperatorOptimizer
from core.evolve.optimizers import OPTIMIZERS
from core.evolve.protocol import Told

C = TypeVar("C")


@OPTIMIZERS.register("random", space="operators")
class RandomSearch(OperatorOptimizer[C]):
    """Independent samples of the space's prior."""

    def propose(self) -> C:
        return self.space.sample(self.rng)

    def learn(self, results: Sequence[Told[C]]) -> None:
        """Nothing: the next sample does not depend on scores."""
