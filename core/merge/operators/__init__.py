"""Merge operators: how one tensor of the merged model comes from the same tensor of its sources.

An operator is one function of a :class:`Group` and one line, ``@OPERATORS.register(name, ...facts)``. It returns either

- the merged tensor, a float64 array of ``group.shape`` (``kind="whole"``: it needed all of it, an SVD for instance), or
- a function from a :class:`Block` to the merged block, a flat float64 array (``kind="element"`` and ``"selection"``).
  The engine then streams: it calls the function block by block, in index order, and rounds once when writing. An
  operator that needs statistics of the tensor first (norms, thresholds) walks over ``group.blocks()`` before it
  returns; every walk reads the sources again, block by block, so memory does not grow with the tensor.

All arithmetic is float64 on exactly decoded inputs. Operators are pure: same group, same bytes; inputs are read-only;
randomness comes from :mod:`core.merge.random`, keyed by seed, model, tensor and index. Everything here needs numpy
only: import scipy, torch or others inside the function.

Speed: a streamed operator may return one of the objects of :mod:`core.merge.mixing` (a weighted sum, the base plus
mixed deltas), which have a native kernel of the same arithmetic; :mod:`core.merge.selection` has exact ranks and masks.

Facts of an operator (see :class:`Contract`) are its schema: recipes are checked against them before anything is read.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from core.merge.dtypes import RAW, decode, promote
from core.registry import Registry, nearest

REQUIRED = object()
BLOCK = 1 << 16  # elements of a block: base + 4 experts in bfloat16 are 640 KiB, which a second-level cache holds
KINDS = ("element", "selection", "whole")
BASE = ("required", "optional", "ignored")
SCOPES = ("shared", "model", "input")


class Source(Protocol):
    """One tensor of one model, readable by pieces (a file, an array, a base plus its adapter)."""

    dtype: str
    shape: tuple[int, ...]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Raw elements ``[start, stop)`` of the flat tensor; read-only, valid until the next call in this thread."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of an operator.

    Args:
        kind: ``float``, ``int``, ``bool`` or ``str``; a ``str`` ending in a file is hashed when ``file`` is true.
        default: value when no setting applies; ``REQUIRED`` when one must be given.
        scope: ``shared`` (one value a tensor), ``model`` (one for each model but the base) or ``input`` (base too).
        description: one sentence.
        low, high: inclusive limits, None for none.
        choices: allowed values of a ``str``.
        file: the value is the path of a file the operator reads.
    """

    kind: type
    default: Any = REQUIRED
    scope: str = "shared"
    description: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    file: bool = False

    def check(self, name: str, value: Any) -> Any:
        """``value`` as this parameter's kind.

        Raises:
            ValueError: wrong kind, outside the limits, or not one of the choices.
        """
        if value is None:
            return None
        try:
            if self.kind is bool and not isinstance(value, bool):
                value = {"true": True, "false": False, "1": True, "0": False}[str(value).lower()]
            elif self.kind is int and float(value) != int(float(value)):
                raise ValueError
            value = self.kind(value)
        except (ValueError, TypeError, KeyError):
            raise ValueError(f"parameter {name!r} is {value!r}; it must be {self.kind.__name__}") from None
        if self.kind in (int, float) and not np.isfinite(value):
            raise ValueError(f"parameter {name!r} is {value!r}; it must be a finite number")
        if (self.low is not None and value < self.low) or (self.high is not None and value > self.high):
            low = "-inf" if self.low is None else self.low
            high = "inf" if self.high is None else self.high
            raise ValueError(f"parameter {name!r} is {value!r}; allowed: {low} to {high}")
        if self.choices and value not in self.choices:
            raise ValueError(f"parameter {name!r} is {value!r}{nearest(value, self.choices)} Allowed: {self.choices}")
        return value


