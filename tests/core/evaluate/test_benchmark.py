import json

import numpy as np
import pytest

from core.evaluate.benchmark import Benchmark, Cell, Goal


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


def test_verify_recomputes_and_disagrees_loudly(tmp_path):
    make(tmp_path, []).run("default", folder=tmp_path)
    make(tmp_path, []).run("default", verify=2, folder=tmp_path)
    with pytest.raises(SystemExit, match=r"stored 0\.5, recomputed 0\.7"):
        make(tmp_path, [], value=0.7).run("default", verify=1, folder=tmp_path)


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


def test_a_goal_computed_from_arrays_is_written():
    value = np.mean([0.5, 0.6])
    assert json.dumps(Goal("g", ">= 0", value, None, None, value >= 0).as_dict())
