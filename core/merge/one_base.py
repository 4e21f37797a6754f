"""Whether a model was fine-tuned from a base: the same tensors, finite, near the base, and not equal to it.

One check for models taken from elsewhere, for folders whose task vectors are wanted, and for adapters.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from core.merge.names import sort_names

FAR = 0.9  # of the base's norm: as far as task vectors may go; unrelated weights are about 1.4 away
POOLER = re.compile(r"(^|\.)pooler\.")  # many models come without it, or with one that was never trained
LISTED = 3


@dataclass
class Descent:
    """Checks one model against its base; shapes first, then tensor by tensor, then :meth:`check`.

    Args:
        name, base: what the messages call them.
        folder, base_folder: where they lie.
        far: largest relative distance ``|expert - base| / |base|`` over all matrices that still counts as one base.
    """

    name: str
    folder: str | Path
    base: str
    base_folder: str | Path
    far: float = FAR
    changed: set[str] = field(default_factory=set)
    broken: list[str] = field(default_factory=list)
    moved: float = 0.0
    norm: float = 0.0

    def prefix(
        self, start: Mapping[str, tuple[int, ...]], own: Mapping[str, tuple[int, ...]], heads: bool = True
    ) -> str:
        """The part by which the model's tensor names are longer than the base's (``bert.``).

        Args:
            start, own: name -> shape in the base and in the model. Poolers do not count.
            heads: tensors that the base lacks are heads and do not count either, unless they are further layers.

        Raises:
            ValueError: tensors in one of them only, or of another shape.
        """
        wanted = {n: tuple(s) for n, s in start.items() if not POOLER.search(n)}
        prefix = longer_by(wanted, own)
        found = {n[len(prefix) :]: tuple(s) for n, s in own.items() if n.startswith(prefix) and not POOLER.search(n)}
        depth = sort_names(wanted).depth
        place = sort_names(found).places
        beyond = [n for n in found.keys() - wanted.keys() if not heads or place[n].stack in depth]
        other = [f"it lacks {n!r} {list(s)}" for n, s in wanted.items() if n not in found]
        other += [f"{n!r} {list(found[n])} is not in the base" for n in sorted(beyond)]
        other += [
            f"{n!r} has other shapes, {list(found[n])} and {list(s)} in the base"
            for n, s in wanted.items()
            if found.get(n, s) != s
        ]
        if other:
            listed = "; ".join(other[:LISTED]) + ("; ..." if len(other) > LISTED else "")
            raise ValueError(
                f"{self.name} is not of the base {self.base}: {len(other)} tensors are in one of them only or of "
                f"another shape: {listed} {self._where()}"
            )
        return prefix

    def add(self, tensor: str, start: np.ndarray, delta: np.ndarray) -> None:
        """Take in one tensor: the base's, and the model's minus the base's."""
        if not np.isfinite(delta).all():
            self.broken.append(tensor)
            return
        if start.ndim > 1:  # norms and biases start alike in every model and would hide a foreign base
            self.moved += float(np.vdot(delta, delta))
            self.norm += float(np.vdot(start, start))
        if delta.any():
            self.changed.add(tensor)

    def check(self) -> None:
        """Judge what was taken in.

        Raises:
            ValueError: NaN or infinity, too far from the base, or nothing changed.
        """
        if self.broken:
            raise ValueError(
                f"{self.name} holds NaN or infinite values in {len(self.broken)} tensors ({self.broken[0]!r}); take "
                f"another copy {self._where()}"
            )
        if not self.changed:
            raise ValueError(f"{self.name} equals the base {self.base}: there is nothing to merge {self._where()}")
        ratio = (self.moved / max(self.norm, 1e-30)) ** 0.5
        if ratio > self.far:
            raise ValueError(
                f"{self.name} is {ratio:.2f} of the norm of {self.base} away from it: it was fine-tuned from another "
                f"base, or diverged {self._where()}"
            )

    def _where(self) -> str:
        return f"({self.folder}; base: {self.base_folder})"


def longer_by(names: Iterable[str], longer: Iterable[str]) -> str:
    """The prefix with which most of ``names`` are found in ``longer``; empty where none is."""
    names, longer = list(names), set(longer)
    prefixes = {n[: -len(first)] for first in names[:1] for n in longer if n.endswith("." + first)} | {""}
    return min(sorted(prefixes, key=len), key=lambda p: sum(p + n not in longer for n in names))
