"""Tables that hold several training runs of a cell: one answers a query, the others can be asked as further queries."""

import numpy as np

from core.nas.oracles import Answer, TableOracle
from core.nas.spaces import Genotype
from core.transfer.budget import Budget


class RunsTable(TableOracle):
    """A table of training runs.

    Args:
        noise: "single run" (one random training run answers, chosen by ``seed``) or "mean" of all runs.
    """

    cost = "training seconds of the answering run, stated by the benchmark"

    def __init__(self, noise: str = "single run", seed: int = 0, budget: Budget | None = None):
        if noise not in ("single run", "mean"):
            raise ValueError(f"noise is 'single run' or 'mean', got {noise!r}")
        super().__init__(budget, seed)
        self.noise = noise

    def fill(self, measured: np.ndarray, seconds: np.ndarray) -> None:
        """Take over validation runs and their training seconds, both ``[rows, runs]``, NaN where a row has fewer."""
        self.measured, self.run_seconds = measured, seconds
        single, self.first = chosen_runs(measured, self.seed)
        mean, one = np.nanmean(measured, axis=1), self.noise == "single run"
        self.answers = single if one else mean
        self.seconds = seconds[np.arange(len(single)), self.first] if one else np.nansum(seconds, axis=1)
        self.report = {"valid_mean": mean, "valid_unqueried": others_mean(measured, self.first)}

    def runs(self, g: Genotype) -> int:
        """The training runs in the table; one where the mean of all answers."""
        return 1 if self.noise == "mean" else len(self._order(g))

    def _order(self, g: Genotype) -> np.ndarray:
        """Columns of a cell's runs as they are asked: from the first on, around."""
        row = self.index(g)
        columns = np.flatnonzero(~np.isnan(self.measured[row]))
        return np.roll(columns, -int(np.flatnonzero(columns == self.first[row])[0]))

    def _repeat(self, g: Genotype, run: int) -> Answer:
        row, column = self.index(g), self._order(g)[run]
        metrics = {name: float(values[row]) for name, values in self.columns.items()}
        return Answer(float(self.measured[row, column]), float(self.run_seconds[row, column]), metrics)

    def reference(self, g: Genotype) -> dict[str, float]:
        """As of every table; ``valid_unqueried`` leaves out runs asked again, too, and is absent where none is left."""
        found, repeated = super().reference(g), self._repeats.get(self.space.key(g), 0)
        if repeated:
            del found["valid_unqueried"]
            left = self._order(g)[1 + repeated :]
            if len(left):
                found["valid_unqueried"] = float(self.measured[self.index(g), left].mean())
        return found


def chosen_runs(runs: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """One random run for each row, and its column.

    Args:
        runs: float ``[rows, most runs]``, NaN where a row has fewer; every row has at least one, runs come first.
        seed: the same seed chooses the same runs.

    Returns:
        values ``[rows]`` and column numbers ``[rows]``.
    """
    count = (~np.isnan(runs)).sum(1)
    column = (np.random.default_rng(seed).random(len(runs)) * count).astype(np.int64)
    return runs[np.arange(len(runs)), column], column


def others_mean(runs: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Mean over the runs that :func:`chosen_runs` did not choose, NaN where there is no other, ``[rows]``."""
    rest = runs.copy()
    rest[np.arange(len(runs)), column] = np.nan
    count = (~np.isnan(rest)).sum(1)
    return np.where(count > 0, np.nansum(rest, axis=1) / np.maximum(count, 1), np.nan)
