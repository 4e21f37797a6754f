"""Parts of a search's page: the Pareto front of the chosen cost, the effect, gains in words."""

import json

import pytest

from core.evaluate.rows import Row
from core.evaluate.statistics import Interval
from core.state import seal
from tasks.report_search import Words, _effect, _gain, _pareto
from tasks.search_architectures import TRIALS
from tasks.stage import Artifact, Output

TRIALS_OF = [
    {"cell": "a", "score": 90.0, "params": 1.0, "flops": 9.0, "latency": 0.3},
    {"cell": "b", "score": 91.0, "params": 2.0, "flops": 3.0, "latency": 0.4},
    {"cell": "c", "score": 80.0, "params": 3.0, "flops": 1.0, "latency": 0.5},
]


@pytest.fixture
def made(tmp_path):
    """(run, seed, scores after each query, seconds) -> the artifact of a search."""

    def make(run, seed, scores, seconds=0.0, searcher="transfer"):
        out = Output(tmp_path / f"{run}{seed}")
        out.folder.mkdir()
        (out.folder / TRIALS).write_text(json.dumps({"label": run, "searcher": searcher, "trials": TRIALS_OF}))
        settings = {"run": run, "target": "t"}
        out.rows(
            [
                Row(
                    method=searcher,
                    metric="score",
                    value=v,
                    seed=seed,
                    settings={**settings, "queries": n},
                    budget={"queries": n},
                )
                for n, v in enumerate(scores, 1)
            ]
        )
        out.budget({"queries": len(scores), "simulated_seconds": seconds})
        return Artifact(name=run, path=str(out.folder), sha256=seal(out.folder, out.facts))

    return make


@pytest.mark.parametrize(("cost", "cells"), [("params", ["a", "b"]), ("flops", ["c", "b"]), ("latency", ["a", "b"])])
def test_the_front_is_of_the_cost_that_was_searched(made, cost, cells):
    (table,) = _pareto([made("no source", 0, [1]), made("pareto", 0, [1], searcher="pareto")], Words(), cost)
    assert [line[-1] for line in table.rows] == cells
    assert cost in table.caption
    assert ("latency, s" in table.columns) == (cost == "latency")


def test_the_effect_pairs_seeds_and_its_budget_ratio_counts_queries(made):
    runs = [made("transfer", s, [88, 90, 92, 92], 30.0) for s in (0, 1)]
    runs += [made("no source", s, [80, 84, 88, 90], 10.0) for s in (0, 1)]
    found = _effect(runs, "no source")
    (transfer,) = found.methods
    assert (transfer.method, transfer.pairs, transfer.gain.mean) == ("transfer", 2, 2.0)
    assert transfer.budget_ratio == pytest.approx(2 / 4), "90 after two queries, where the other needs four"
    assert transfer.area.mean > 2, "the lead was larger before"
    assert transfer.cost == {"seconds": 30.0}
    assert _gain(found, "transfer", Words()) == "+2.00 [+2.00, +2.00] points over the same search without source"
    assert _gain(found, "bridge", Words()) == _gain(found, "transfer", Words())


def test_without_a_run_to_compare_with_nothing_is_claimed(made):
    found = _effect([made("bridge", 0, [1, 2]), made("no source", 0, [None, None])], "no source")
    assert found is None
    assert _gain(found, "bridge", Words()) == "not measured"
    assert _effect([made("no source", 1, [1, 2])], "no source") is None


def test_a_gain_of_one_run_has_no_interval(made):
    found = _effect([made("bridge", 0, [1, 2]), made("no source", 0, [1, 1.5])], "no source")
    assert found.methods[0].gain == Interval(0.5, None, None)
    assert _gain(found, "bridge", Words("accuracy", "accuracy", "")) == "+0.5 accuracy over no source (bridge)"
