"""Rows of earlier code that stand for the present code, because sampled cells measured again agree.

A change of code that should change no result would else drop every row it touches. The rows themselves are never
rewritten: they keep the version and the commit they were measured by, and ``NAME.carried.json`` says which later
versions they stand for and on what evidence.
"""

import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import Field, TypeAdapter

from core.config import Config
from core.evaluate.rows import Row
from core.state import StateError, write_json


class Carried(Config):
    """One finding: what code ``old`` measured, code ``new`` measures as well."""

    old: str = Field(description="version of the rows")
    new: str = Field(description="version they stand for")
    commit: str = Field(description="where the cells were measured again")
    rows: int = Field(description="rows that stand for the new version since")
    cells: list[str] = Field(description="the cells measured again, each of whose values agreed")
    beside: str = Field("", description="commit whose code measured the same cells beside it, on other hardware")


_LIST = TypeAdapter(list[Carried])


def read_carried(path: Path) -> list[Carried]:
    """The findings of a benchmark; an absent file is an empty list.

    Raises:
        StateError: the file is damaged.
    """
    if not path.exists():
        return []
    try:
        return _LIST.validate_python(json.loads(path.read_text()))
    except ValueError as error:
        raise StateError(f"{path} is damaged ({error}); remove it, and rows of earlier code no longer count") from None


def write_carried(path: Path, findings: Iterable[Carried]) -> None:
    """Write findings, atomically."""
    write_json(path, [f.model_dump(mode="json") for f in findings])


def by_cell(
    rows: Sequence[Row], findings: Sequence[Carried], timings: frozenset[str] = frozenset()
) -> dict[str, list[Row]]:
    """Key of a cell -> the rows that count for it: those of its own code, else the last that stand for it.

    Args:
        timings: metrics that say nothing about other code; a cell of nothing else is not stood for.
    """
    own: dict[str, list[Row]] = {}
    standing: dict[str, list[Row]] = {}
    later: dict[str, list[str]] = {}
    for f in findings:
        later.setdefault(f.old, []).append(f.new)
    for r in rows:
        own.setdefault(r.key(), []).append(r)
        for version in later.get(r.version, []):
            standing.setdefault(r.model_copy(update={"version": version}).key(), []).append(r)
    kept = {key: latest(found) for key, found in standing.items() if any(r.metric not in timings for r in found)}
    return kept | own


def latest(rows: Sequence[Row]) -> list[Row]:
    """Of one cell's rows, those of the version that wrote last."""
    return [r for r in rows if r.version == rows[-1].version]


def anonymous(row: Row) -> str:
    """What a row measures, whatever code measured it."""
    return row.model_copy(update={"version": ""}).key()


def draw(candidates: Sequence[tuple[str, int]], per_method: int, done: Sequence[str] = ()) -> list[int]:
    """Which cells to measure again: places in ``candidates`` (method, seed).

    ``per_method`` of every method, less those of ``done`` (methods, as often as measured), at random. The seed that has
    most methods goes first, because what seeds share (trained experts, cached signals) is often dearer than the cells.
    """
    chance = random.SystemRandom()
    methods_of: dict[int, set[str]] = {}
    for method, seed in candidates:
        methods_of.setdefault(seed, set()).add(method)
    rank = {seed: (-len(methods), chance.random()) for seed, methods in methods_of.items()}
    order = sorted(range(len(candidates)), key=lambda i: (rank[candidates[i][1]], chance.random()))
    taken = Counter(done)
    found = []
    for place in order:
        method = candidates[place][0]
        if taken[method] < per_method:
            taken[method] += 1
            found.append(place)
    return sorted(found)
