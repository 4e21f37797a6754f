"""What every optimizer offers: ask, tell, inject, and a state from which it continues identically."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from core.evolve.space import Space

C = TypeVar("C")  # a candidate: an architecture genotype, a vector of merge coefficients, ...


@dataclass(frozen=True)
class Told(Generic[C]):
    """A candidate with its score (larger is better). ``score`` is -inf for a candidate that failed.

    ``parts`` are the score's components (one per task, say) for optimizers that model them; may be empty.
    """

    candidate: C
    score: float
    parts: tuple[float, ...] = ()


class Optimizer(Protocol[C]):
    """Ask-tell optimizer that maximises. Owns its RNG, which is part of its state; the global RNG is never touched.

    Contract (tested for every registered optimizer): same seed and scores give the same candidates whatever the
    global RNG does; ``load_state_dict(state_dict())`` continues identically; arguments are not changed.

    Built as ``OPTIMIZERS.get(name)(space, seed=0, **settings)``.
    """

    space: Space[C]
    batch: int
    """Natural number of candidates to ask at a time (its population or generation size)."""

    def ask(self, n: int = 1) -> list[C]:
        """Propose up to ``n`` candidates to evaluate; an empty list when a finite space is exhausted."""

    def tell(self, results: Sequence[Told[C]]) -> None:
        """Report scores, of asked or of other candidates."""

    def inject(self, candidates: Sequence[C]) -> None:
        """Offer candidates from elsewhere (transfer); they are asked first."""

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state, RNG included."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly from :meth:`state_dict`."""
