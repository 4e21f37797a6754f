"""Recipes with choices: per expert and layer group a component (operator, basis, density) and its coefficient.

All experts' components of every kind are computed once (:mod:`core.merge.components`); whatever is chosen, a candidate
is the base plus a weighted sum of what its experts took, and ends in a recipe file of the operator ``components``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from core.evolve.mixed import Mixed
from core.evolve.space import Box
from core.hashing import code_version, content_key
from core.merge.candidate import InMemoryModel
from core.merge.components import component_named, components
from core.merge.fitness import Clock
from core.merge.problem import MergeProblem
from core.merge.recipe_space import DIGITS, RecipeSpace, SpaceConfig
from core.merge.task_vectors import TaskVectors, write_layout
from core.state import Cache

CHOICES = ("tsv_m", "iso_c", "raw", "raw@0.2", "ties@0.2")


class ChoiceSpace:
    """A component and a coefficient for each of n experts in each of g groups of tensors.

    A recipe is a matrix ``[n·C, g]``: of an expert's C rows, one for each component, at most one is not zero in a
    group. The search vector has n·g numbers, coefficients relative to the component's ``scales``, and n·g choices.

    Args:
        vectors: raw task vectors of the experts.
        config: granularity and bounds of the coefficients (``signed``).
        names: components that may be chosen, two or more (see :func:`core.merge.components.component_named`).
        scales: for each component the coefficient that 1 in the search vector stands for; all 1 when None.

    Raises:
        ValueError: fewer than two components, one of them unknown or named twice, or a space of shares.
    """

    def __init__(self, vectors: TaskVectors, config: SpaceConfig, names: Sequence[str], scales: Any = None):
        self.names = check_choices(names)
        if config.form != "signed":
            raise ValueError("a search among components has signed coefficients; form 'simplex' is for one basis")
        self.config, self.vectors = config, vectors
        self.numbers = RecipeSpace(vectors, config)
        self.experts, self.labels, self.groups = self.numbers.experts, self.numbers.labels, self.numbers.groups
        self.scales = np.ones(len(self.names)) if scales is None else np.array(scales, dtype=float)

    @property
    def shape(self) -> tuple[int, int]:
        n, g = self.numbers.shape
        return n * len(self.names), g

    def scaled(self, scales: Sequence[float]) -> "ChoiceSpace":
        """The same space in units of these scales."""
        return ChoiceSpace(self.vectors, self.config, self.names, scales)

    def matrix(self, coefficients: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """The recipe ``[n·C, g]`` of coefficients [n, g] of the components ``chosen`` [n, g]."""
        (n, g), out = self.numbers.shape, np.zeros((self.numbers.shape[0], len(self.names), self.numbers.shape[1]))
        rows, columns = np.meshgrid(np.arange(n), np.arange(g), indexing="ij")
        out[rows, chosen, columns] = np.broadcast_to(coefficients, (n, g))
        return out.reshape(self.shape)

    def parts(self, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients [n, g] and chosen components [n, g] of a recipe (an expert left out takes the first)."""
        n, g = self.numbers.shape
        rows = np.asarray(matrix).reshape(n, len(self.names), g)
        return rows.sum(axis=1), np.abs(rows).argmax(axis=1)

    def coefficients(self, x: np.ndarray) -> np.ndarray:
        """Rounded recipe ``[n·C, g]`` of a search vector."""
        n, g = self.numbers.shape
        chosen = np.asarray(x[n * g :], dtype=int).reshape(n, g)
        numbers = np.asarray(x[: n * g], dtype=float).reshape(n, g) * self.scales[chosen]
        return self.matrix(np.round(np.clip(numbers, self.config.lower, self.config.upper), DIGITS), chosen)

    def mixed(self, first: int, step: float) -> Mixed:
        """The search space around component ``first`` at its scale everywhere, ``step`` relative to the scales."""
        size, count = self.numbers.dimensions, len(self.names)
        low = min(self.config.lower / self.scales.max(), 1 - step)
        high = max(self.config.upper / self.scales.min(), 1 + step)
        ones = np.ones(size)
        box = Box(low * ones, high * ones, start=ones, step=step)
        likely = np.full(count, 0.5 / count) + 0.5 * np.eye(count)[first]
        return Mixed(box, [count] * size, np.tile(likely, (size, 1)))

    def recipe(self, matrix: np.ndarray, base: str | Path, folders: Mapping[str, str | Path]) -> dict[str, Any]:
        """The merge recipe (mergekit's keys) that the engine executes to these weights."""
        coefficients, chosen = self.parts(matrix)
        known = [component_named(name) for name in self.names]
        models = []
        for name, weights, kinds in zip(self.experts, coefficients, chosen, strict=True):
            values = {
                "weight": [float(w) for w in weights],
                "basis": [known[k][0] for k in kinds],
                "density": [known[k][1] for k in kinds],
            }
            parameters = {key: self._by_group(listed) for key, listed in values.items()}
            models.append({"model": str(folders[name]), "parameters": parameters})
        return {
            "merge_method": "components",
            "base_model": str(base),
            "models": models,
            "parameters": {"lambda": 1.0},
            "dtype": "float32",
        }

    def _by_group(self, values: Sequence[Any]) -> Any:
        """A parameter's value, or one for each group of tensors."""
        if len(set(values)) == 1:
            return values[0]
        listed = [(f, v) for (_, filters), v in zip(self.numbers.filters, values, strict=True) for f in filters]
        return [{"filter": f, "value": v} for f, v in listed] + [{"value": values[0]}]

    def described(self, matrix: np.ndarray) -> list[list[str]]:
        """For each expert and group what it takes, as text."""
        coefficients, chosen = self.parts(matrix)
        return [
            [f"{value:g} × {self.names[k]}" for value, k in zip(*row, strict=True)]
            for row in zip(coefficients, chosen, strict=True)
        ]


