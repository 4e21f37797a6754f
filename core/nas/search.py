"""A structure search against an oracle: the one loop of core.evolve, queries counted by the oracle itself."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from core.evolve.injection import Injection
from core.evolve.loop import Evaluation, SearchResult, search
from core.nas.oracles import Oracle
from core.nas.searchers import best_told
from core.nas.spaces import Genotype
from core.transfer.budget import BudgetExhausted

TOO_DEAR = "the budget does not afford it"


@threadpool_limits.wrap(limits=1, user_api="blas")  # more threads sum in another order: one rounding, other cells
def search_architectures(
    oracle: Oracle,
    searcher: Any,
    *,
    checkpoint: str | Path | None = None,
    key: str = "",
    injector: Injection[Genotype] | None = None,
    on_generation: Callable[[int, Sequence[Any]], None] | None = None,
) -> SearchResult[Genotype]:
    """Search until the oracle's budget is spent.

    A budget of queries is spent exactly. Of another unit (training seconds) the cost of a query is known afterwards
    only: then cells are asked one at a time until one is refused as too dear.

    A searcher that declares ``repeats`` asks a cell again to have it trained once more, a query of its own; for others
    asking again is free.

    An answer that the oracle flags as not to be trusted counts as a query and as a failure. The metrics that come with
    an answer (parameters, latency) are kept in the trial's note for reports.

    Raises:
        ValueError: the oracle's budget has no limit.
    """
    if oracle.budget.limit is None:
        raise ValueError("a search needs a limited budget; give the oracle one, e.g. Budget('queries', 100)")

    counted = oracle.budget.unit == "queries"
    asker = searcher if counted else _UntilRefused(searcher)

    repeats = getattr(searcher, "repeats", False)

    def evaluate(cells: list[Genotype]) -> list[Evaluation]:
        try:
            answers = [oracle.again(c) if repeats and oracle.answered(c) else oracle.query(c) for c in cells]
        except BudgetExhausted:
            if counted:
                raise
            asker.refused = True
            return [Evaluation(float("-inf"), cost=0.0, note=TOO_DEAR)]
        return [Evaluation(float("-inf") if a.flag else a.value, cost=0.0, note=a.flag) for a in answers]

    found = search(
        asker,
        evaluate,
        oracle.budget,
        price=1.0 if counted else 0.0,
        batch=None if counted else 1,
        checkpoint=checkpoint,
        key=key,
        also={"oracle": oracle},
        on_generation=on_generation,
        injector=injector,
        description=f"search {oracle.space.name}",
    )
    found.trials = [t for t in found.trials if t.note != TOO_DEAR]
    return found


class _UntilRefused:
    """A searcher that is asked no more once the budget refused a cell."""

    def __init__(self, searcher: Any):
        self.searcher, self.refused = searcher, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.searcher, name)

    def ask(self, n: int = 1) -> list[Genotype]:
        return [] if self.refused else self.searcher.ask(n)


def incumbent(searcher: Any, result: SearchResult[Genotype], first: int | None = None) -> Genotype | None:
    """The cell a run would keep after its first ``first`` answers: the searcher's own choice, else the best answer."""
    if hasattr(searcher, "incumbent"):
        return searcher.incumbent(first)
    return best_told(result.trials[:first])
