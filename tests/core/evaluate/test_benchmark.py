import json
import os
import platform
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import core
from core.evaluate.benchmark import Benchmark, Cell, Goal
from core.evaluate.carry import draw
from core.evaluate.machine import hardware
from core.evaluate.rows import read_rows, write_rows
from core.hashing import code_version
from core.state import StateError


def make(tmp_path, calls, value=0.5):
    def cells(size):
        count = {"smoke": 1, "default": 3, "full": 3}[size]
        return [Cell("m", {"n": n}, seed=0, modules=["core.state"]) for n in range(count)]

    def measure(cell):
        calls.append(cell.settings["n"])
        return [cell.row("accuracy", value), cell.row("seconds", float(len(calls)))]

    def goals(rows):
        values = [r.value for r in rows if r.metric == "accuracy"]
        mean = sum(values) / len(values) if values else None
        return [Goal("accuracy", ">= 0.4", mean, None, None, len(values) == 3 and mean >= 0.4)]

    return Benchmark("x", "X", cells, measure, goals, lambda rows, folder: "body", frozenset({"seconds"}))


def test_grows_over_runs_and_computes_goals(tmp_path):
    calls = []
    bench = make(tmp_path, calls)
    bench.run("smoke", folder=tmp_path)
    assert json.loads((tmp_path / "x.goals.json").read_text())[0]["holds"] is False
    bench.run("default", folder=tmp_path)
    assert calls == [0, 1, 2]
    goal = json.loads((tmp_path / "x.goals.json").read_text())[0]
    assert goal == {"goal": "accuracy", "target": ">= 0.4", "value": 0.5, "low": None, "high": None, "holds": True}
    assert "| accuracy | >= 0.4 | 0.5 |" in (tmp_path / "x.md").read_text()


def test_two_processes_keep_each_others_rows(tmp_path):
    """While one measures its first cell the other fills the table: nothing is lost, and no cell stands twice."""
    mine, theirs = [], []
    bench, other = make(tmp_path, mine), make(tmp_path, theirs)

    def measure(cell):
        if not mine:
            other.run("default", folder=tmp_path)
            extra = Cell("another method", {"n": 7}, seed=0, modules=["core.state"]).row("accuracy", 0.9)
            write_rows(tmp_path / "x.jsonl", [*read_rows(tmp_path / "x.jsonl"), extra])
        return bench.measure(cell)

    replace(bench, measure=measure).run("default", folder=tmp_path)
    rows = read_rows(tmp_path / "x.jsonl")
    assert [r.settings["n"] for r in rows if r.metric == "accuracy"] == [0, 1, 2, 7]
    assert len(rows) == 7
    assert theirs == [0, 1, 2]


def test_what_another_process_adds_while_rows_are_carried_or_dropped_stays(tmp_path):
    of_earlier_code(tmp_path)
    bench = make(tmp_path, [])
    extra = Cell("another method", {"n": 7}, seed=0, modules=["core.state"]).row("accuracy", 0.9)

    def measure(cell):
        write_rows(tmp_path / "x.jsonl", [*read_rows(tmp_path / "x.jsonl"), extra])
        return bench.measure(cell)

    replace(bench, measure=measure).run("default", folder=tmp_path, carry=1)
    rows = read_rows(tmp_path / "x.jsonl")
    assert extra in rows
    assert [r.version for r in rows].count("older") == 4


def test_verify_recomputes_and_disagrees_loudly(tmp_path):
    make(tmp_path, []).run("default", folder=tmp_path)
    make(tmp_path, []).run("default", verify=2, folder=tmp_path)
    with pytest.raises(SystemExit, match=r"stored 0\.5 \(on .*\), recomputed 0\.7 \("):
        make(tmp_path, [], value=0.7).run("default", verify=1, folder=tmp_path)


def test_verify_on_other_hardware_tells_what_differs(tmp_path, capsys):
    make(tmp_path, []).run("default", folder=tmp_path)
    path = tmp_path / "x.jsonl"
    path.write_text(path.read_text().replace(hardware(), "x86_64 64 cores, Other CPU"))
    make(tmp_path, [], value=0.7).run("default", verify=1, folder=tmp_path)
    assert "measured on x86_64 64 cores, Other CPU" in capsys.readouterr().out


