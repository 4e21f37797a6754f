"""A box of real coordinates with choices beside them: numbers and categories searched together."""

from collections.abc import Sequence

import numpy as np

from core.evolve.space import Box


class Mixed(Box):
    """Vectors of ``d`` real coordinates followed by ``c`` choices, each written as the index of its category.

    Args:
        box: of the real coordinates.
        categories: for each choice how many categories it has, two or more.
        likely: first probabilities [c, most categories], above zero for a choice's own categories; even when None.

    Raises:
        ValueError: no choice, one of a single category, or probabilities that are none.
    """

    def __init__(self, box: Box, categories: Sequence[int], likely: np.ndarray | None = None):
        self.categories = np.array(categories, dtype=int)
        if self.categories.ndim != 1 or not self.categories.size or (self.categories < 2).any():
            raise ValueError(f"choices need two or more categories each, got {list(categories)}")
        zeros = np.zeros(self.categories.size)
        lower, upper = np.append(box.lower, zeros), np.append(box.upper, self.categories - 1.0)
        super().__init__(lower, upper, np.append(box.start, zeros), np.append(box.step, zeros + 1.0))
        self.box = box
        self.likely = self._checked(likely)
        self.start[self.reals :] = self.likely.argmax(axis=1)

    def _checked(self, likely: np.ndarray | None) -> np.ndarray:
        if likely is None:
            return self.even
        own = self.even > 0
        likely = np.array(likely, dtype=float)
        if likely.shape != own.shape or ((likely > 0) != own).any() or not np.allclose(likely.sum(axis=1), 1):
            raise ValueError(
                f"probabilities must be {list(own.shape)}, above 0 for a choice's own categories and 0 beyond them, of "
                "sum 1 each"
            )
        return likely

    @property
    def even(self) -> np.ndarray:
        """Even probabilities [c, most categories] of the choices."""
        return (np.arange(self.categories.max()) < self.categories[:, None]) / self.categories[:, None]

    @property
    def reals(self) -> int:
        """Number of real coordinates."""
        return self.box.dimensions

    def clip(self, x: np.ndarray) -> np.ndarray:
        """The nearest vector of the space: numbers within bounds, choices whole."""
        return np.concatenate([self.box.clip(x[: self.reals]), self.chosen(x)])

    def chosen(self, x: np.ndarray) -> np.ndarray:
        """The choices [c] of a vector, as integers."""
        return np.clip(np.rint(x[self.reals :]), 0, self.categories - 1).astype(int)

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        return np.concatenate([self.box.sample(rng), rng.integers(self.categories)])

    def mutate(self, candidate: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A neighbour: the numbers as in a box, and one choice drawn anew half of the time."""
        changed = np.append(self.box.mutate(candidate[: self.reals], rng), candidate[self.reals :])
        if rng.random() < 0.5:
            i = int(rng.integers(self.categories.size))
            changed[self.reals + i] = rng.integers(self.categories[i])
        return changed