class ChoiceModel(InMemoryModel):
    """An in-memory model of many components of which a candidate uses few; a network's buffers keep their precision."""

    def __init__(self, model: Any, vectors: TaskVectors, groups: Sequence[int], dtype: Any = None):
        kept = dict(model.named_buffers())
        super().__init__(model, vectors, groups, dtype)
        for name, buffer in kept.items():
            owner, _, own = name.rpartition(".")
            setattr(model.get_submodule(owner), own, buffer)

    def _mix(self, out: Any, start_from: Any, rows: np.ndarray, coefficients: np.ndarray) -> None:
        for group, start, stop in self.slices:
            part = out[start:stop].copy_(start_from[start:stop])
            for row in rows:
                if coefficients[row, group]:
                    part.add_(self.deltas[row, start:stop], alpha=float(coefficients[row, group]))


def check_choices(names: Sequence[str]) -> tuple[str, ...]:
    """The names, when they are components that can be searched among.

    Raises:
        ValueError: fewer than two, an unknown one, or one twice.
    """
    kinds = [component_named(name) for name in names]
    if len(kinds) < 2 or len(set(kinds)) < len(kinds):
        raise ValueError(f"choices need two or more different components, got {', '.join(names) or 'none'}")
    return tuple(names)


def component_vectors(raw: TaskVectors, names: Sequence[str], cache: Cache | None = None) -> TaskVectors:
    """Every expert's components, expert by expert: deltas ``[n·C, P]``; computed once and cached.

    Raises:
        ValueError: ``raw`` are components already.
    """
    if raw.basis != "raw":
        raise ValueError(f"components are made from raw task vectors, got basis {raw.basis!r}")
    names, modules = check_choices(names), ["core.merge.components", "core.merge.operators.components"]
    key = content_key("components", names, raw.sha256, code_version(modules))

    def build(folder: Path) -> None:
        shape = (len(raw.names) * len(names), raw.size)
        deltas = np.lib.format.open_memmap(folder / "deltas.npy", "w+", np.float32, shape)
        for t in raw.tensors:
            own = raw.exact(t)
            for c, name in enumerate(names):
                for i, part in enumerate(components(own, *component_named(name))):
                    deltas[i * len(names) + c, t.start : t.stop] = part.ravel()
        deltas.flush()
        np.save(folder / "base.npy", raw.base)
        rows = [f"{expert} {name}" for expert in raw.names for name in names]
        write_layout(folder, rows, raw.tensors, "components", {"components": list(names)}, key)

    return TaskVectors((cache or Cache()).compute("components", key, build))


def with_choices(problem: MergeProblem, names: Sequence[str], cache: Cache | None = None) -> MergeProblem:
    """The same experts and tasks, searched among components.

    Raises:
        ValueError: fewer than two components or an unknown one; they do not fit into the free memory.
    """
    space = ChoiceSpace(problem.raw, problem.space.config, names)
    vectors, model = component_vectors(problem.raw, names, cache), problem.fitness.model
    network = ChoiceModel(model.model, vectors, space.groups, model.dtype)
    fitness = replace(problem.fitness, model=network, clock=Clock())
    return replace(problem, fitness=fitness, space=space)
