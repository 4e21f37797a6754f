"""Bases: what the coefficients of a recipe weigh. In each a candidate is ``base + sum_i a_i · component_i``.

A basis is one function from one tensor's deltas to components of the same shape, and the merge recipe (operator and
shared parameters) that computes the same sum, so a search in the basis ends in a recipe file.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.hashing import content_key
from core.merge.operators import OPERATORS
from core.merge.task_vectors import TaskVectors, write_layout
from core.plugins import method_version
from core.registry import Registry
from core.state import Cache

Components = Callable[..., list[np.ndarray]]
BASES: Registry[Components] = Registry("merge basis")


@BASES.register("raw", operator="task_arithmetic", shared={"normalize": False, "lambda": 1.0})
def raw(deltas: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The task vectors themselves (task arithmetic; Ilharco et al., ICLR 2023)."""
    return [np.asarray(d, dtype=np.float64) for d in deltas]


@BASES.register("tsv_m", operator="tsv_m", shared={"lambda": 1.0})
def tsv_m(deltas: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Orthogonalised top singular triples of every task (TSV-M; Gargiulo et al., CVPR 2025)."""
    from core.merge.operators.tsv_m import tsv_components

    return tsv_components(deltas)


@BASES.register("iso_c", operator="iso_c", shared={"lambda": 1.0})
def iso_c(deltas: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Iso-C's directions of equal length, credited to the tasks by energy (Marczak et al., ICML 2025; shares ours)."""
    from core.merge.operators.iso_c import iso_components

    return iso_components(deltas)


@BASES.register("wudi", operator="wudi", shared={"lambda": 1.0, "iterations": 0})
def wudi(deltas: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Each task's share of the exact WUDI solution (Cheng et al., ICML 2025)."""
    from core.merge.operators.wudi import wudi_components

    return wudi_components(deltas)


def in_basis(vectors: TaskVectors, basis: str, cache: Cache | None = None) -> TaskVectors:
    """The same experts in another basis; computed once, tensor by tensor, and cached.

    Raises:
        ValueError: unknown basis, or ``vectors`` are not raw task vectors.
    """
    function = BASES.get(basis)
    if vectors.basis == basis:
        return vectors
    if vectors.basis != "raw":
        raise ValueError(f"components are made from raw task vectors, got basis {vectors.basis!r}")
    key = content_key("basis", basis, vectors.sha256, method_version([function.__module__, *_modules(basis)]))

    def build(folder: Path) -> None:
        deltas = np.lib.format.open_memmap(folder / "deltas.npy", "w+", np.float32, vectors.deltas.shape)
        for t in vectors.tensors:
            parts = function(vectors.exact(t))
            for row, part in enumerate(parts):
                deltas[row, t.start : t.stop] = part.ravel()
        deltas.flush()
        np.save(folder / "base.npy", vectors.base)
        write_layout(folder, vectors.names, vectors.tensors, basis, {}, key)

    return TaskVectors((cache or Cache()).compute("bases", key, build))


def recipe_form(basis: str) -> tuple[str, Mapping[str, Any]]:
    """Merge operator and shared parameters by which a recipe file names this basis."""
    facts = BASES.entry(basis).facts
    return facts["operator"], facts["shared"]


def _modules(basis: str) -> list[str]:
    """Where the operator that a recipe names for this basis is defined: the components are its own."""
    return [OPERATORS.get(recipe_form(basis)[0]).__module__]
