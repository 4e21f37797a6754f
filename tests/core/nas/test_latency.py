import numpy as np
import pytest

from core.evolve.protocol import Told
from core.nas.arena import Arena
from core.nas.latency import latency_of
from core.nas.oracles import get_oracle
from core.nas.search import search_architectures
from core.nas.searchers import Knowledge, get_searcher
from core.transfer.budget import Budget

QUICK = {"epochs": 1, "train_examples": 60, "macro": {"width": 4, "stages": 1}, "device": "cpu"}


def test_a_table_answers_with_its_column_and_no_query_is_spent():
    oracle = get_oracle("nb201")
    cells = [oracle.cells[i] for i in (4, 9000, 17)]
    np.testing.assert_array_equal(latency_of(oracle)(cells), oracle.columns["latency_s"][[4, 9000, 17]])
    assert oracle.queries == 0


def test_networks_are_timed_once_and_larger_ones_take_longer(home):
    oracle = get_oracle("training", space="nb201", settings=QUICK)
    cells = [oracle.space.parse(text) for text in ("000000", "333333")]
    latency = latency_of(oracle)
    small, large = latency(cells)
    assert 0 < small < large
    assert latency(cells).tolist() == latency_of(oracle)(cells).tolist() == [small, large], "kept, not timed again"
    assert oracle.queries == 0


def test_an_oracle_without_latency_is_refused(tmp_path):
    table = tmp_path / "mine.csv"
    table.write_text("genotype,accuracy\n333333,90\n000000,10\n")
    oracle = get_oracle("table", path=str(table), space="nb201", metric="accuracy")
    with pytest.raises(ValueError, match=r"table mine.*knows no latency.*weigh params or flops"):
        latency_of(oracle)


def test_the_search_weighs_accuracy_against_latency(home):
    def searched(cost, **given):
        oracle = get_oracle("nb201", noise="mean", budget=Budget("queries", 60))
        searcher = get_searcher("pareto", arena, 0, Knowledge(noisy=False), cost=cost, **given)
        found = search_architectures(oracle, searcher)
        rows = [oracle.index(t.candidate) for t in found.trials]
        return oracle.answers[rows], oracle.columns["latency_s"][rows]

    def hypervolume(answers, seconds, most):
        """Area under the best answer within each latency, as a share of the whole table's."""
        order = np.argsort(seconds)
        best, steps = np.maximum.accumulate(answers[order]), np.append(seconds[order], most)
        return float(np.sum(np.maximum(best - 50, 0) * np.diff(np.minimum(steps, most))))

    table = get_oracle("nb201", noise="mean")
    arena = Arena(table.space, table.pool())
    most = float(np.quantile(table.columns["latency_s"], 0.99))
    whole = hypervolume(table.answers, table.columns["latency_s"], most)
    rng = np.random.default_rng(0)
    random = [rng.choice(len(table.answers), 60, replace=False) for _ in range(20)]
    by_chance = np.mean([hypervolume(table.answers[r], table.columns["latency_s"][r], most) for r in random])
    ours = hypervolume(*searched("latency", latency=latency_of(table)), most)
    assert by_chance < ours <= whole
    assert (whole - ours) < 0.5 * (whole - by_chance)


def test_a_resumed_search_keeps_the_seconds_it_had_timed():
    table, other = (get_oracle("nb201", budget=Budget("queries", 20)) for _ in range(2))
    arena = Arena(table.space, table.pool()[:400])
    searcher = get_searcher("pareto", arena, 0, Knowledge(), cost="latency", latency=latency_of(table))
    for _ in range(12):
        searcher.tell([Told(c, table.query(c).value) for c in searcher.ask(1)])

    def elsewhere(cells):
        raise AssertionError("timed again")

    resumed = get_searcher("pareto", arena, 0, Knowledge(), cost="latency", latency=elsewhere)
    resumed.load_state_dict(searcher.state_dict())
    for _ in range(4):
        asked, again = searcher.ask(1), resumed.ask(1)
        assert asked == again
        searcher.tell([Told(c, table.query(c).value) for c in asked])
        resumed.tell([Told(c, other.query(c).value) for c in again])


def test_latency_as_cost_needs_latencies():
    table = get_oracle("nb201")
    arena = Arena(table.space, table.pool()[:50])
    with pytest.raises(ValueError, match="needs the latencies of cells"):
        get_searcher("pareto", arena, 0, Knowledge(), cost="latency")
    with pytest.raises(ValueError, match="params, flops, latency"):
        get_searcher("pareto", arena, 0, Knowledge(), cost="watts")
