"""Why a merge will lose, before it is made: where the experts of a recipe contradict, overlap or drown each other.

One pass over the base and the experts (and one before it that finds the magnitudes' thresholds) gives per layer and
pair of experts

- ``cosine``: of their deltas; near zero they can be added, far below zero one undoes the other;
- ``sign_conflict``: share of the weights that both change where they pull in opposite directions (chance: one half);
- ``overlap``: share of each one's ``density`` largest changes of a tensor that are also among the other's (chance:
  ``density``); unchanged weights count for nothing;

and per layer and expert the ``norm`` of its delta, its ``relative_norm`` (to the base's), and its ``share`` of the
squared norms together; ``imbalance`` of a layer is the largest share times the number of experts (1: all equal, n: one
expert is all there is, and its direction wins every election).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from core.evaluate.rows import Row, write_rows
from core.hashing import code_version
from core.merge.compute import open_group
from core.merge.linalg import one_thread
from core.merge.names import is_before, sort_names
from core.merge.operators import Group
from core.merge.plan import Plan, make_plan
from core.merge.provenance import file_digest
from core.merge.recipe import Recipe
from core.merge.selection import keys, magnitude_masks
from core.progress import track
from core.state import write_bytes

PAIR_METRICS = {
    "cosine": "cosine of the deltas",
    "sign_conflict": "share of commonly changed weights with opposite signs",
    "overlap": "share of the largest changes in common",
}
EXPERT_METRICS = {
    "relative_norm": "norm of the delta / norm of the base",
    "share": "share of the experts' squared norms",
}
ROWS, METHOD = "diagnose.jsonl", "diagnose"
ALL = "all layers"


@dataclass
class _Sums:
    """Running sums of one layer over n experts: all matrices are (n, n) and symmetric."""

    n: int
    dots: np.ndarray = field(init=False)
    agreement: np.ndarray = field(init=False)
    both: np.ndarray = field(init=False)
    common: np.ndarray = field(init=False)
    base: float = 0.0

    def __post_init__(self):
        self.dots, self.agreement, self.both, self.common = (np.zeros((self.n, self.n)) for _ in range(4))

    def add(self, base: np.ndarray, deltas: np.ndarray, largest: np.ndarray) -> None:
        """Count a block: base ``(size,)``, deltas and their largest entries (bool) ``(n, size)``."""
        signs = np.sign(deltas)
        changed = np.abs(signs)
        large = largest.astype(np.float64)
        self.dots += deltas @ deltas.T
        self.agreement += signs @ signs.T
        self.both += changed @ changed.T
        self.common += large @ large.T
        self.base += float(base @ base)

    def merge(self, other: "_Sums") -> None:
        for name in ("dots", "agreement", "both", "common"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.base += other.base


@dataclass(frozen=True)
class Diagnosis:
    """Rows of every layer, pair and expert, and how to draw them."""

    rows: tuple[Row, ...]
    experts: tuple[str, ...]
    layers: tuple[str, ...]

    def save(self, out: str | Path) -> list[Path]:
        """Write the rows (JSON lines) and a heat map (PNG) of every metric; returns the files."""
        from core.evaluate.plots import png

        out = Path(out)
        write_rows(out / ROWS, self.rows)
        written = [out / ROWS]
        for metric in [*PAIR_METRICS, *EXPERT_METRICS]:
            if metric in PAIR_METRICS and len(self.experts) < 2:
                continue
            written.append(out / f"{metric}.png")
            write_bytes(written[-1], png(self.heat_map(metric)))
        return written

    def heat_map(self, metric: str) -> Any:
        """A figure: layers down, pairs (or experts) across."""
        from core.evaluate.plots import heat_map

        described = PAIR_METRICS | EXPERT_METRICS
        if metric not in described:
            raise ValueError(f"no heat map of {metric!r}; allowed: {', '.join(described)}")
        cells = {(r.settings["layer"], _who(r)): r.value for r in self.rows if r.metric == metric}
        across = list(dict.fromkeys(who for _, who in cells))
        values = [[cells.get((layer, who)) for who in across] for layer in self.layers]
        matrix = np.array([[np.nan if v is None else v for v in row] for row in values], dtype=np.float64)
        return heat_map(
            matrix,
            self.layers,
            across,
            title=described[metric],
            xlabel="pair of experts" if metric in PAIR_METRICS else "expert",
            ylabel="layer",
            diverging=metric == "cosine",
        )

    def summary(self) -> str:
        """The whole models' figures as lines for a terminal."""
        lines = []
        for row in self.rows:
            if row.settings["layer"] == ALL and row.value is not None:
                lines.append(f"{_who(row) or 'all experts':40} {row.metric:14} {row.value:.4f}")
        return "\n".join(lines)


