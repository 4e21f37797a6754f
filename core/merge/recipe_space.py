"""The recipe space: coefficients per expert and layer group, their bounds, and the recipe file they stand for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from core.config import Config
from core.evolve.space import Box
from core.merge.basis import recipe_form
from core.merge.task_vectors import TaskVectors

DIGITS = 4  # coefficients are rounded to this many decimals: a readable file that stands for exactly the same weights
ATTENTION = ("attention.", "attn.")


class SpaceConfig(Config):
    """Which recipes are searched."""

    basis: str = Field("tsv_m", description="what coefficients weigh: raw task vectors or a basis made of them")
    granularity: str = Field(
        "global", description="global; blocks:K (K groups of neighbouring layers); kinds (attention, rest); layers"
    )
    form: Literal["signed", "simplex"] = Field(
        "signed", description="signed: within bounds; simplex: shares of `total`, by softmax over the experts"
    )
    lower: float = Field(-0.5, description="lowest coefficient")
    upper: float = Field(3.0, description="highest coefficient")
    total: float = Field(1.0, gt=0, description="simplex: what the coefficients of a group sum to")


class RecipeSpace:
    """Coefficients ``[n, g]`` of n experts in g groups of tensors, searched as a flat vector of length n·g.

    Attributes:
        labels: the groups' names.
        groups: for each tensor of ``vectors`` its group.

    Raises:
        ValueError: unknown granularity, or more blocks than layers.
    """

    def __init__(self, vectors: TaskVectors, config: SpaceConfig):
        if config.lower >= config.upper:
            raise ValueError(f"lower {config.lower} must be below upper {config.upper}")
        self.config, self.experts = config, vectors.names
        self.filters = granularity_filters(config.granularity, vectors.layers)
        self.labels = tuple(label for label, _ in self.filters)
        self.groups = tuple(self._group(t.name) for t in vectors.tensors)
        sizes = np.zeros(len(self.labels))
        for group, t in zip(self.groups, vectors.tensors, strict=True):
            sizes[group] += t.size
        self.share = sizes / sizes.sum()

    def _group(self, tensor: str) -> int:
        """The first group one of whose filters is part of the tensor's name; group 0 takes the rest."""
        for index, (_, filters) in enumerate(self.filters):
            if any(f in tensor for f in filters):
                return index
        return 0

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.experts), len(self.labels)

    @property
    def dimensions(self) -> int:
        return len(self.experts) * len(self.labels)

    def coefficients(self, x: np.ndarray) -> np.ndarray:
        """Rounded coefficients [n, g] of a search vector."""
        matrix = np.asarray(x, dtype=float).reshape(self.shape)
        if self.config.form == "simplex":
            e = np.exp(matrix - matrix.max(axis=0))
            matrix = self.config.total * e / e.sum(axis=0)
        return np.round(matrix, DIGITS)

    def vector(self, coefficients: np.ndarray) -> np.ndarray:
        """The search vector of coefficients [n, g] (simplex: centred logarithms; shares must be positive)."""
        matrix = np.broadcast_to(np.asarray(coefficients, dtype=float), self.shape)
        if self.config.form == "simplex":
            logs = np.log(np.clip(matrix / self.config.total, 1e-6, None))
            return np.clip(logs - logs.mean(axis=0), -5, 5).ravel()
        return np.clip(matrix, self.config.lower, self.config.upper).ravel()

    def box(self, start: np.ndarray | None = None, step: float | np.ndarray = 0.25) -> Box:
        """The search box around coefficients ``start`` [n, g] (uniform 1 when None)."""
        simplex = self.config.form == "simplex"
        low, high = (-6.0, 6.0) if simplex else (self.config.lower, self.config.upper)
        first = np.ones(self.shape) / (len(self.experts) if simplex else 1.0) if start is None else start
        ones = np.ones(self.dimensions)
        return Box(low * ones, high * ones, start=self.vector(first), step=np.ravel(step) * ones)

    def lift(self, coefficients: np.ndarray, other: "RecipeSpace") -> np.ndarray:
        """Coefficients of this space in another granularity: a group takes the mean of the groups it overlaps.

        Coefficient lifting between forms of different dimension; global to blocks is a repetition, exact both ways.
        """
        if self.experts != other.experts:
            raise ValueError(f"spaces of different experts: {self.experts} and {other.experts}")
        overlap = np.zeros((len(self.labels), len(other.labels)))
        for mine, theirs in zip(self.groups, other.groups, strict=True):
            overlap[mine, theirs] += 1.0
        return np.asarray(coefficients) @ (overlap / np.maximum(overlap.sum(axis=0), 1e-12))

    def recipe(self, coefficients: np.ndarray, base: str | Path, folders: Mapping[str, str | Path]) -> dict[str, Any]:
        """The merge recipe (mergekit's keys) that the engine executes to these weights."""
        operator, shared = recipe_form(self.config.basis)
        models = []
        for i, name in enumerate(self.experts):
            values = [float(v) for v in np.asarray(coefficients)[i]]
            weight: Any = values[0]
            if len(values) > 1:
                listed = [(f, v) for (_, filters), v in zip(self.filters, values, strict=True) for f in filters]
                weight = [{"filter": f, "value": v} for f, v in listed] + [{"value": values[0]}]
            models.append({"model": str(folders[name]), "parameters": {"weight": weight}})
        return {
            "merge_method": operator,
            "base_model": str(base),
            "models": models,
            "parameters": dict(shared),
            "dtype": "float32",
        }


def granularity_filters(granularity: str, layers: int) -> list[tuple[str, tuple[str, ...]]]:
    """Groups as ``(label, parts of tensor names)``: the first with a matching part takes it, else group 0."""
    if granularity == "global":
        return [("all", ())]
    if granularity == "kinds":
        return [("rest", ()), ("attention", ATTENTION)]
    count = layers if granularity == "layers" else _blocks(granularity)
    if count > layers:
        raise ValueError(f"granularity {granularity!r}: the model has {layers} layers")
    parts = np.array_split(np.arange(layers), count)
    return [
        (f"layers {p[0]}-{p[-1]}" if len(p) > 1 else f"layer {p[0]}", tuple(f".{layer}." for layer in p)) for p in parts
    ]


def _blocks(granularity: str) -> int:
    name, _, count = granularity.partition(":")
    if name != "blocks" or not count.isdigit() or int(count) < 1:
        raise ValueError(f"granularity {granularity!r}; allowed: global, kinds, layers, blocks:K")
    return int(count)


def exact_tensors(recipe: Mapping[str, Any], names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """The recipe's tensors computed in memory as the merge engine computes them: float64, rounded once to float32.

    Args:
        names: tensors to compute; all floating-point tensors of the base when None.
    """
    from core.merge.operators import ArraySource, make_group, merge_group
    from core.merge.task_vectors import load_tensors

    base = load_tensors(recipe["base_model"])
    models = [load_tensors(m["model"]) for m in recipe["models"]]
    out = {}
    for name in base if names is None else names:
        group = make_group(
            recipe["merge_method"],
            [ArraySource(m[name]) for m in models],
            ArraySource(base[name]),
            shared=recipe["parameters"],
            per_model=[{"weight": _weight(m["parameters"]["weight"], name)} for m in recipe["models"]],
            name=name,
        )
        out[name] = merge_group(recipe["merge_method"], group).astype(np.float32)
    return out


def _weight(setting: Any, tensor: str) -> float:
    if not isinstance(setting, list):
        return float(setting)
    return next(float(s["value"]) for s in setting if s.get("filter", "") in tensor)
