"""Layer maps: which student layer learns from which teacher layer.

A map is a list of ``(student, teacher)`` pairs of layer numbers, where 0 is the embedding output and L the last layer,
or the name of a preset.
"""

from collections.abc import Sequence

PRESETS = ("last", "uniform", "skip", "top", "all-but-last", "every-but-last")
LayerMap = str | Sequence[tuple[int, int]]


def layer_map(spec: LayerMap, student_depth: int, teacher_depth: int) -> list[tuple[int, int]]:
    """The pairs of a map.

    Args:
        spec: pairs, or ``last`` (last to last), ``uniform`` (every student layer, teacher layers evenly spaced, both
            ends matched: TinyBERT), ``skip`` (as uniform without the last: PKD-skip), ``top`` (student layers but the
            last to the teacher's upper layers: PKD-last), ``all-but-last`` (layers 1 to L - 1 of both, paired evenly),
            ``every-but-last`` (each of these with each).

    Raises:
        ValueError: unknown preset, a pair outside the models, no pair left, or a student layer given twice.
    """
    s, t = student_depth, teacher_depth
    if isinstance(spec, str):
        if spec not in PRESETS:
            raise ValueError(f"unknown layer map {spec!r}; allowed: {', '.join(PRESETS)}, or pairs (student, teacher)")
        pairs = {
            "last": [(s, t)],
            "uniform": [(i, round(i * t / s)) for i in range(s + 1)],
            "skip": [(i, round(i * t / s)) for i in range(1, s)],
            "top": [(i, t - s + i) for i in range(1, s)],
            "all-but-last": [(i, max(1, round(i * (t - 1) / (s - 1)))) for i in range(1, s)] if s > 1 else [],
            "every-but-last": [(i, j) for i in range(1, s) for j in range(1, t)],
        }[spec]
    else:
        pairs = [(int(a), int(b)) for a, b in spec]
    for a, b in pairs:
        if not (0 <= a <= s and 0 <= b <= t):
            raise ValueError(
                f"layer pair ({a}, {b}) of map {spec!r} is outside: student layers are 0-{s}, teacher layers 0-{t}"
            )
    if not pairs:
        raise ValueError(f"layer map {spec!r} is empty for a student of {s} and a teacher of {t} layers")
    if spec != "every-but-last" and len({a for a, _ in pairs}) < len(pairs):
        raise ValueError(f"layer map {spec!r} uses a student layer twice: {pairs}")
    return pairs