@dataclass(frozen=True)
class Contract:
    """What an operator needs: the facts given at registration.

    Args:
        kind: ``element`` (each element from its own column), ``selection`` (thresholds over the tensor, then by
            element) or ``whole`` (the tensor in memory).
        base: ``required``, ``optional`` (used when the recipe has one) or ``ignored`` (a base among the models is a
            model like the others).
        parameters: schema.
        min_models, max_models: number of models besides the base (with ``ignored``: of all).
        rows: blocks given to the returned function hold whole rows (last dimension).
        source: paper or page the formula is from.
        random: draws random numbers.
        check: ``check(shared, per_model)`` raises ValueError for values that do not go together (zero weight sum).
        matrices_only: tensors that are not matrices are handled by another rule inside the operator (documented there).
        covers: ``covers(tensors)``, ``(names, per_model)`` each, raises ValueError for values about none of them.
    """

    kind: str
    base: str = "required"
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    min_models: int = 1
    max_models: int | None = None
    rows: bool = False
    source: str = ""
    random: bool = False
    check: Callable[[Mapping[str, Any], Sequence[Mapping[str, Any]]], None] | None = None
    matrices_only: bool = False
    covers: Callable[[Iterable[tuple[Sequence[str], Sequence[Mapping[str, Any]]]]], None] | None = None

    def __post_init__(self):
        if self.kind not in KINDS or self.base not in BASE:
            raise ValueError(f"operator kind {self.kind!r}, base {self.base!r}; allowed: {KINDS}, {BASE}")
        for name, p in self.parameters.items():
            if p.scope not in SCOPES:
                raise ValueError(f"parameter {name!r} has scope {p.scope!r}; allowed: {SCOPES}")

    def resolve(self, given: Mapping[str, Any], scopes: Sequence[str]) -> dict[str, Any]:
        """Values of all parameters with one of ``scopes``: given ones checked, others by default."""
        values = {}
        for name, p in self.parameters.items():
            if p.scope in scopes:
                value = given.get(name)
                if value is None and p.default is REQUIRED:
                    raise ValueError(f"parameter {name!r} is required ({p.description})")
                values[name] = p.check(name, p.default if value is None else value)
        return values

    def count(self, n: int, name: str) -> None:
        """Check the number of models.

        Raises:
            ValueError: too few or too many.
        """
        if n < self.min_models or (self.max_models is not None and n > self.max_models):
            upper = "" if self.max_models is None else f" and at most {self.max_models}"
            besides = "" if self.base == "ignored" else " besides the base"
            raise ValueError(f"{name} needs at least {self.min_models}{upper} models{besides}; got {n}")


@dataclass
class Block:
    """Elements ``[start, stop)`` of the flat tensor, from every source."""

    group: "Group"
    start: int
    stop: int

    @cached_property
    def base(self) -> np.ndarray:
        """The base's elements, float64."""
        return self.group.decoded(self.group.base_source, self.start, self.stop, "the base")

    @cached_property
    def tensors(self) -> list[np.ndarray]:
        """Each model's elements, float64."""
        names = self.group.models or [str(i) for i in range(len(self.group.sources))]
        return [self.group.decoded(s, self.start, self.stop, m) for s, m in zip(self.group.sources, names)]

    @cached_property
    def deltas(self) -> list[np.ndarray]:
        """Each model's elements minus the base's, float64."""
        return [t - self.base for t in self.tensors]


@dataclass(frozen=True)
class Group:
    """One output tensor and what it is made from.

    Args:
        name: name of the output tensor.
        shape: its shape.
        sources: the tensor in each model but the base, in the recipe's order.
        base_source: the tensor in the base, or None.
        shared: values of the shared parameters.
        per_model: for each of ``sources`` the values of the per-model parameters.
        seed: of the merge.
        models: names of the models of ``sources``, for messages.
        base_parameters: per-input parameters of the base (scope ``input``).
        method: name of the operator (one function may serve several).
        names: what the tensor is called in each of ``sources`` (of a slice another layer's name); empty for ``name``.
    """

    name: str
    shape: tuple[int, ...]
    sources: tuple[Source, ...]
    base_source: Source | None = None
    shared: Mapping[str, Any] = field(default_factory=dict)
    per_model: tuple[Mapping[str, Any], ...] = ()
    seed: int = 0
    models: tuple[str, ...] = ()
    base_parameters: Mapping[str, Any] = field(default_factory=dict)
    method: str = ""
    names: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def columns(self) -> int:
        """Length of the last dimension (a scalar or a vector is one row)."""
        return int(self.shape[-1]) if self.shape else 1

    @property
    def source_names(self) -> tuple[str, ...]:
        """Name of the tensor in each model: of what was saved about that model, like its statistics."""
        return self.names or (self.name,) * len(self.sources)

    def values(self, name: str) -> np.ndarray:
        """A per-model parameter as a float64 array, one value a source."""
        return np.array([p[name] for p in self.per_model], dtype=np.float64)

    def blocks(self, rows: bool = False) -> Iterator[Block]:
        """All blocks in index order; with ``rows`` each holds whole rows."""
        for start, stop in block_ranges(self.size, self.columns if rows else 1):
            yield Block(self, start, stop)

    def decoded(self, source: Source, start: int, stop: int, model: str) -> np.ndarray:
        """Elements of a source as float64.

        Raises:
            ValueError: one of them is NaN or infinite.
        """
        return self._finite(decode(source.read(start, stop), source.dtype), start, model)

    def _finite(self, values: np.ndarray, start: int, model: str) -> np.ndarray:
        if not np.isfinite(values).all():
            where = start + int(np.argmin(np.isfinite(values)))
            raise ValueError(f"tensor {self.name!r} of {model} holds {values[where - start]} at flat index {where}")
        return values

    @cached_property
    def base(self) -> np.ndarray:
        """The whole base tensor, float64, of ``shape``."""
        return self.decoded(self.base_source, 0, self.size, "the base").reshape(self.shape)

    @cached_property
    def tensors(self) -> list[np.ndarray]:
        """Each model's whole tensor, float64, of ``shape``."""
        return [t.reshape(self.shape) for t in Block(self, 0, self.size).tensors]

    @cached_property
    def deltas(self) -> list[np.ndarray]:
        """Each model's whole tensor minus the base's."""
        return [self.delta(i) for i in range(len(self.sources))]

    def delta(self, index: int) -> np.ndarray:
        """One model's whole tensor minus the base's, read anew and not kept (for operators that take one at a time).

        An adapter on this very base gives the product of its factors: of its rank, without the rounding of a sum.
        """
        source, model = self.sources[index], self.models[index] if self.models else str(index)
        added = source.added(self.base_source) if hasattr(source, "added") else None
        if added is None:
            return self.decoded(source, 0, self.size, model).reshape(self.shape) - self.base
        return self._finite(added.reshape(-1), 0, model).reshape(self.shape)

    def weighted_deltas(self) -> list[np.ndarray]:
        """Each model's whole delta times its ``weight``; the unweighted ones are not kept."""
        return [p["weight"] * self.delta(i) for i, p in enumerate(self.per_model)]


