"""Which rows are points of a curve, and which of them is its end.

The points of a curve are no measurements of their own: a point after ten queries says again most of what the one after
nine said. Statistics over pairs take the end of each curve.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from core.evaluate.rows import Row

CURVES = ("queries", "n")  # settings along which a row is a point of a curve


def uncurved(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that all points of a curve share."""
    return {k: v for k, v in settings.items() if k not in CURVES}


def at_end(curves: Sequence[Hashable], settings: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Whether each point is the last of its curve; a row that is on none is its own end.

    Args:
        curves: what tells the curves apart, one for each point.
        settings: the settings of each point's row.
    """
    at = [max((float(s[c]) for c in CURVES if c in s), default=0.0) for s in settings]
    last: dict[Hashable, float] = {}
    for curve, place in zip(curves, at, strict=True):
        last[curve] = max(last.get(curve, place), place)
    return [place == last[curve] for curve, place in zip(curves, at, strict=True)]


def ends(rows: Sequence[Row]) -> list[Row]:
    """The rows of one run without the earlier points of its curves."""
    curves = [(r.method, r.metric, r.seed, repr(sorted(uncurved(r.settings).items()))) for r in rows]
    kept = at_end(curves, [r.settings for r in rows])
    return [r for r, last in zip(rows, kept, strict=True) if last]
