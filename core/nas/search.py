"""A structure search against an oracle: the one loop of core.evolve, queries counted by the oracle itself."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from core.evolve.injection import Injection
from core.evolve.loop import Evaluation, SearchResult, search
from core.nas.oracles import Oracle
from core.nas.searchers import best_told
from core.nas.spaces import Genotype


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

    An answer that the oracle flags as not to be trusted counts as a query and as a failure. The metrics that come with
    an answer (parameters, latency) are kept in the trial's note for reports.

    Raises:
        ValueError: the oracle's budget has no limit.
    """
    if oracle.budget.limit is None:
        raise ValueError("a search needs a limited budget; give the oracle one, e.g. Budget('queries', 100)")

    def evaluate(cells: list[Genotype]) -> list[Evaluation]:
        answers = [oracle.query(c) for c in cells]
        return [Evaluation(float("-inf") if a.flag else a.value, cost=0.0, note=a.flag) for a in answers]

    price = 1.0 if oracle.budget.unit == "queries" else 0.0
    return search(
        searcher,
        evaluate,
        oracle.budget,
        price=price,
        checkpoint=checkpoint,
        key=key,
        also={"oracle": oracle},
        on_generation=on_generation,
        injector=injector,
        description=f"search {oracle.space.name}",
    )


def incumbent(searcher: Any, result: SearchResult[Genotype], first: int | None = None) -> Genotype | None:
    """The cell a run would keep after its first ``first`` answers: the searcher's own choice, else the best answer."""
    if hasattr(searcher, "incumbent"):
        return searcher.incumbent(first)
    return best_told(result.trials[:first])