Operator = Callable[[Group], "np.ndarray | Callable[[Block], np.ndarray]"]
OPERATORS: Registry[Operator] = Registry("merge operator", "core.merge.operators")


def contract(name: str) -> Contract:
    """The contract of the operator called ``name`` (unknown names raise ValueError with the nearest)."""
    return Contract(**OPERATORS.entry(name).facts)


def block_ranges(size: int, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """``(start, stop)`` of the blocks of a tensor of ``size`` elements; all but the last hold whole multiples."""
    step = max(1, BLOCK // max(1, multiple)) * max(1, multiple)
    for start in range(0, size, step):
        yield start, min(start + step, size)


class ArraySource:
    """A tensor in memory: a raw array (see :mod:`core.merge.dtypes`) of any shape."""

    def __init__(self, raw: np.ndarray, dtype: str | None = None):
        self.dtype = dtype or {np.dtype(v): k for k, v in RAW.items() if k != "BF16"}[raw.dtype]
        self.shape = tuple(raw.shape)
        self._flat = np.ascontiguousarray(raw).reshape(-1)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self._flat[start:stop]

    def place(self) -> tuple[int | None, int, int]:
        """Address, file descriptor and byte offset for the native kernels."""
        return self._flat.ctypes.data, -1, 0


def make_group(
    method: str,
    tensors: Sequence[Source],
    base: Source | None = None,
    *,
    shared: Mapping[str, Any] | None = None,
    per_model: Sequence[Mapping[str, Any]] | None = None,
    name: str = "tensor",
    seed: int = 0,
) -> Group:
    """A checked :class:`Group` for ``method`` (the engine, the in-memory merge and the tests all come through here).

    Raises:
        ValueError: unknown operator or parameter, shapes that differ, a missing base, too few or too many models.
    """
    c = contract(method)
    shared, per_model = dict(shared or {}), [dict(p) for p in per_model or [{}] * len(tensors)]
    if c.base == "required" and base is None:
        raise ValueError(f"{method} needs a base model")
    c.count(len(tensors), method)
    for key in {k for p in [shared, *per_model] for k in p} - set(c.parameters):
        raise ValueError(f"unknown parameter {key!r} of {method}{nearest(key, c.parameters)}")
    shapes = {tuple(s.shape) for s in [*tensors, *([base] if base is not None else [])]}
    if len(shapes) != 1 or len(per_model) != len(tensors):
        raise ValueError(f"tensor {name!r}: shapes {sorted(shapes)} and {len(per_model)} parameter sets do not match")
    resolved = c.resolve(shared, ("shared",))
    each = tuple(c.resolve({**shared, **p}, ("model", "input")) for p in per_model)
    if c.check is not None:
        c.check(resolved, each)
    return Group(
        name=name, shape=shapes.pop(), sources=tuple(tensors), base_source=base, shared=resolved, per_model=each,
        seed=seed, method=method,
    )  # fmt: skip


def merge_group(method: str, group: Group) -> np.ndarray:
    """The merged tensor in float64, before rounding (the reference path; the engine streams the same blocks)."""
    result = OPERATORS.get(method)(group)
    if not callable(result):
        return np.asarray(result).reshape(group.shape)
    rows = contract(method).rows
    pieces = [np.asarray(result(block)).copy() for block in group.blocks(rows)]
    return (np.concatenate(pieces) if pieces else np.zeros(0)).reshape(group.shape)


def output_dtype(group: Group) -> str:
    """The format of the sources, promoted."""
    sources = [*group.sources, *([group.base_source] if group.base_source is not None else [])]
    return promote([s.dtype for s in sources])
