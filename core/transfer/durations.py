"""How long a strategy will train: from what it trained before, and from what it will train now."""

from collections.abc import Sequence

import numpy as np

from core.transfer.experience import Experience
from core.transfer.situation import Situation

# Tokens that an example costs beside its own. Of 0, 8, 16, 32 and 64 the nearest for targets that were left out of the
# benchmark's rows: a step has costs that do not grow with the text.
BESIDE = 32.0
TOKENS_A_WORD = 4 / 3  # where tokens were not counted


class Durations:
    """Seconds of a fit by strategy, from the seconds of past fits.

    Training takes parameters times examples passed times what an example costs (:func:`work`); its rate is the median
    of the strategy's experiences. What trains nothing takes the median of its seconds: its cost hardly grows with the
    model, whose features are computed once for all strategies.
    """

    def __init__(self, experiences: Sequence[Experience] = ()):
        self._rates: dict[str, list[float]] = {}
        self._flat: dict[str, list[float]] = {}
        for e in experiences:
            if e.passes:
                self._rates.setdefault(e.strategy, []).append(e.seconds / work(e.situation, e.passes))
            elif e.passes == 0:
                self._flat.setdefault(e.strategy, []).append(e.seconds)

    def of(self, strategy: str, situation: Situation, passes: float) -> float | None:
        """Predicted seconds of a fit that passes so many examples, if it trains; None without experience of it."""
        if strategy in self._rates:
            return float(np.median(self._rates[strategy])) * work(situation, passes)
        return float(np.median(self._flat[strategy])) if strategy in self._flat else None


def work(situation: Situation, passes: float) -> float:
    """Parameters times examples passed (epochs counted) times tokens of an example."""
    tokens = situation.get("tokens") or TOKENS_A_WORD * (situation.get("mean_words") or 0.0)
    return 10 ** float(situation.get("log_parameters") or 0.0) * passes * (tokens + BESIDE)
