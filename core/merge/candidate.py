"""Merging in memory: one preallocated model whose weights are views of a flat buffer that a candidate is written into.

No file is touched between candidates. The components are read once from shared memory; a form that moves the
coefficients of few experts starts from a kept sum of the others (its context) and adds only what moves.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil

from core.merge.task_vectors import TaskVectors

RESERVE = 512 * 2**20


class InMemoryModel:
    """A model into which coefficients are written.

    Args:
        model: module whose parameters end in the names of ``vectors.tensors``; it is changed in place.
        vectors: base and components.
        groups: for each tensor the index of its coefficient group, ``0 .. g - 1``.
        dtype: torch dtype of scoring.

    Raises:
        ValueError: a tensor has no parameter in the model, or two tensors share one (tied weights), or the arrays do
            not fit into the free memory.
    """

    def __init__(self, model: Any, vectors: TaskVectors, groups: Sequence[int], dtype: Any = None):
        import torch

        self.vectors, self.model = vectors, model
        self.dtype = dtype or torch.float32
        self.device = next(model.parameters()).device
        need = needed_memory(vectors)
        if need + RESERVE > psutil.virtual_memory().available and self.device.type == "cpu":
            free = psutil.virtual_memory().available
            raise ValueError(
                f"{len(vectors.names)} experts need {need / 2**20:.0f} MiB, {free / 2**20:.0f} MiB are free"
            )
        self.slices = _slices(vectors, groups)
        self.base = torch.from_numpy(np.array(vectors.base)).to(self.device)
        self.deltas = torch.from_numpy(_shared(vectors.deltas)).to(self.device)
        self._sum = torch.empty_like(self.base)
        self._context = self.base
        self._moving = np.arange(len(vectors.names))
        model.to(self.dtype)
        self._flat = torch.empty(vectors.size, dtype=self.dtype, device=self.device)
        self._bind()

    def _bind(self) -> None:
        """Make every parameter a view of the flat buffer."""
        import torch

        parameters = dict(self.model.named_parameters())
        used: dict[int, str] = {}
        for t in self.vectors.tensors:
            name = match_name(t.name, parameters)
            if id(parameters[name]) in used:
                raise ValueError(f"tensors {t.name!r} and {used[id(parameters[name])]!r} are tied in the model")
            used[id(parameters[name])] = t.name
            if tuple(parameters[name].shape) != t.shape:
                raise ValueError(f"tensor {t.name!r} has shape {t.shape}, the model {tuple(parameters[name].shape)}")
            with torch.no_grad():
                parameters[name].data = self._flat[t.start : t.stop].view(t.shape)

    def hold(self, coefficients: np.ndarray, moving: Sequence[int]) -> None:
        """Fix the coefficients [n, g] of all experts but ``moving``; until released only those are re-merged."""
        import torch

        moving = np.asarray(sorted(moving))
        fixed = np.setdiff1d(np.arange(len(self.vectors.names)), moving)
        self._context = torch.empty_like(self.base)
        self._mix(self._context, self.base, fixed, coefficients)
        self._moving = moving

    def release(self) -> None:
        """Every expert moves again."""
        self._context, self._moving = self.base, np.arange(len(self.vectors.names))

    def write(self, coefficients: np.ndarray) -> Any:
        """Merge ``base + sum_i coefficients[i, group] · component_i`` into the model and return it."""
        self._mix(self._sum, self._context, self._moving, coefficients)
        self._flat.copy_(self._sum)
        return self.model

    def _mix(self, out: Any, start_from: Any, rows: np.ndarray, coefficients: np.ndarray) -> None:
        """``out = start_from + sum over rows of coefficients · components``, group by group."""
        import torch

        together = len(rows) > 0 and rows[-1] - rows[0] + 1 == len(rows)
        for group, start, stop in self.slices:
            part, weights = out[start:stop], np.asarray(coefficients[rows, group], dtype=np.float32)
            if together:
                block = self.deltas[rows[0] : rows[-1] + 1, start:stop]
                torch.addmv(start_from[start:stop], block.T, torch.from_numpy(weights).to(self.device), out=part)
                continue
            part.copy_(start_from[start:stop])
            for row, weight in zip(rows, weights.tolist(), strict=True):
                part.add_(self.deltas[row, start:stop], alpha=weight)


def needed_memory(vectors: TaskVectors) -> int:
    """Bytes an in-memory search needs: components (shared between workers), base, sum, context and the model."""
    return vectors.bytes + 4 * vectors.base.nbytes


def match_name(name: str, parameters: Any) -> str:
    """The model's parameter that ends in ``name`` (a wrapper may put a prefix before it).

    Raises:
        ValueError: none or several do.
    """
    found = [p for p in parameters if p == name or p.endswith("." + name)]
    if len(found) != 1:
        raise ValueError(f"tensor {name!r} matches {len(found)} parameters of the model: {found[:3]}")
    return found[0]


def _slices(vectors: TaskVectors, groups: Sequence[int]) -> list[tuple[int, int, int]]:
    """Neighbouring tensors of one group joined: ``(group, start, stop)``."""
    if len(groups) != len(vectors.tensors):
        raise ValueError(f"{len(groups)} groups for {len(vectors.tensors)} tensors")
    out: list[tuple[int, int, int]] = []
    for group, t in zip(groups, vectors.tensors, strict=True):
        if out and out[-1][0] == group and out[-1][2] == t.start:
            out[-1] = (group, out[-1][1], t.stop)
        else:
            out.append((int(group), t.start, t.stop))
    return out


def _shared(array: np.ndarray) -> np.ndarray:
    """A writable-flagged view of read-only mapped pages (torch wants one); nobody writes."""
    return np.memmap(array.filename, dtype=array.dtype, mode="c", offset=array.offset, shape=array.shape)
