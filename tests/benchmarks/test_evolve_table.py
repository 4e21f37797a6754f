"""The table of evolved merges: goals and page are functions of its rows, whole or not."""

import pytest

from benchmarks import evolve_merge as bench
from benchmarks.evolve_merge_report import BUDGET, curve, goals

REACHED = "EMFTO above cold CMA-ES at equal total budget, normalised points"
BESIDE = "(beside) cold CMA-ES at half the budget, less its own final score"


def rows(scores):
    """Scores of a method at parts of the budget, eight seeds a little apart."""
    return [
        cell.row("normalised", scores[cell.method, BUDGET // cell.settings["budget"]] + cell.seed / 10)
        for cell in bench.cells("default")
        if cell.method in ("emfto", "cold_cma")
        and dict(cell.settings) == bench.settings(budget=cell.settings["budget"])
    ]


def told(found, goal):
    return next(g for g in found if g.goal == goal)


@pytest.mark.parametrize(
    ("half", "cold_half", "reached", "by_transfer"),
    [(98.8, 98.0, True, True), (98.8, 98.75, True, False), (98.6, 98.0, False, True)],
)
def test_half_the_budget_is_enough_and_whether_cold_needs_more(half, cold_half, reached, by_transfer):
    scores = {("emfto", 1): 98.9, ("emfto", 2): half, ("emfto", 4): 98.5}
    scores |= {("cold_cma", 1): 98.7, ("cold_cma", 2): cold_half, ("cold_cma", 4): 97.0}
    found = goals(rows(scores))
    assert told(found, REACHED).holds is reached
    assert told(found, REACHED).value == pytest.approx(0.2)
    assert told(found, BESIDE).holds is by_transfer
    assert told(found, BESIDE).value == pytest.approx(cold_half - 98.7)
    assert told(found, "seeds with curves at B/4 and B/2").holds


def test_without_rows_nothing_holds():
    assert not any(g.holds for g in goals([]))


def test_the_curve_says_how_sure_each_point_is(tmp_path):
    scores = {(m, part): 99.0 - part for m in ("emfto", "cold_cma") for part in (1, 2, 4)}
    text = curve(rows(scores), tmp_path)
    assert "| emfto | 25,000 | 95.35 |" in text
    assert text.count("| 8 |") == 6
    assert (tmp_path / "evolve_merge_curve.svg").stat().st_size > 1000
    assert curve([], tmp_path) == ""
