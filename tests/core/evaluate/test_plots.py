"""Plots: same data give the same bytes, labels and intervals are there, empty input is refused."""

import numpy as np
import pytest

from core.evaluate import plots
from core.evaluate.statistics import Interval

FIGURES = {
    "bars": lambda: plots.bars_with_intervals(
        {"ours": {"a": Interval(1, 0.5, 1.5), "b": 2.0}, "x": {"a": 1.0}}, "score"
    ),
    "curves": lambda: plots.curves_with_bands(
        {"c": ([1, 2], [Interval(1, 0, 2), 3.0]), "d": ([1], [1.0])}, "n", "score"
    ),
    "heat": lambda: plots.heat_map(np.array([[1.0, np.nan], [0.2, -1]]), ["r", "s"], ["p", "q"], diverging=True),
    "confusion": lambda: plots.confusion([0, 1, 1], [0, 1, 0], ["no", "yes"], "who errs"),
    "scatter": lambda: plots.scatter({"s": ([1, 2], [3, 4])}, "x", "y"),
}


@pytest.mark.parametrize("name", sorted(FIGURES))
def test_figures_are_reproducible(name):
    first, second = plots.svg(FIGURES[name]()), plots.svg(FIGURES[name]())
    assert first == second
    assert first.startswith("<svg")
    assert plots.png(FIGURES[name]()).startswith(b"\x89PNG")


def test_intervals_and_labels_are_drawn():
    ax = FIGURES["bars"]().axes[0]
    assert ax.get_ylabel() == "score"
    assert len(ax.patches) == 3
    assert len(ax.collections) == 1, "one value has an interval"
    confusion = FIGURES["confusion"]()
    assert [t.get_text() for t in confusion.axes[0].texts] == ["1", "0", "1", "1"]
    assert confusion.axes[0].get_xlabel() == "predicted"


def test_empty_input_is_refused():
    with pytest.raises(ValueError, match="no bars"):
        plots.bars_with_intervals({}, "y")
    with pytest.raises(ValueError, match="row and"):
        plots.heat_map(np.zeros((2, 2)), ["a"], ["b"])
