"""What the parts of a run took together."""

from collections.abc import Iterable, Mapping

from tasks.stage import Artifact

SHARED = "labels"  # units that end so: parts of a run learn from the same ones


def together(parts: Iterable[Artifact]) -> dict[str, float]:
    """The budgets of stages summed by unit; of labels, which all of them read, the most that one has read."""
    total: dict[str, float] = {}
    for part in parts:
        spent: Mapping[str, float] = part.facts().get("budget") or {}
        for unit, amount in spent.items():
            total[unit] = max(total.get(unit, 0), amount) if unit.endswith(SHARED) else total.get(unit, 0) + amount
    return total
