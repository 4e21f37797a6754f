"""One object counts what a run spends; no figure is reported without it."""

from typing import Any

from core.registry import nearest

UNITS = {
    "queries": "true evaluations of a target architecture",
    "task_examples": "validation examples scored by a candidate model, one task each",
    "train_steps": "optimizer steps",
    "train_labels": "gold labels of the target that were looked at",
    "train_examples": "examples passed through training, epochs counted",
    "evaluations": "calls of the objective",
    "simulated_seconds": "training seconds a table says its answers cost",
}


class BudgetExhausted(Exception):
    """The next expense would exceed the limit; nothing was spent."""


class Budget:
    """A counted budget.

    Args:
        unit: one of :data:`UNITS`, what ``limit`` limits.
        limit: largest total of ``unit``; None counts without limiting.

    Other units are counted beside it (:meth:`note`) without a limit.
    """

    def __init__(self, unit: str, limit: float | None = None):
        if unit not in UNITS:
            raise ValueError(f"unknown budget unit {unit!r}{nearest(unit, UNITS)} Allowed: {', '.join(UNITS)}")
        if limit is not None and limit <= 0:
            raise ValueError(f"budget limit must be above 0, got {limit}")
        self.unit, self.limit = unit, limit
        self.counts: dict[str, float] = {unit: 0}

    @property
    def spent(self) -> float:
        return self.counts[self.unit]

    @property
    def left(self) -> float:
        return float("inf") if self.limit is None else self.limit - self.spent

    def affords(self, amount: float) -> bool:
        return amount <= self.left

    def spend(self, amount: float) -> None:
        """Count ``amount`` of the limited unit.

        Raises:
            BudgetExhausted: it does not fit; nothing is counted.
        """
        if amount < 0:
            raise ValueError(f"cannot spend {amount} {self.unit}")
        if not self.affords(amount):
            raise BudgetExhausted(f"{amount:g} {self.unit} asked, {self.left:g} of {self.limit:g} left")
        self.counts[self.unit] += amount

    def note(self, unit: str, amount: float) -> None:
        """Count ``amount`` of another unit (unlimited)."""
        if unit not in UNITS:
            raise ValueError(f"unknown budget unit {unit!r}{nearest(unit, UNITS)} Allowed: {', '.join(UNITS)}")
        self.counts[unit] = self.counts.get(unit, 0) + amount

    def state_dict(self) -> dict[str, Any]:
        return {"unit": self.unit, "limit": self.limit, "counts": dict(self.counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.unit, self.limit, self.counts = state["unit"], state["limit"], dict(state["counts"])
