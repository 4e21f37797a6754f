"""Static merging: one operator, its published settings, and one scale chosen on validation data.

Every operator here is ``base + lambda · delta_op``, so its merged delta is computed once at ``lambda = 1`` and each
scale is a linear combination again: the deltas of all operators are the components of one in-memory model
(:class:`core.merge.candidate.InMemoryModel`), and trying a scale costs one matrix-vector product and the scoring.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from core.hashing import content_key
from core.merge import kernels
from core.merge.compute import write_group
from core.merge.operators import OPERATORS, ArraySource, make_group
from core.merge.task_vectors import TaskVectors, write_layout
from core.plugins import method_version
from core.progress import track
from core.registry import nearest
from core.state import Cache

LOW, MID, UNIT = (0.1, 0.2, 0.3, 0.4, 0.6, 1.0), (0.4, 0.7, 1.0, 1.4, 2.0), (1.0,)


@dataclass(frozen=True)
class StaticMethod:
    """A published way to merge without training: operator, its settings, and the scales tried on validation."""

    operator: str
    shared: Mapping[str, Any] = field(default_factory=dict)
    per_model: Mapping[str, Any] = field(default_factory=dict)
    scales: Sequence[float] = UNIT
    max_models: int | None = None
    between_models: bool = False  # interpolates from the first model to the second, not from the base

    def recipe(self, scale: float, base: str | Path, experts: Sequence[str | Path]) -> dict[str, Any]:
        """The recipe file's content (mergekit's keys) that the engine executes."""
        shared = dict(self.shared) | ({} if self.between_models else {"lambda": scale})
        models = [
            {"model": str(e), **({"parameters": dict(self.per_model)} if self.per_model else {})} for e in experts
        ]
        return {
            "merge_method": self.operator,
            "base_model": str(experts[0] if self.between_models else base),
            "models": models,
            "parameters": shared,
            "dtype": "float32",
        }


# Density and drop rates as their papers and mergekit's examples use them; the scale is always tuned.
STATIC: dict[str, StaticMethod] = {
    "average": StaticMethod("task_arithmetic", {"normalize": True}, {"weight": 1.0}),
    "task_arithmetic": StaticMethod("task_arithmetic", {"normalize": False}, {"weight": 1.0}, LOW),
    "ties": StaticMethod("ties", {"normalize": True}, {"weight": 1.0, "density": 0.2}, MID),
    "dare_linear": StaticMethod("dare_linear", {"normalize": False}, {"weight": 1.0, "density": 0.5}, LOW),
    "dare_ties": StaticMethod("dare_ties", {"normalize": True}, {"weight": 1.0, "density": 0.5}, MID),
    "slerp": StaticMethod("slerp", {"t": 0.5}, {}, UNIT, max_models=2, between_models=True),
    "iso_c": StaticMethod("iso_c", {}, {"weight": 1.0}, MID),
    "tsv_m": StaticMethod("tsv_m", {}, {"weight": 1.0}, MID),
    "wudi": StaticMethod("wudi", {"iterations": 0}, {"weight": 1.0}, MID),
}


def static_methods(names: Sequence[str], models: int) -> dict[str, StaticMethod]:
    """The methods called ``names``, without those that do not take so many models.

    Raises:
        ValueError: unknown name.
    """
    for name in names:
        if name not in STATIC:
            raise ValueError(f"unknown static method {name!r}{nearest(name, STATIC)} Allowed: {', '.join(STATIC)}")
    return {n: STATIC[n] for n in names if STATIC[n].max_models is None or models <= STATIC[n].max_models}


def static_deltas(
    vectors: TaskVectors, methods: Mapping[str, StaticMethod], seed: int = 0, cache: Cache | None = None
) -> TaskVectors:
    """The merged delta of each method at scale 1, as components over the same layout; cached by content."""
    modules = sorted({OPERATORS.get(m.operator).__module__ for m in methods.values()})
    settings = {n: [m.operator, m.shared, m.per_model] for n, m in methods.items()}
    key = content_key("static deltas", vectors.sha256, settings, seed, method_version(modules))

    def build(folder: Path) -> None:
        deltas = np.lib.format.open_memmap(folder / "deltas.npy", "w+", np.float32, (len(methods), vectors.size))
        with track("merge", len(methods) * vectors.size, "weight") as bar:
            for t in vectors.tensors:
                base = np.asarray(vectors.base[t.start : t.stop]).reshape(t.shape)
                models = [ArraySource(base + delta) for delta in vectors.exact(t)]
                for row, m in enumerate(methods.values()):
                    deltas[row, t.start : t.stop] = (_merged(m, models, base, t.name, seed) - base).ravel()
                    bar.advance(t.size)
        deltas.flush()
        np.save(folder / "base.npy", vectors.base)
        write_layout(folder, list(methods), vectors.tensors, "static", {}, key)

    return TaskVectors((cache or Cache()).compute("static-deltas", key, build))


def _merged(method: StaticMethod, models: Sequence[ArraySource], base: np.ndarray, name: str, seed: int) -> np.ndarray:
    start, others = (models[0], models[1:]) if method.between_models else (ArraySource(base), models)
    per_model = [method.per_model] * len(others)
    group = make_group(method.operator, others, start, shared=method.shared, per_model=per_model, name=name, seed=seed)
    out = np.empty(base.shape, dtype=np.float32)
    write_group(group, "F32", kernels.Tensor(out.ctypes.data, 0, -1))
    return out


@dataclass(frozen=True)
class Tuned:
    """A method with its scale: validation score at every scale tried, and the best one (the smallest among equals)."""

    method: str
    scale: float
    curve: Sequence[tuple[float, float]]


def tune(
    components: TaskVectors, methods: Mapping[str, StaticMethod], score: Callable[[np.ndarray], float]
) -> dict[str, Tuned]:
    """Choose each method's scale.

    Args:
        components: from :func:`static_deltas`.
        score: coefficients [number of methods, 1] -> mean validation score.
    """
    tuned = {}
    with track("scales on validation", sum(len(m.scales) for m in methods.values()), "candidate") as bar:
        for row, (name, method) in enumerate(methods.items()):
            curve = []
            for scale in method.scales:
                coefficients = np.zeros((len(methods), 1))
                coefficients[row] = scale
                curve.append((scale, score(coefficients)))
                bar.advance()
            tuned[name] = Tuned(name, max(curve, key=lambda point: (point[1], -point[0]))[0], curve)
    return tuned
