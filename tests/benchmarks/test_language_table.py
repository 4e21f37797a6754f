"""The table of merged language models: goals and page are functions of its rows, whole or not."""

import pytest

from benchmarks import evolve_language as bench
from benchmarks.evolve_language_report import BASELINES, goals, page

METHODS = ("emfto", *BASELINES)


def rows(seeds=(0, 1, 2), methods=METHODS):
    found = []
    for cell in bench.cells("default"):
        if cell.method == "experts":
            for task in bench.TASKS:
                found += [cell.row(f"base {task}", 0.4), cell.row(f"expert {task}", 0.8)]
            found.append(cell.row("normalised base", 50.0))
        elif cell.method in methods and cell.seed in seeds:
            value = {"emfto": 95.0 + cell.seed, "cold_cma": 94.5, "tsv_m": 94.0}.get(cell.method, 80.0)
            found.append(cell.row("normalised", value, {"task_examples": 4000}, "test"))
            found += [cell.row(f"normalised {task}", value) for task in bench.TASKS]
            found.append(cell.row("cpu_seconds", 12.0))
    return found


def test_goals_hold_on_three_whole_seeds():
    whole, static, cold = goals(rows())
    assert (whole.value, whole.holds) == (3, True)
    assert (static.value, static.holds) == (2.0, True)
    assert (cold.value, cold.holds) == (1.5, True)


@pytest.mark.parametrize("missing", ["wudi", "greedy_soup", "emfto"])
def test_a_missing_method_is_no_whole_seed(missing, tmp_path):
    listed = rows(methods=[m for m in METHODS if m != missing])
    assert not goals(listed)[0].holds
    assert f"| {missing} |" not in page(listed, tmp_path)
    assert not any(g.holds for g in goals([]))
    assert page([], tmp_path) == "No rows yet."


def test_the_page_shows_every_method_with_what_it_spent(tmp_path):
    text = page(rows(), tmp_path)
    assert all(f"| {m} |" in text for m in METHODS)
    assert "| emfto | 96.00 |" in text
    assert "| moral_word | 40.0 | 80.0 |" in text
    assert text.count("| 4000 |") == len(METHODS)


def test_a_whole_comparison_comes_first_and_sizes_do_not_mix():
    cells = bench.cells("default")
    assert [c.method for c in cells[: 1 + len(METHODS)]] == ["experts", *METHODS]
    assert len(cells) == 1 + 3 * len(METHODS)
    keys = [c.row("", None).key() for size in bench.SCALES for c in bench.cells(size)]
    assert len(keys) == len(set(keys))
