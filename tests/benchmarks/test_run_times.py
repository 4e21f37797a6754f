"""Times of whole runs: what is missing or too long does not hold."""

import os

from benchmarks import run_times as bench

MEMORY, ALL = "make run: peak memory of merge", "make run: all levels"


def rows(seconds, gigabytes=None):
    cell = bench.cells("default")[-1]
    found = [cell.row(f"{flow} seconds", seconds) for flow in bench.FLOWS]
    return found + ([] if gigabytes is None else [cell.row("merge gigabytes", gigabytes)])


def held(listed):
    return {g.goal for g in bench.goals(listed) if g.holds}


def test_without_rows_nothing_holds(tmp_path):
    assert not held([])
    assert "| merge | - | 0 | - | - | - |" in bench.page([], tmp_path)


def test_each_limit_is_its_own():
    assert held(rows(100.0)) == {ALL, *(f"make run: {f}" for f in ("merge", "distill", "evolve-merge", "search"))}
    assert held(rows(181.0, 2.9)) == {MEMORY, "make run: merge", "make run: distill"}
    assert MEMORY not in held(rows(1.0, 3.1))


def test_memory_of_a_process_that_is_gone_is_unknown():
    assert bench.peak(os.getpid())[0] > 1e7
    assert bench.peak(2**22 + 1) == []
