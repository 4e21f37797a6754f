"""What every registered oracle promises, each made small enough for a test."""

import numpy as np
import pandas as pd
import pytest

from core.nas.oracles import ORACLES, get_oracle
from core.nas.spaces import SPACES, get_space
from core.transfer.budget import Budget, BudgetExhausted
from tests.core.nas.oracles import files

SHARED = {"nb201-table", "nb101-pool", "darts-surrogate"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


def settings(name, folder):
    """Arguments that make a small oracle of each kind."""
    if name == "table":
        path = folder / "user.csv"
        cells = list(get_space("nb201").enumerate())[::1500]
        rows = {"genotype": [get_space("nb201").format(c) for c in cells], "accuracy": np.arange(len(cells)) + 0.5}
        pd.DataFrame({**rows, "seconds": 10.0}).to_csv(path, index=False)
        return {"path": str(path), "space": "nb201", "metric": "accuracy", "cost": "seconds"}
    if name == "nb101-official":
        return {"path": str(files.nb101_file(folder / "nb101.tfrecord"))}
    if name == "nb201-official":
        return {"path": str(files.nb201_file(folder / "nb201.pth")), "dataset": "cifar100"}
    if name == "training":
        quick = {"epochs": 1, "train_examples": 60, "macro": {"width": 4, "stages": 1}}
        return {"space": "nb201", "settings": quick}
    if name == "student":
        return files.tiny_student(folder)
    return {}


@pytest.fixture(params=[pytest.param(n, marks=pytest.mark.shared if n in SHARED else []) for n in ORACLES.names()])
def make(request, folder, monkeypatch):
    if request.param in SHARED:
        request.getfixturevalue("shared_data")
    monkeypatch.setenv("TRANSFEROPT_HOME", str(folder / "home"))
    arguments = settings(request.param, folder)

    def build(**more):
        return get_oracle(request.param, **{**arguments, **more})

    return build


def cells_of(oracle, count=3):
    pool = oracle.pool()
    if pool is not None:
        step = max(1, len(pool) // count)
        return pool[::step][:count]
    rng = np.random.default_rng(0)
    return [oracle.space.sample(rng) for _ in range(count)]


def test_declares_what_its_answers_are(make):
    oracle = make()
    assert oracle.name in ORACLES
    assert oracle.space.name in SPACES
    assert oracle.noise in ("single run", "mean", "none", "surrogate")
    assert all((oracle.dataset, oracle.metric, oracle.split, oracle.cost))
    assert oracle.name in oracle.describe()
    assert oracle.split in oracle.describe()
    assert oracle.inputs
    assert all(len(sha) == 64 for sha in oracle.inputs.values())


def test_a_repeated_key_is_never_charged_twice(make):
    oracle = make(budget=Budget("queries", 100))
    first, second, *_ = cells_of(oracle)
    answer = oracle.query(first)
    assert np.isfinite(answer.value)
    assert answer.charged
    assert answer.cost_seconds >= 0
    same = oracle.query(oracle.space.relabel(first, np.random.default_rng(1)))
    assert (same.value, same.cost_seconds, same.charged) == (answer.value, answer.cost_seconds, False)
    assert oracle.budget.counts == {"queries": 1, "simulated_seconds": pytest.approx(answer.cost_seconds)}
    other = oracle.query(second)
    assert oracle.queries == oracle.budget.spent == 2
    assert oracle.budget.counts["simulated_seconds"] == pytest.approx(answer.cost_seconds + other.cost_seconds)


def test_an_exhausted_budget_refuses_and_counts_nothing(make):
    oracle = make(budget=Budget("queries", 1))
    first, second, *_ = cells_of(oracle)
    oracle.query(first)
    with pytest.raises(BudgetExhausted):
        oracle.query(second)
    assert oracle.queries == 1
    assert oracle.budget.spent == 1
    assert not oracle.query(first).charged


def test_answers_depend_on_seed_and_cell_not_on_order(make):
    cells = cells_of(make())
    forward, backward = make(seed=3), make(seed=3)
    values = [forward.query(c).value for c in cells]
    assert [backward.query(c).value for c in reversed(cells)] == values[::-1]


def test_references_are_free(make):
    oracle = make()
    cell = cells_of(oracle)[0]
    oracle.query(cell)
    before = dict(oracle.budget.counts)
    reference = oracle.reference(cell)
    assert all(isinstance(v, float) for v in reference.values())
    assert oracle.budget.counts == before


def test_state_continues_without_charging_again(make):
    oracle = make()
    cells = cells_of(oracle)
    values = [oracle.query(c).value for c in cells[:2]]
    resumed = make()
    resumed.load_state_dict(oracle.state_dict())
    assert [resumed.query(c).value for c in cells[:2]] == values
    assert resumed.budget.spent == 0
    assert resumed.queries == 2
    assert resumed.query(cells[2]).charged
    with pytest.raises(ValueError, match="seed"):
        make(seed=9).load_state_dict(oracle.state_dict())


def test_genotypes_of_other_spaces_are_refused_uncharged(make):
    oracle = make()
    for name in SPACES.names():
        if name != oracle.space.name:
            stranger = get_space(name).sample(np.random.default_rng(0))
            for asked in (oracle.query, oracle.reference):
                with pytest.raises(ValueError, match="genotype of another space"):
                    asked(stranger)
    assert oracle.queries == 0


def test_vectorised_access_agrees_with_single_queries(make):
    oracle = make()
    if oracle.pool() is None:
        pytest.skip("no pool")
    rows = np.array([0, len(oracle.pool()) - 1, 0])
    values = oracle.values(rows)
    assert oracle.queries == len(set(rows.tolist()))
    assert values.tolist() == [make().query(oracle.pool()[i]).value for i in rows]
    assert not oracle.query(oracle.pool()[0]).charged
