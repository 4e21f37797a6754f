"""Cells drawn as graphs: operations as coloured boxes from left to right, data flow as arrows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import networkx as nx

from core.nas.spaces import OPS, Genotype, Space
from core.state import atomic_path

COLOURS = {
    "end": "#d9d9d9",
    "join": "#f2f2f2",
    "conv": "#9ecae1",
    "pool": "#c7e9c0",
    "skip": "#fdd0a2",
    "pointwise": "#dadaeb",
}
WIDTH, HEIGHT = 1.3, 0.9  # inches a column and a row


def positions(graph: nx.DiGraph) -> dict[Any, tuple[float, float]]:
    """Left-to-right layout: column = longest way from an input, rows ordered by the rows of the inputs; cells stacked.

    Deterministic; equal graphs are drawn equally.
    """
    placed: dict[Any, tuple[float, float]] = {}
    offset = 0.0
    cells = list(dict.fromkeys(data.get("cell") for _, data in graph.nodes(data=True)))
    for cell in cells:
        part = graph.subgraph([n for n, data in graph.nodes(data=True) if data.get("cell") == cell])
        column: dict[Any, int] = {}
        order = list(nx.lexicographical_topological_sort(part, key=str))
        for node in order:
            column[node] = max((column[p] + 1 for p in part.predecessors(node)), default=0)
        rows: dict[Any, float] = {}
        tallest = 1
        for number in range(max(column.values()) + 1):
            members = [n for n in order if column[n] == number]
            members.sort(key=lambda n: (_mean([rows[p] for p in part.predecessors(n)]), str(n)))
            tallest = max(tallest, len(members))
            for place, node in enumerate(members):
                rows[node] = place - (len(members) - 1) / 2
        middle = offset - (tallest - 1) / 2
        placed |= {node: (float(column[node]), middle - rows[node]) for node in order}
        offset -= tallest + 0.6
    return placed


def draw(space: Space, cells: Sequence[Genotype], titles: Sequence[str] | None = None) -> Any:
    """A matplotlib figure with one panel a cell.

    Args:
        titles: one a cell (its accuracy, say); by default its text form, wrapped.

    Raises:
        ValueError: no cells, or as many titles as not cells.
    """
    if not cells or (titles is not None and len(titles) != len(cells)):
        raise ValueError(f"{len(cells)} cells and {None if titles is None else len(titles)} titles cannot be drawn")
    from matplotlib.figure import Figure

    layouts = []
    for cell in cells:
        space.check(cell)
        graph = space.graph(cell)
        layouts.append((graph, positions(graph)))
    heights = [max(2.0, HEIGHT * (1.5 + _span(p, 1))) for _, p in layouts]
    columns = max(_span(p, 0) for _, p in layouts)
    figure = Figure(figsize=(max(4.0, WIDTH * (columns + 1.6)), sum(heights)), layout="constrained")
    axes = figure.subplots(len(cells), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (graph, layout), cell, number in zip(axes, layouts, cells, range(len(cells))):
        _panel(axis, graph, layout)
        axis.set_title(titles[number] if titles is not None else space.format(cell), fontsize=8, wrap=True)
    return figure


def save(path: str | Path, space: Space, cells: Sequence[Genotype], titles: Sequence[str] | None = None) -> Path:
    """Draw ``cells`` into the file ``path`` (.png, .svg or .pdf), atomically."""
    path = Path(path)
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"a drawing is a .png, .svg or .pdf file, got {path.name!r}")
    figure = draw(space, cells, titles)
    undated: Mapping[str, None] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix, {})
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=120, metadata=dict(undated))
    return path


def _panel(axis: Any, graph: nx.DiGraph, layout: Mapping[Any, tuple[float, float]]) -> None:
    for source, target in graph.edges:
        (x0, y0), (x1, y1) = layout[source], layout[target]
        bend = 0.25 if y0 == y1 and x1 - x0 > 1 else 0.0  # an edge over a box in between bows around it
        arrow = {"arrowstyle": "-|>", "color": "#555555", "shrinkA": 16, "shrinkB": 24, "linewidth": 0.8}
        axis.annotate("", (x1, y1), (x0, y0), arrowprops=arrow | {"connectionstyle": f"arc3,rad={bend}"})
    for node, data in graph.nodes(data=True):
        x, y = layout[node]
        label = "+" if data["op"] == "sum" else data["op"]
        box = {"boxstyle": "round,pad=0.3", "facecolor": COLOURS[OPS[data["op"]].family], "edgecolor": "#777777"}
        axis.text(x, y, label, ha="center", va="center", fontsize=7, bbox=box)
    for cell in dict.fromkeys(data.get("cell") for _, data in graph.nodes(data=True)):
        if cell is not None:
            top = max(layout[n][1] for n, data in graph.nodes(data=True) if data.get("cell") == cell)
            axis.text(-0.6, top + 0.55, f"{cell} cell", fontsize=8, style="italic")
    xs, ys = zip(*layout.values())
    axis.set_xlim(min(xs) - 0.7, max(xs) + 0.7)
    axis.set_ylim(min(ys) - 0.8, max(ys) + 0.8)
    axis.axis("off")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _span(layout: Mapping[Any, tuple[float, float]], axis: int) -> float:
    values = [p[axis] for p in layout.values()]
    return max(values) - min(values)