def test_hardware_names_what_rounding_depends_on(monkeypatch):
    from core.models import score

    hardware.cache_clear()
    monkeypatch.setattr(score, "cpu_has_bfloat16", lambda: True)
    try:
        told = hardware()
    finally:
        hardware.cache_clear()
    assert told.startswith(f"{platform.machine()} {os.cpu_count()} cores, ")
    assert torch.backends.cpu.get_cpu_capability() in told
    assert ", bfloat16" in told


def test_rows_of_other_code_do_not_count(tmp_path):
    bench = make(tmp_path, [])
    bench.run("default", folder=tmp_path)
    text = (tmp_path / "x.jsonl").read_text()
    lines = [json.loads(line) | {"version": "older"} for line in text.splitlines()]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    calls = []
    make(tmp_path, calls).run("default", folder=tmp_path)
    assert calls == [0, 1, 2]
    assert len((tmp_path / "x.jsonl").read_text().splitlines()) == 12
    make(tmp_path, calls).run("default", folder=tmp_path, prune=True)
    assert len((tmp_path / "x.jsonl").read_text().splitlines()) == 6
    assert calls == [0, 1, 2]


def of_earlier_code(tmp_path):
    """A full table whose rows say that other code measured them."""
    make(tmp_path, []).run("default", folder=tmp_path)
    lines = [json.loads(line) | {"version": "older"} for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_page_tells_what_is_stored_and_does_not_count(tmp_path):
    of_earlier_code(tmp_path)
    make(tmp_path, []).run("smoke", folder=tmp_path)
    page = (tmp_path / "x.md").read_text()
    assert "2 rows of the present code" in page
    assert "4 further rows were measured by earlier code" in page
    make(tmp_path, []).run("default", folder=tmp_path)
    assert "further rows" not in (tmp_path / "x.md").read_text()


def test_rows_of_earlier_code_count_once_a_cell_measured_again_agrees(tmp_path):
    of_earlier_code(tmp_path)
    calls = []
    make(tmp_path, calls).run("default", folder=tmp_path, carry=1)
    assert len(calls) == 1
    versions = [json.loads(line)["version"] for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert versions.count("older") == 4  # the cell measured again has rows of its own now
    (finding,) = json.loads((tmp_path / "x.carried.json").read_text())
    assert finding["old"] == "older"
    assert finding["rows"] == 6
    assert finding["cells"] == [f"m {{'n': {calls[0]}}} seed 0"]
    page = (tmp_path / "x.md").read_text()
    assert "6 rows of the present code" in page
    assert "4 of them were measured by earlier code" in page
    make(tmp_path, calls).run("default", folder=tmp_path, prune=True, verify=3)
    assert len(calls) == 4  # nothing missing; VERIFY measures carried cells too
    assert len((tmp_path / "x.jsonl").read_text().splitlines()) == 6


def test_a_cell_of_timings_alone_is_measured_again(tmp_path):
    of_earlier_code(tmp_path)
    path = tmp_path / "x.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    timed = [r for r in lines if r["settings"]["n"] != 2 or r["metric"] == "seconds"]
    path.write_text("".join(json.dumps(r) + "\n" for r in timed))
    calls = []
    make(tmp_path, calls).run("default", folder=tmp_path, carry=1)
    assert calls[1:] == [2]


def test_rows_of_earlier_code_that_differ_are_not_carried(tmp_path):
    of_earlier_code(tmp_path)
    with pytest.raises(SystemExit, match=r"stored 0\.5 \(on .*\), recomputed 0\.7 \("):
        make(tmp_path, [], value=0.7).run("default", folder=tmp_path, carry=1)
    assert not (tmp_path / "x.carried.json").exists()
    calls = []
    make(tmp_path, calls).run("default", folder=tmp_path)
    assert calls == [0, 1, 2]


def test_a_carry_that_was_stopped_goes_on_with_what_it_measured(tmp_path):
    of_earlier_code(tmp_path)
    make(tmp_path, []).run("smoke", folder=tmp_path)  # as a stopped carry leaves it: rows of both codes for one cell
    calls = []
    make(tmp_path, calls).run("smoke", folder=tmp_path, carry=1)
    assert calls == []
    assert len((tmp_path / "x.jsonl").read_text().splitlines()) == 6
    assert "6 rows of the present code" in (tmp_path / "x.md").read_text()
    make(tmp_path, calls).run("default", folder=tmp_path)
    assert calls == []


OTHER_CODE = """
import os
from core.evaluate.benchmark import Benchmark, Cell

def cells(size):
    return [Cell("m", {"n": n}, 0, ["core.progress"]) for n in range(1 if size == "smoke" else 3)]

def measure(cell):
    assert os.environ["TRANSFEROPT_HOME"].endswith("before")  # a cache of its own
    return [cell.row("accuracy", VALUE), cell.row("seconds", 9.0)]

BENCHMARK = Benchmark("x", "X", cells, measure, lambda rows: [], lambda rows, folder: "", frozenset({"seconds"}))
"""


@pytest.fixture
def rows_of_elsewhere(tmp_path):
    """A table of other code and other hardware, and a checkout of that code whose values are those given."""

    def checkout(value):
        (tmp_path / "old" / "benchmarks").mkdir(parents=True)
        (tmp_path / "old" / "core").symlink_to(Path(core.__file__).parent)
        (tmp_path / "old" / "benchmarks" / "x.py").write_text(OTHER_CODE.replace("VALUE", str(value)))
        return tmp_path / "old"

    make(tmp_path, [], value=0.55).run("default", folder=tmp_path)
    path = tmp_path / "x.jsonl"
    change = {"version": code_version(["core.progress"]), "hardware": "another CPU"}
    lines = [json.loads(line) | change for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return checkout


def test_rows_of_other_hardware_count_once_both_codes_agree_on_this_one(tmp_path, rows_of_elsewhere):
    calls = []
    stored = (tmp_path / "x.jsonl").read_text()
    make(tmp_path, calls).run("default", folder=tmp_path, carry=1, before=rows_of_elsewhere(0.5))
    assert len(calls) == 1
    assert (tmp_path / "x.jsonl").read_text() == stored
    (finding,) = json.loads((tmp_path / "x.carried.json").read_text())
    assert (finding["rows"], len(finding["cells"])) == (6, 1)
    assert hardware() in finding["beside"]
    page = (tmp_path / "x.md").read_text()
    assert "6 rows of the present code" in page
    assert "1 of its cells, drawn at random, were measured again by the present code (by both codes" in page
    make(tmp_path, calls).run("default", folder=tmp_path, carry=1, before=tmp_path / "old")
    assert len(calls) == 1  # they count already


def test_rows_of_other_hardware_are_not_carried_where_the_codes_differ(tmp_path, rows_of_elsewhere):
    with pytest.raises(SystemExit, match=r"accuracy: stored 0\.51 .* recomputed 0\.5 "):
        make(tmp_path, []).run("default", folder=tmp_path, carry=1, before=rows_of_elsewhere(0.51))
    assert not (tmp_path / "x.carried.json").exists()
    with pytest.raises(SystemExit, match="no checkout with the benchmark x"):
        make(tmp_path, []).run("default", folder=tmp_path, carry=1, before=tmp_path)


def test_a_carry_draws_every_method_and_few_seeds():
    cells = [("a", 0), ("a", 1), ("b", 0), ("b", 1), ("c", 1), ("d", 2)]
    assert draw(cells, 1) == [1, 3, 4, 5]
    assert draw(cells, 2) == [0, 1, 2, 3, 4, 5]
    assert draw(cells, 1, ["a", "c"]) in ([2, 5], [3, 5])


def test_damaged_findings_are_named(tmp_path):
    of_earlier_code(tmp_path)
    (tmp_path / "x.carried.json").write_text('[{"old": 1}]')
    with pytest.raises(StateError, match=r"x\.carried\.json is damaged"):
        make(tmp_path, []).run("default", folder=tmp_path)


def test_a_goal_computed_from_arrays_is_written():
    value = np.mean([0.5, 0.6])
    assert json.dumps(Goal("g", ">= 0", value, None, None, value >= 0).as_dict())
