"""The one search loop: ask, evaluate, count, tell, inject, checkpoint.

Structure and system level run this same function; what differs is the space, the optimizer and the evaluator.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from core.evolve.injection import Injection
from core.evolve.protocol import Optimizer, Told
from core.progress import track
from core.state import StateError, load_checkpoint, save_checkpoint
from core.transfer.budget import Budget

C = TypeVar("C")
KIND, SCHEMA = "search", 1


@dataclass(frozen=True)
class Evaluation:
    """What an evaluator answers for a candidate.

    Args:
        score: larger is better; NaN or -inf for a candidate that failed (the run goes on).
        cost: budget it took, at most the ``price`` of the search.
        parts: the score's components (per-task scores), if any.
        note: why it failed, or anything worth keeping.
    """

    score: float
    cost: float = 1.0
    parts: tuple[float, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Trial(Generic[C]):
    """An evaluated candidate; ``spent`` is the budget spent once it was scored, ``injected`` whether it came by
    transfer."""

    candidate: C
    score: float
    cost: float
    spent: float
    generation: int
    injected: bool = False
    parts: tuple[float, ...] = ()
    note: str = ""


@dataclass
class SearchResult(Generic[C]):
    """All trials in order. ``best`` is the trial of the highest score (the first of them); None if all failed."""

    trials: list[Trial[C]] = field(default_factory=list)
    generations: int = 0

    @property
    def best(self) -> Trial[C] | None:
        finished = [t for t in self.trials if math.isfinite(t.score)]
        return max(finished, key=lambda t: t.score) if finished else None

    def best_within(self, spent: float) -> Trial[C] | None:
        """The best trial among those scored within ``spent`` budget."""
        return SearchResult([t for t in self.trials if t.spent <= spent]).best


class Stateful(Protocol):
    """Anything that must be checkpointed with a search (an evaluator's mini-batch order, a racing reference)."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def search(
    optimizer: Optimizer[C],
    evaluate_many: Callable[[list[C]], Sequence[Evaluation | float]],
    budget: Budget,
    *,
    price: float = 1.0,
    batch: int | None = None,
    checkpoint: str | Path | None = None,
    key: str = "",
    also: Mapping[str, Stateful] | None = None,
    on_generation: Callable[[int, Sequence[Trial[C]]], None] | None = None,
    injector: Injection[C] | None = None,
    max_generations: int | None = None,
    description: str = "search",
) -> SearchResult[C]:
    """Search until the budget affords no further candidate (or the space is exhausted).

    Args:
        evaluate_many: candidates -> one :class:`Evaluation` (or plain score of cost 1) each, in order.
        budget: counted here; an evaluator that counts by itself answers cost 0.
        price: most a single candidate can cost; decides how many are asked.
        batch: candidates a generation; the optimizer's own ``batch`` when None.
        checkpoint: file written after every generation; if it is there the search continues from it identically.
        key: content key of the run; a checkpoint written under another key is refused.
        also: further objects whose state is kept in the checkpoint.
        on_generation: called with the generation's number and its trials, after they were told.

    Raises:
        ValueError: the budget does not afford one candidate at the start.
        StateError: the checkpoint belongs to another run, or is damaged.
    """
    result: SearchResult[C] = SearchResult()
    parts = {"optimizer": optimizer, "budget": budget, **({"injector": injector} if injector else {}), **(also or {})}
    if checkpoint is not None and Path(checkpoint).exists():
        _resume(Path(checkpoint), key, optimizer, parts, result)
    elif not budget.affords(price):
        raise ValueError(f"the budget leaves {budget.left:g} {budget.unit}, one candidate costs up to {price:g}")
    total = budget.limit if budget.limit is not None else math.inf
    with track(description, total if math.isfinite(total) else 1, budget.unit) as bar:
        bar.advance(budget.spent if math.isfinite(total) else 0)
        while max_generations is None or result.generations < max_generations:
            wanted = batch or optimizer.batch
            if price > 0:
                wanted = min(wanted, int(min(budget.left / price + 1e-9, 1e9)))
            before = budget.spent
            trials = _generation(optimizer, evaluate_many, budget, wanted, result, injector) if wanted > 0 else []
            if not trials:
                break
            bar.advance(budget.spent - before if math.isfinite(total) else 0)
            if on_generation is not None:
                on_generation(result.generations, trials)
            if checkpoint is not None:
                _save(Path(checkpoint), key, optimizer, parts, result)
    return result


def _generation(
    optimizer: Optimizer[C],
    evaluate_many: Callable[[list[C]], Sequence[Evaluation | float]],
    budget: Budget,
    wanted: int,
    result: SearchResult[C],
    injector: Injection[C] | None,
) -> list[Trial[C]]:
    """Ask, evaluate, charge and tell one generation; its trials are appended to ``result``."""
    number = result.generations + 1
    injected: set[str] = set()
    if injector is not None:
        offered = injector.propose(number)
        if offered:
            optimizer.inject(offered)
            injected = {optimizer.space.key(c) for c in offered}
    candidates = optimizer.ask(wanted)
    if not candidates:
        return []
    answers = list(evaluate_many(candidates))
    if len(answers) != len(candidates):
        raise ValueError(f"the evaluator answered {len(answers)} of {len(candidates)} candidates")
    trials = []
    for candidate, answer in zip(candidates, answers, strict=True):
        answer = answer if isinstance(answer, Evaluation) else Evaluation(float(answer))
        budget.spend(answer.cost)
        score = answer.score if math.isfinite(answer.score) else -math.inf
        came = optimizer.space.key(candidate) in injected
        trials.append(
            Trial(candidate, score, answer.cost, budget.spent, number, came, tuple(answer.parts), answer.note)
        )
    optimizer.tell([Told(t.candidate, t.score, t.parts) for t in trials])
    if injector is not None:
        injector.observe([t.score for t in trials if t.injected], [t.score for t in trials if not t.injected])
    result.trials += trials
    result.generations = number
    return trials


def _save(path: Path, key: str, optimizer: Optimizer[C], parts: Mapping[str, Stateful], result: SearchResult) -> None:
    rows = [
        [optimizer.space.to_json(t.candidate), t.score, t.cost, t.spent, t.generation, t.injected, t.parts, t.note]
        for t in result.trials
    ]
    payload = {"key": key, "generations": result.generations, "trials": rows}
    save_checkpoint(path, payload | {"state": {n: p.state_dict() for n, p in parts.items()}}, kind=KIND, schema=SCHEMA)


def _resume(path: Path, key: str, optimizer: Optimizer[C], parts: Mapping[str, Stateful], result: SearchResult) -> None:
    payload, _, _ = load_checkpoint(path, kind=KIND, schema=SCHEMA)
    if payload["key"] != key:
        raise StateError(f"{path} is the checkpoint of another run; give another path or remove it")
    if set(payload["state"]) != set(parts):
        raise StateError(f"{path} holds the state of {sorted(payload['state'])}, this run has {sorted(parts)}")
    for name, part in parts.items():
        part.load_state_dict(payload["state"][name])
    result.generations = payload["generations"]
    result.trials = [
        Trial(optimizer.space.from_json(c), float(s), cost, spent, g, injected, tuple(p), note)
        for c, s, cost, spent, g, injected, p, note in payload["trials"]
    ]
