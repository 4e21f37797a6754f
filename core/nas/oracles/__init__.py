"""Oracles: who says how good an architecture is, on which split, how noisy, and at what cost.

An oracle declares what its answers are and counts them: a true query is charged once for each canonical key, in
``queries`` and ``simulated_seconds`` of :class:`core.transfer.budget.Budget`; asking again is free and gives the same
answer. Where answers are single training runs, :meth:`Oracle.again` has an architecture trained once more, at the price
of another query. Larger values are better; accuracies are in percent. What only a report may look at is in
:meth:`Oracle.reference` and never charged.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np

from core.nas.spaces import Genotype, Space, shown
from core.registry import Registry
from core.transfer.budget import Budget

ORACLES: Registry[type["Oracle"]] = Registry("oracle", "core.nas.oracles")

Noise = Literal["single run", "mean", "none", "surrogate"]


@dataclass(frozen=True)
class Answer:
    """What a query brought.

    ``value``: the objective, larger is better. ``cost_seconds``: training seconds this answer stands for. ``metrics``:
    what else came with it (params, latency, ...). ``flag``: why the value should not be trusted, empty if nothing is
    known against it. ``charged``: whether this call was charged (False for a repeated key).
    """

    value: float
    cost_seconds: float
    metrics: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    flag: str = ""
    charged: bool = True


class Oracle(ABC):
    """Answers queries about genotypes of one space.

    Args:
        budget: what queries are charged to; a fresh unlimited one of unit ``queries`` by default. It may limit another
            unit (``simulated_seconds``); both are always counted.
        seed: decides which training run answers where there are several. The same seed gives each architecture the same
            run, whatever the order of queries.

    Attributes declared by every oracle: ``name``, ``space``, ``dataset``, ``metric``, ``split`` (that search sees),
    ``epochs`` (None where it does not apply), ``noise``, ``cost`` (what ``cost_seconds`` means), ``inputs`` (sha256 of
    the tables or data behind it).
    """

    name: ClassVar[str]
    space: Space
    dataset: str
    metric: str = "accuracy %"
    split: str = "validation"
    epochs: int | None = None
    noise: Noise = "none"
    cost: str = "training seconds stated by the table"
    inputs: Mapping[str, str] = MappingProxyType({})

    def __init__(self, budget: Budget | None = None, seed: int = 0):
        self.budget = budget if budget is not None else Budget("queries")
        self.seed = seed
        self._answers: dict[str, Answer] = {}
        self._repeats: dict[str, int] = {}

    def runs(self, g: Genotype) -> int:
        """How many training runs of ``g`` this oracle can answer with, the first included."""
        return 1

    def answered(self, g: Genotype) -> bool:
        """Whether ``g`` was queried (and charged) before."""
        return self.space.key(g) in self._answers

    def again(self, g: Genotype) -> Answer:
        """Another training run of an architecture that was queried before, charged as a query.

        Raises:
            ValueError: ``g`` was not queried, or all its runs were.
            BudgetExhausted: the budget does not afford it. Not charged.
        """
        key, text = self.space.key(g), self.space.format(g)
        if not self.answered(g):
            raise ValueError(f"{text} was not queried before; its first run is a query")
        done = 1 + self._repeats.get(key, 0)
        if done >= self.runs(g):
            raise ValueError(f"all {done} runs of {text} were asked; {self.describe()} has no other")
        self._afford(g)
        answer = self._repeat(g, done)
        self._charge(1, answer.cost_seconds)
        self._repeats[key] = done
        return answer

    def _repeat(self, g: Genotype, run: int) -> Answer:
        """Run number ``run`` (from 1) after the first of ``g``; for oracles of more than one run."""
        raise NotImplementedError(f"{type(self).__name__} has runs but no way to repeat one")

    def query(self, g: Genotype) -> Answer:
        """The answer for ``g``; charged unless its key was asked before.

        Raises:
            ValueError: ``g`` is no valid genotype of the space, or the oracle knows nothing about it. Not charged.
            BudgetExhausted: the budget does not afford it. Not charged.
        """
        self.space.check(g)
        key = self.space.key(g)
        known = self._answers.get(key)
        if known is not None:
            return replace(known, charged=False)
        self._afford(g)
        answer = self._answer(g)
        self._charge(1, answer.cost_seconds)
        self._answers[key] = answer
        return answer

    @abstractmethod
    def _answer(self, g: Genotype) -> Answer:
        """Look ``g`` up or train it. ``g`` is valid and its key new."""

    def pool(self) -> list[Genotype] | None:
        """All genotypes this oracle can answer, in index order; None when it answers any of the space."""
        return None

    def reference(self, g: Genotype) -> dict[str, float]:
        """What a report may say about ``g`` (test accuracy, mean of runs, regret). Never charged, never for search.

        Raises:
            ValueError: ``g`` is no valid genotype of the space, or the oracle knows nothing about it.
        """
        self.space.check(g)
        return {}

    def describe(self) -> str:
        """One phrase for rows and reports: what answered."""
        epochs = f", {self.epochs} epochs" if self.epochs is not None else ""
        return f"{self.name} {self.dataset}: {self.split} {self.metric}{epochs}, noise: {self.noise}"

    @property
    def queries(self) -> int:
        """Training runs answered and charged: one for each distinct architecture, and those asked again."""
        return len(self._answers) + sum(self._repeats.values())

    def state_dict(self) -> dict[str, Any]:
        """JSON-able: every answer given so far (the budget has its own state)."""
        rows = {key: [a.value, a.cost_seconds, dict(a.metrics), a.flag] for key, a in sorted(self._answers.items())}
        return {"oracle": self.describe(), "seed": self.seed, "answers": rows, "repeats": dict(self._repeats)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict` of an oracle with the same declaration and seed, else ValueError."""
        if (state["oracle"], state["seed"]) != (self.describe(), self.seed):
            raise ValueError(
                f"state of {state['oracle']!r} with seed {state['seed']}, this oracle is {self.describe()!r} with seed "
                f"{self.seed}"
            )
        self._answers = {key: Answer(v, c, m, f) for key, (v, c, m, f) in state["answers"].items()}
        self._repeats = dict(state.get("repeats", {}))  # states of earlier versions have none

    def _afford(self, g: Genotype) -> None:
        """Refuse before the work where the cost is known before: one query."""
        if self.budget.unit == "queries" and not self.budget.affords(1):
            self.budget.spend(1)  # raises with the amounts

    def _charge(self, queries: int, seconds: float) -> None:
        amounts = {"queries": queries, "simulated_seconds": seconds}
        self.budget.spend(amounts.get(self.budget.unit, 0))
        for unit, amount in amounts.items():
            if unit != self.budget.unit:
                self.budget.note(unit, amount)


