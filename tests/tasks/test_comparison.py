"""Two runs are compared over what both measured, and the table fits a terminal."""

import io
import json

import pytest
from rich.console import Console

from core.evaluate.rows import Row, write_rows
from core.transfer.problem import Problem
from flows.cli import compare as command
from flows.cli import show
from tasks import comparison, tracking
from tasks.comparison import Loaded, compare
from tasks.long_tags import split

PROBLEM = Problem(source="s", target="t", knowledge="k", domain="d", objective="f", budget="1 queries")
LONG = [f"/a/folder/of/many/tasks/number-{i}.yaml" for i in range(400)]


def run(name, values):
    rows = [
        Row(method="a long method name", metric="accuracy", value=v, settings={"task": t}) for t, v in values.items()
    ]
    mean = Row(method="a long method name", metric="accuracy", value=sum(values.values()) / len(values))
    return Loaded(name, name, {"seed": name}, [*rows, mean.model_copy(update={"settings": {"task": "mean"}})])


FIRST = run("merge 1", {"a": 0.5, "b": 0.6, "c": 0.7})
SECOND = run("merge 2", {"a": 0.6, "b": 0.6, "c": 0.9})


def test_the_mean_over_tasks_is_no_further_pair():
    (line,) = compare(FIRST, SECOND)
    assert (line.pairs, line.difference) == (3, pytest.approx(0.1))
    assert line.p is None, "three pairs say nothing"


def searched(name, best, queries=25):
    rows = [
        Row(method="random", metric="score", value=best - 1 / q, settings={"run": "random", "target": t, "queries": q})
        for t in ("x", "y")
        for q in range(1, queries + 1)
    ]
    return Loaded(name, name, {}, rows)


def test_the_points_of_a_curve_are_no_pairs_of_their_own():
    (line,) = compare(searched("search 1", 90), searched("search 2", 92))
    assert (line.pairs, line.difference, line.p) == (2, pytest.approx(2), None)
    (longer,) = compare(searched("search 1", 90), searched("search 2", 90, queries=50))
    assert (longer.pairs, longer.first, longer.second) == (2, pytest.approx(89.96), pytest.approx(89.98))


@pytest.mark.parametrize("others", [["merge 2"], ["merge 2", "merge 1"]])
def test_the_table_names_method_and_metric_whole(monkeypatch, others):
    out = io.StringIO()
    monkeypatch.setattr(show, "console", Console(file=out, width=80, highlight=False))
    monkeypatch.setattr(comparison, "load", {"merge 1": FIRST, "merge 2": SECOND}.get)
    command.compare(["merge 1", *others])
    printed = out.getvalue()
    assert max(map(len, printed.splitlines())) <= 80
    assert "accuracy" in printed
    assert "…" not in printed


@pytest.mark.parametrize("tags", [split("config", {"tasks": LONG, "seed": 1}), {"config": json.dumps({"seed": 1})}])
def test_a_run_is_loaded_with_its_configuration_of_any_length(home, tmp_path, tags):
    write_rows(tmp_path / "rows.jsonl", FIRST.rows)
    with tracking.start("merge", "system", PROBLEM, None, {"flow": "merge", **tags}) as made:
        made.artifact(tmp_path / "rows.jsonl")
    loaded = comparison.load(made.id)
    assert loaded.config["seed"] == "1"
    assert loaded.config.get("tasks", json.dumps(LONG)) == json.dumps(LONG)
    assert loaded.rows == FIRST.rows
