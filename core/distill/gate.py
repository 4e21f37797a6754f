"""The head-room check: may this teacher teach, and did it help?

Decided on labelled rows that neither has seen (dev, or cross-validation) and on unlabelled texts, never on test. Two
models are compared row by row: only rows that exactly one of them gets right say anything. Before training the teacher
is compared with the student alone, and a hopeless one is not heard. That says little about what it can teach: a teacher
no better than the student can still make it better with a pool of texts. So the taught student is compared, too, and
given up where the student alone is probably the better one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from core.config import Config


class GateConfig(Config):
    """When a teacher is heard, and when its student is kept.

    Between the two bounds a teacher teaches at less weight. 32 dev rows are few: with a teacher eight points better
    (14 % of rows against 6 %) the posterior lies at or below .3 in one draw of twenty, at or below .05 in one of four
    hundred; with one eight points worse in two draws of three, and in one of five (binomial simulation).
    """

    skip_below: float = Field(0.05, ge=0, le=1, description="posterior of a better teacher below which it is skipped")
    full_above: float = Field(0.3, ge=0, le=1, description="posterior from which it teaches at full weight")
    keep_above: float = Field(
        0.05, ge=0, le=1, description="posterior of a better taught student below which the student alone is taken"
    )
    cross_fit: bool = Field(
        False, description="also tune on dev and look at train: twice the evidence at twice the tuning"
    )
    least_disagreement: float = Field(0.01, ge=0, le=1, description="share of pool texts on which they must differ")


@dataclass(frozen=True)
class HeadRoom:
    """What the check found.

    ``gain``: teacher's accuracy less the student's on held-out labelled rows; ``teacher_only`` and ``student_only``:
    rows that only one got right; ``posterior``: probability that the teacher is the better one; ``disagreement``: share
    of unlabelled texts with different answers (an upper bound of what can be gained); ``weight``: 0 skips the teacher.
    """

    gain: float
    teacher_only: int
    student_only: int
    posterior: float
    disagreement: float
    weight: float

    @property
    def heard(self) -> bool:
        return self.weight > 0


def head_room(
    teacher: np.ndarray,
    student: np.ndarray,
    labels: Sequence[int],
    teacher_pool: np.ndarray,
    student_pool: np.ndarray,
    config: GateConfig | None = None,
) -> HeadRoom:
    """Compare answers (class indices) on held-out labelled rows [m] and on unlabelled texts [n].

    The posterior is that of a sign test with a uniform prior: P(p > 1/2), p ~ Beta(1 + teacher_only, 1 + student_only).

    Raises:
        ValueError: answers and labels of different lengths, or no held-out row.
    """
    from scipy.stats import beta

    config = config or GateConfig()
    labels = np.asarray(labels)
    if not len(labels) or len(teacher) != len(labels) or len(student) != len(labels):
        raise ValueError(f"need answers for every held-out row, got {len(teacher)}, {len(student)} for {len(labels)}")
    if len(teacher_pool) != len(student_pool):
        raise ValueError(f"teacher answered {len(teacher_pool)} pool texts, student {len(student_pool)}")
    right_t, right_s = np.asarray(teacher) == labels, np.asarray(student) == labels
    only_t, only_s = int((right_t & ~right_s).sum()), int((right_s & ~right_t).sum())
    posterior = float(beta.sf(0.5, 1 + only_t, 1 + only_s))
    differ = float((np.asarray(teacher_pool) != np.asarray(student_pool)).mean()) if len(teacher_pool) else 1.0
    span = max(config.full_above - config.skip_below, 1e-9)
    weight = float(np.clip((posterior - config.skip_below) / span, 0.0, 1.0))
    if posterior <= config.skip_below or differ < config.least_disagreement:
        weight = 0.0
    return HeadRoom(float(right_t.mean() - right_s.mean()), only_t, only_s, posterior, differ, weight)


def teacher_weights(rooms: Sequence[HeadRoom]) -> np.ndarray:
    """Weights of an ensemble of teachers by their evidence, summing to one; zeros when none is heard."""
    weights = np.array([r.weight * r.posterior for r in rooms])
    return weights / weights.sum() if weights.sum() > 0 else weights
