"""Student structures that cost as much as the first k layers: depth against width at equal size.

A structure keeps ``d >= k`` layers of the original, all heads, and in every kept layer the same number of feed-forward
neurons: the most that make it no larger than the first k layers at full width. So every structure is an ordinary model
of the original's family and opens with ``transformers`` alone; layers of different widths or fewer heads would not.
"""

from itertools import combinations
from typing import Any

from core.models.cut import FAMILIES
from core.nas.spaces.transformer_student import StudentShape, TransformerStudent

STEPS = 16  # widths are multiples of a sixteenth of the original's
SMALLEST = 0.95  # share of the reference size that a structure must reach to count as equal


def widths_space(config: Any) -> TransformerStudent:
    """The space of a model configuration with all heads kept and :data:`STEPS` feed-forward widths.

    Raises:
        ValueError: a model family that cannot be cut.
    """
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"models of type {config.model_type!r} cannot be cut; known: {', '.join(sorted(FAMILIES))}. "
            "Give another model as base"
        )
    return TransformerStudent.of(config, (1.0,), [i / STEPS for i in range(1, STEPS + 1)])


def first_layers(space: TransformerStudent, keep: int) -> StudentShape:
    """The structure that keeps the first ``keep`` layers whole.

    Raises:
        ValueError: ``keep`` is not between 1 and the original's layers less one.
    """
    if not 1 <= keep < space.layers:
        raise ValueError(f"keep={keep}: the original has {space.layers} layers; give 1 to {space.layers - 1}")
    whole = (space.heads[-1], space.neurons[-1])
    return StudentShape((whole,) * keep + (None,) * (space.layers - keep))


def weights(space: TransformerStudent, shape: StudentShape) -> float:
    """Weights of the kept layers, without the embeddings that every structure shares."""
    return space.size_features(shape)["flops"]


def equal_size(space: TransformerStudent, keep: int) -> list[StudentShape]:
    """All structures of the size of the first ``keep`` layers (at most it, at least :data:`SMALLEST` of it).

    Deterministic order, the first ``keep`` layers first.
    """
    reference = first_layers(space, keep)
    limit, heads = weights(space, reference), space.heads[-1]
    found = []
    for depth in range(keep, space.layers + 1):
        fitting = [n for n in space.neurons if _of(space, range(depth), heads, n, limit)]
        for kept in combinations(range(space.layers), depth) if fitting else ():
            found.append(_shape(space, kept, heads, fitting[-1]))
    return [reference, *(s for s in found if s != reference)]


def _shape(space: TransformerStudent, kept: Any, heads: int, neurons: int) -> StudentShape:
    return StudentShape(tuple((heads, neurons) if i in kept else None for i in range(space.layers)))


def _of(space: TransformerStudent, kept: Any, heads: int, neurons: int, limit: float) -> bool:
    return SMALLEST * limit <= weights(space, _shape(space, kept, heads, neurons)) <= limit
