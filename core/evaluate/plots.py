"""Plots in one style: labelled axes, uncertainty drawn, a palette safe for colour-blind readers.

Every function returns a matplotlib ``Figure`` (Agg; pyplot and its global state are not used); :func:`svg` and
:func:`png` turn it into text or bytes that are the same for the same data.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from core.evaluate.statistics import Interval

# Okabe and Ito's eight colours, told apart under the common colour-vision deficiencies.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#F0E442")
STYLES = ("-", "--", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.hashsalt": "transferopt",
    "svg.fonttype": "path",
}


def bars_with_intervals(
    groups: Mapping[str, Mapping[str, Interval | float | None]],
    ylabel: str,
    title: str = "",
    reference: float | None = None,
) -> Any:
    """Grouped bars: ``groups[series][category]`` is an :class:`Interval` or a plain number; None leaves a gap."""
    categories = list(dict.fromkeys(c for series in groups.values() for c in series))
    _need(categories, "bars")
    fig, ax = _figure(title, "", ylabel, width=max(5.0, 0.28 * len(categories) * (len(groups) + 1) + 1.5))
    width = 0.8 / len(groups)
    for i, (name, series) in enumerate(groups.items()):
        for j, category in enumerate(categories):
            value = series.get(category)
            if value is None:
                continue
            interval = value if isinstance(value, Interval) else Interval(float(value), None, None)
            x = j - 0.4 + width * (i + 0.5)
            ax.bar(
                x,
                interval.mean,
                width * 0.92,
                color=_colour(i),
                label=name if j == _first(series, categories) else None,
            )
            if interval.low is not None and interval.high is not None:
                ax.vlines(x, interval.low, interval.high, color="#333333", linewidth=1)
    if reference is not None:
        ax.axhline(reference, color="#333333", linestyle="--", linewidth=1)
    long = max(map(len, map(str, categories))) > 8
    ax.set_xticks(range(len(categories)), [str(c) for c in categories], rotation=30 if long else 0,
                  ha="right" if long else "center")  # fmt: skip
    if len(groups) > 1:
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return fig


def curves_with_bands(
    curves: Mapping[str, tuple[Sequence[float], Sequence[Interval | float]]],
    xlabel: str,
    ylabel: str,
    title: str = "",
    log_x: bool = False,
) -> Any:
    """Lines with shaded intervals: ``curves[name] = (x, y)`` where y holds intervals or plain numbers."""
    _need(curves, "curves")
    fig, ax = _figure(title, xlabel, ylabel)
    for i, (name, (x, y)) in enumerate(curves.items()):
        if len(x) != len(y) or not len(x):
            raise ValueError(f"curve {name!r} has {len(x)} x values and {len(y)} y values")
        points = [v if isinstance(v, Interval) else Interval(float(v), None, None) for v in y]
        again = i // len(PALETTE)  # from the ninth curve on colours come a second time: dashed, with hollow markers
        drawn = {"linestyle": STYLES[again % len(STYLES)], "markerfacecolor": "white" if again else None}
        marker = MARKERS[i % len(MARKERS)] if len(x) <= 30 else None
        ax.plot(x, [p.mean for p in points], color=_colour(i), marker=marker, markersize=4, label=name, **drawn)
        low = [p.mean if p.low is None else p.low for p in points]
        high = [p.mean if p.high is None else p.high for p in points]
        ax.fill_between(x, low, high, color=_colour(i), alpha=0.18, linewidth=0)
    if log_x:
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:g}")
    if len(curves) > 1:
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return fig


def scatter(
    groups: Mapping[str, tuple[Sequence[float], Sequence[float]]], xlabel: str, ylabel: str, title: str = ""
) -> Any:
    """Points of several groups: ``groups[name] = (x, y)``."""
    _need(groups, "points")
    fig, ax = _figure(title, xlabel, ylabel)
    for i, (name, (x, y)) in enumerate(groups.items()):
        ax.scatter(x, y, s=18, color=_colour(i), marker=MARKERS[i % len(MARKERS)], label=name, alpha=0.85)
    if len(groups) > 1:
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return fig


def heat_map(
    matrix: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str = "",
    xlabel: str = "",
    ylabel: str = "",
    diverging: bool = False,
    form: str = "{:.2f}",
) -> Any:
    """A matrix as colours with its numbers; NaN cells stay empty. ``diverging`` centres the colours on zero."""
    m = np.asarray(matrix, dtype=np.float64)
    if m.shape != (len(rows), len(columns)) or m.size == 0:
        raise ValueError(f"matrix has shape {m.shape}, but {len(rows)} row and {len(columns)} column names were given")
    size = (max(3.5, 0.55 * len(columns) + 2.2), max(2.5, 0.4 * len(rows) + 1.4))
    fig, ax = _figure(title, xlabel, ylabel, width=size[0], height=size[1])
    ax.grid(False)
    finite = m[np.isfinite(m)]
    top = float(np.abs(finite).max()) if finite.size else 1.0
    limits = {"vmin": -top, "vmax": top} if diverging else {}
    image = ax.imshow(m, cmap="PuOr" if diverging else "cividis", aspect="auto", **limits)
    fig.colorbar(image, ax=ax, shrink=0.8)
    ax.set_xticks(range(len(columns)), list(columns), rotation=40, ha="right")
    ax.set_yticks(range(len(rows)), list(rows))
    if form and m.size <= 400:
        for (i, j), value in np.ndenumerate(m):
            if np.isfinite(value):
                red, green, blue, _ = image.cmap(image.norm(value))
                dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
                ax.text(j, i, form.format(value), ha="center", va="center", fontsize=7, color="w" if dark else "k")
    return fig


def confusion(
    y_true: Sequence[Any], y_pred: Sequence[Any], labels: Sequence[str] | None = None, title: str = ""
) -> Any:
    """Confusion matrix: rows are true classes, columns predictions, colours shares of the row, numbers counts.

    Args:
        labels: names of the class indices 0..len(labels)-1; without it the values themselves are the names.
    """
    from sklearn.metrics import confusion_matrix

    present = sorted(set(np.asarray(y_true).tolist()) | set(np.asarray(y_pred).tolist()))
    _need(present, "labels")
    classes = list(range(len(labels))) if labels is not None else present
    counts = confusion_matrix(y_true, y_pred, labels=classes)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = [str(n) for n in (labels if labels is not None else classes)]
    fig = heat_map(share, names, names, title, "predicted", "true", form="")
    ax = fig.axes[0]
    if counts.size <= 400:
        for (i, j), n in np.ndenumerate(counts):
            ax.text(j, i, str(n), ha="center", va="center", fontsize=7, color="k" if share[i, j] > 0.5 else "w")
    return fig


def svg(figure: Any) -> str:
    """The figure as an SVG element, without XML header and without date."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def png(figure: Any, dpi: int = 130) -> bytes:
    """The figure as PNG bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()


def _figure(title: str, xlabel: str, ylabel: str, width: float = 5.5, height: float = 3.4) -> tuple[Any, Any]:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=(min(width, 14), min(height, 14)), layout="constrained")
        FigureCanvasAgg(fig)
        ax = fig.add_subplot()
        ax.set(xlabel=xlabel, ylabel=ylabel)
        ax.set_title(title, loc="left")
    return fig, ax


def _colour(i: int) -> str:
    return PALETTE[i % len(PALETTE)]


def _first(series: Mapping[str, Any], categories: Sequence[str]) -> int:
    return next((j for j, c in enumerate(categories) if series.get(c) is not None), 0)


def _need(items: Any, what: str) -> None:
    if not len(items):
        raise ValueError(f"no {what} to draw")
