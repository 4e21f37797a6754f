"""Whether values measured again are those that were stored.

On the same hardware they must be equal. Other hardware rounds otherwise, and a search or a training that is one
rounding off ends elsewhere: there a value must lie within what the seeds of the same method and settings do.
"""

import math
import statistics
from collections.abc import Sequence

from scipy.stats import t

from core.evaluate.rows import Row

LEVEL = 0.01  # chance that a cell measured on other hardware is refused though nothing is wrong
FEWEST = 3  # seeds that an interval is taken of; of fewer a difference is told and not judged


class DisagreementError(ValueError):
    """A value measured again is not the stored one."""


def compared(before: Sequence[Row], after: Sequence[Row], hardware: str, seeds: Sequence[Row] = ()) -> str:
    """What came of measuring rows again, as words.

    Args:
        before: the stored rows, without timings.
        after: the same, measured again.
        hardware: what measured them again.
        seeds: rows of all seeds; without them every value must be equal, wherever it was measured.

    Raises:
        DisagreementError: a value is gone or another; on other hardware, outside the prediction interval for a further
            seed (Student's t, :data:`LEVEL` shared out among the rows).
    """
    again = {(r.metric, r.oracle): r.value for r in after}
    changed = [(r, value) for r in before if not _same(r.value, value := again.get((r.metric, r.oracle)))]
    if not changed:
        return f"{len(before)} rows agree"
    judged = 0
    for row, value in changed:
        interval = _interval(row, seeds, LEVEL / len(before))
        elsewhere = bool(seeds) and row.hardware != hardware
        gone = value is None  # no rounding takes a value away
        if gone or not elsewhere or (interval is not None and not interval[0] <= value <= interval[1]):
            raise DisagreementError(_disagreement(row, value, hardware, interval if elsewhere else None))
        judged += interval is not None
    row, value = max(changed, key=lambda pair: _distance(pair[0].value, pair[1]))
    told = [f"{len(before) - len(changed)} of {len(before)} rows agree"]
    told += [f"measured on {row.hardware or 'unnamed hardware'}, here {hardware}"]
    told += [f"{judged} differ by no more than seeds do"] if judged else []
    told += [f"{len(changed) - judged} differ with too few seeds to judge"] if len(changed) > judged else []
    return "; ".join([*told, f"largest difference: {row.metric} {_short(row.value)}, here {_short(value)}"])


def _disagreement(row: Row, value: float | None, hardware: str, interval: tuple[float, float] | None) -> str:
    beyond = f": a further seed would lie between {interval[0]:.4g} and {interval[1]:.4g}" if interval else ""
    return (
        f"{row.metric}: stored {row.value} (on {row.hardware or 'unnamed hardware'}), "
        f"recomputed {value} (on {hardware}){beyond}"
    )


def _interval(row: Row, rows: Sequence[Row], level: float) -> tuple[float, float] | None:
    """Where one further seed of the row's method and settings lies, but with probability ``level``."""
    what = (row.method, row.settings, row.metric, row.oracle)
    alike = [r for r in rows if (r.method, r.settings, r.metric, r.oracle) == what and r.value is not None]
    values = list({r.seed: r.value for r in alike}.values())
    if row.value is None or len(values) < FEWEST:
        return None
    mean, n = statistics.fmean(values), len(values)
    reach = float(t.ppf(1 - level / 2, n - 1)) * statistics.stdev(values) * math.sqrt(1 + 1 / n)
    return mean - reach, mean + reach


def _distance(a: float | None, b: float | None) -> float:
    return math.inf if a is None or b is None else abs(a - b)


def _short(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4g}"


def _same(a: float | None, b: float | None) -> bool:
    return a == b if a is None or b is None else math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9)