class TableOracle(Oracle):
    """An oracle whose answers all stand in a table, with vectorised access by row index.

    Subclasses set ``cells`` (genotypes in row order), ``answers`` and ``seconds`` (float ``[rows]``) and ``columns``
    (name -> float ``[rows]``: further metrics of an answer), ``report`` (name -> float ``[rows]``: reference only).
    """

    cells: Sequence[Genotype]
    answers: np.ndarray
    seconds: np.ndarray
    columns: Mapping[str, np.ndarray] = MappingProxyType({})
    report: Mapping[str, np.ndarray] = MappingProxyType({})

    def __init__(self, budget: Budget | None = None, seed: int = 0):
        super().__init__(budget, seed)
        self._asked: np.ndarray | None = None

    @abstractmethod
    def index(self, g: Genotype) -> int:
        """Row of ``g``. Raises ValueError when the table has none."""

    def query(self, g: Genotype) -> Answer:
        self.space.check(g)
        row = self.index(g)
        new = not self.asked[row]
        self.values(np.array([row]))
        metrics = {name: float(column[row]) for name, column in self.columns.items()}
        return Answer(float(self.answers[row]), float(self.seconds[row]), metrics, self.flag(row), charged=new)

    def answered(self, g: Genotype) -> bool:
        return bool(self.asked[self.index(g)])

    def values(self, indices: np.ndarray) -> np.ndarray:
        """Answers of many rows at once, float ``[len(indices)]``; each row is charged the first time only.

        Raises:
            ValueError: not integers. IndexError: a row that is not there.
            BudgetExhausted: the rows not asked before do not all fit; nothing is charged.
        """
        indices = integers(indices, "rows")
        fresh = indices[~self.asked[indices]]
        if len(fresh):
            fresh = np.unique(fresh % len(self.answers))
            self._charge(len(fresh), float(self.seconds[fresh].sum()))
            self.asked[fresh] = True
        return self.answers[indices]

    @property
    def asked(self) -> np.ndarray:
        """Which rows were charged, bool ``[rows]``."""
        if self._asked is None:
            self._asked = np.zeros(len(self.answers), dtype=bool)
        return self._asked

    def flag(self, row: int) -> str:
        """Why the answer of ``row`` should not be trusted; empty by default."""
        return ""

    def pool(self) -> list[Genotype]:
        return list(self.cells)

    def reference(self, g: Genotype) -> dict[str, float]:
        self.space.check(g)
        row = self.index(g)
        return {name: float(column[row]) for name, column in self.report.items()}

    def references(self, name: str) -> np.ndarray:
        """A reference column for all rows, float ``[rows]``; reporting only."""
        if name not in self.report:
            raise ValueError(f"{self.describe()} has no reference {name!r}; it has: {', '.join(self.report) or 'none'}")
        return self.report[name]

    @property
    def queries(self) -> int:
        return int(self.asked.sum()) + sum(self._repeats.values())

    def state_dict(self) -> dict[str, Any]:
        said = {"oracle": self.describe(), "seed": self.seed, "repeats": dict(self._repeats)}
        return said | {"asked": np.flatnonzero(self.asked).tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict({**state, "answers": {}})
        self._asked = np.zeros(len(self.answers), dtype=bool)
        self._asked[state["asked"]] = True

    def _answer(self, g: Genotype) -> Answer:
        raise NotImplementedError("table oracles answer through query and values")


def integers(values: Any, what: str) -> np.ndarray:
    """``values`` as an array of integers. Raises ValueError for other numbers, text, or lists of different lengths."""
    try:
        array = np.asarray(values)
    except ValueError:
        raise ValueError(f"{what} are integers in lists of one length, got {shown(values)}") from None
    if array.size and array.dtype.kind not in "iu":
        raise ValueError(f"{what} are integers, got {array.dtype} {shown(values)}")
    return array if array.size else array.astype(np.int64)


def get_oracle(name: str, **settings: Any) -> Oracle:
    """The oracle called ``name`` with its settings (data set, seed, budget, paths)."""
    return ORACLES.get(name)(**settings)
