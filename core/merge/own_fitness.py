"""A user's function as the fitness of merges: ``score(model, tokenizer) -> per-example array`` in [0, 1].

A call scores all of the function's examples, so a mini-batch is all of them too and the budget counts what really ran.
"""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from core.hashing import sha256_file
from core.merge.fitness import Fitness
from core.merge.harness import HARNESS, harness_score, harness_version
from core.merge.language import in_memory
from core.merge.objectives import FunctionObjective
from core.merge.problem import MergeProblem

Score = Callable[[Any, Any], np.ndarray]


def place_of(name: str) -> tuple[Path, str]:
    """File and function of ``module:function`` or ``file.py:function``.

    Raises:
        ValueError: no colon, or nothing there.
    """
    where, colon, function = name.rpartition(":")
    if not colon or not where or not function.isidentifier():
        raise ValueError(
            f"fitness {name!r}; give module:function or file.py:function, e.g. my_fitness.py:score, or {HARNESS}TASK"
        )
    if where.endswith(".py"):
        if not Path(where).is_file():
            raise ValueError(f"fitness {name!r}: {where} does not exist")
        return Path(where), function
    try:
        found = importlib.util.find_spec(where)
    except ModuleNotFoundError:
        found = None
    if found is None or not found.origin or not Path(found.origin).is_file():
        raise ValueError(f"fitness {name!r}: no module {where!r}; install it, or give the path of its file")
    return Path(found.origin), function


def identity(name: str) -> str:
    """Hash of what ``name`` stands for: the function's file, or tasks of the harness.

    Raises:
        ValueError: nothing is there.
    """
    return harness_version(name) if name.startswith(HARNESS) else sha256_file(place_of(name)[0])


def load_function(name: str) -> Score:
    """The function that ``name`` says; its module is run.

    Raises:
        ValueError: no such module or function (see :func:`place_of`); no such task of the harness.
    """
    if name.startswith(HARNESS):
        return harness_score(name)
    path, function = place_of(name)
    where = name.rpartition(":")[0]
    if where.endswith(".py"):
        spec = importlib.util.spec_from_file_location(f"own_fitness_{sha256_file(path)[:12]}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(where)
    found = getattr(module, function, None)
    if not callable(found):
        raise ValueError(f"fitness {name!r}: {path} has no function {function!r}")
    return found


def scored_by(problem: MergeProblem, name: str, function: Score, tokenizer: Any, seed: int = 0) -> MergeProblem:
    """The problem with the function as its only objective; its reference is the best expert alone.

    Args:
        name: of the objective; what is learned about it serves later runs that search for the same.
        function: sees the merged model (for encoders a :class:`core.models.encoder.TextEncoder`) and its tokenizer; the
            examples and their number must be the same at every call.

    Raises:
        ValueError: scores of another shape or outside [0, 1], or no expert above 0.
    """
    model, raw = problem.fitness.model, problem.raw
    network, groups = model.model, problem.space.groups
    alone = in_memory(network, raw, groups, model.dtype)
    recipes = [_only(row, problem.space.shape) for row in range(len(raw.names))]
    experts = [_checked(name, function(alone.write(recipe), tokenizer)) for recipe in recipes]
    sizes = {len(scores) for scores in experts}
    if len(sizes) > 1:
        raise ValueError(
            f"fitness {name!r} gave {sorted(sizes)} scores for different models; score the same examples every time"
        )
    reference = max(float(scores.mean()) for scores in experts)
    if not reference > 0:
        raise ValueError(
            f"fitness {name!r} gives every expert 0, which leaves nothing to normalise by; look at the function"
        )
    (size,) = sizes
    objective = FunctionObjective(name, size, lambda *given: _checked(name, function(*given)), tokenizer, reference)
    fitness = Fitness(in_memory(network, model.vectors, groups, model.dtype), {name: objective}, size, seed)
    return MergeProblem(fitness, problem.space, [None], raw, problem.folders, problem.base)


def _only(row: int, shape: tuple[int, int]) -> np.ndarray:
    """Coefficients of one expert by itself."""
    alone = np.zeros(shape)
    alone[row] = 1.0
    return alone


def _checked(name: str, scores: Any) -> np.ndarray:
    """One score an example in [0, 1]; NaN is a model that failed."""
    values = np.asarray(scores, dtype=float)
    if values.ndim != 1 or not len(values) or (values < 0).any() or (values > 1).any():
        raise ValueError(
            f"fitness {name!r} must give one score in [0, 1] for each example (hits, probabilities), got shape "
            f"{values.shape}" + (f" from {np.nanmin(values):g} to {np.nanmax(values):g}" if values.size else "")
        )
    return values