def diagnose(
    source: str | Path | Mapping[str, Any] | Recipe, density: float = 0.2, names: Sequence[str] | None = None
) -> Diagnosis:
    """Compare the experts of a recipe layer by layer; its operator and parameters do not matter.

    Args:
        source: recipe with a base model.
        density: share of the largest changes of a tensor whose overlap is counted.
        names: of the experts in the recipe's order, for rows and pictures; default the ends of their paths.

    Memory: a few blocks and one bit per weight of the largest tensor and expert.

    Raises:
        ValueError: no base model, a density outside (0, 1], or inputs that cannot be merged.
    """
    if not 0 < density <= 1:
        raise ValueError(f"density={density}; needed: above 0, at most 1")
    plan = make_plan(source)
    if plan.recipe.base_model is None:
        raise ValueError("the recipe has no base_model; deltas are differences from the model the experts come from")
    jobs = [job for job in plan.jobs if not job.copy and job.base is not None]
    if not jobs:
        raise ValueError("the recipe merges no floating-point tensor that its base has")
    experts = tuple(str(plan.references[i.model]) for i in jobs[0].inputs)
    short = tuple(names) if names is not None else short_names(experts)
    if len(short) != len(experts):
        raise ValueError(f"{len(short)} names for {len(experts)} experts")
    place = sort_names([job.name for job in jobs]).places
    layers: dict[str, _Sums] = {}
    with track("diagnose", sum(job.read_bytes for job in jobs), "B") as bar, one_thread():
        for job in jobs:
            with ExitStack() as stack:
                sums = layers.setdefault(_layer(job.name, place), _Sums(len(experts)))
                _count(open_group(plan, job, stack), density, sums)
            bar.advance(job.read_bytes)
    whole = _Sums(len(experts))
    for sums in layers.values():
        whole.merge(sums)
    rows = _rows({**layers, ALL: whole}, short, density, _inputs(plan))
    return Diagnosis(tuple(rows), short, (*layers, ALL))


def short_names(names: Sequence[str]) -> tuple[str, ...]:
    """The last parts of paths, as many as tell them apart."""
    parts = [Path(name).parts for name in names]
    for length in range(1, max(map(len, parts)) + 1):
        short = ["/".join(p[-length:]) for p in parts]
        if len(set(short)) == len(short):
            return tuple(short)
    return tuple(names)


def _count(group: Group, density: float, sums: _Sums) -> None:
    """Add one tensor."""
    keep = max(1, int(group.size * density))
    masks = magnitude_masks(group, [(0, keep)] * len(group.sources))
    ties = [[m.low_ties, m.high_ties] for m in masks]
    for block in group.blocks():
        kept = [m.keep(keys(d), block.start, t) & (d != 0) for m, d, t in zip(masks, block.deltas, ties, strict=True)]
        sums.add(block.base, np.stack(block.deltas), np.stack(kept))


def _layer(name: str, places: Mapping[str, Any]) -> str:
    place = places.get(name)
    if place is not None and place.stack:
        return f"{place.stack}.{place.layer}"
    return "embeddings" if is_before(name) else "other"


def _inputs(plan: Plan) -> dict[str, str]:
    """sha256 of every model file; short keys."""
    return {
        f"{ref}/{file.name}": file_digest(file)
        for ref, checkpoint in zip(plan.references, plan.checkpoints, strict=True)
        for file in checkpoint.files
    }


def _rows(layers: Mapping[str, _Sums], experts: Sequence[str], density: float, inputs: dict[str, str]) -> Iterator[Row]:
    version = code_version([__name__])

    def row(metric: str, value: float | None, **settings: Any) -> Row:
        return Row(
            method=METHOD,
            metric=metric,
            value=None if value is None else float(value),
            settings=settings,
            inputs=inputs,
            version=version,
        )

    for layer, s in layers.items():
        norms = np.sqrt(np.diag(s.dots))
        total = np.square(norms).sum()
        for i, j in combinations(range(len(experts)), 2):
            pair = {"layer": layer, "a": experts[i], "b": experts[j]}
            yield row("cosine", _ratio(s.dots[i, j], norms[i] * norms[j]), **pair)
            yield row("sign_conflict", _ratio((s.both[i, j] - s.agreement[i, j]) / 2, s.both[i, j]), **pair)
            smaller = min(s.common[i, i], s.common[j, j])
            yield row("overlap", _ratio(s.common[i, j], smaller), density=density, **pair)
        for i, expert in enumerate(experts):
            one = {"layer": layer, "expert": expert}
            yield row("norm", norms[i], **one)
            yield row("relative_norm", _ratio(norms[i], np.sqrt(s.base)), **one)
            yield row("share", _ratio(norms[i] ** 2, total), **one)
        yield row("imbalance", _ratio(len(experts) * np.square(norms).max(), total), layer=layer)


def _ratio(a: float, b: float) -> float | None:
    return a / b if b > 0 else None


def _who(row: Row) -> str:
    s = row.settings
    return f"{s['a']} - {s['b']}" if "a" in s else s.get("expert", "")
