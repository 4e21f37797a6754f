"""Why and cost: similarity of layers, changed input, seconds and memory."""

import mmap

import numpy as np
import pytest

from core.transfer.cost import WATTS_PER_CORE, Cost, metered
from core.transfer.explain import cka, layer_similarity, leave_one_source_out, under_change
from core.transfer.nets import Prediction
from core.transfer.sources import open_source
from core.transfer.strategies import StrategyConfig, fit
from core.transfer.target import Target
from tests.core.transfer import tiny


def test_cka_of_the_same_rotated_and_unrelated_views():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 6))
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    assert cka(x, x) == pytest.approx(1)
    assert cka(x, 3 * x @ rotation + 1) == pytest.approx(1)
    assert cka(x, rng.normal(size=(300, 6))) < 0.1
    assert cka(np.ones((5, 2)), x[:5]) is None


def test_frozen_layers_do_not_move_and_tuned_ones_do(tmp_path):
    source = open_source(str(tiny.build("bert", tmp_path)), "text")
    target = Target("t", tiny.texts(30), "classification", "text", 2, "accuracy").checked()
    config = StrategyConfig(examples=300, max_epochs=10, precision="float32", lr=5e-3, unfrozen=0.5)
    test = tiny.texts(20, 1)
    layers = layer_similarity(source, fit("freeze", source, target, config).net, test)
    assert layers[:2] == pytest.approx([1, 1], abs=1e-6), "embeddings and the first layer are frozen"
    assert layers[2] < 0.999
    assert layer_similarity(source, fit("share", source, target, config).net, test) == []
    assert layer_similarity(source, fit("prompt_tuning", source, target, config).net, test) == []


def test_score_falls_when_the_telling_words_are_dropped():
    def reads(examples):
        return Prediction([int("bad" in t.split()) for t in examples.texts])

    changed = under_change(reads, tiny.texts(100), "text", "accuracy")
    assert changed["30 % of words dropped"] < changed["10 % of words dropped"] <= 1
    assert under_change(reads, tiny.table(5), "table", "accuracy") == {}


def test_worth_of_a_source():
    assert leave_one_source_out({"a": 0.9, "b": 0.7, "c": 0.8}) == {"a": pytest.approx(0.1), "b": 0, "c": 0}
    assert leave_one_source_out({"a": 0.9}) == {}


def test_cost_is_measured_and_the_estimate_declared():
    with metered(every_s=0.001) as cost:
        # Pages of its own: from the heap it may get some that an earlier test has left resident.
        held = np.frombuffer(mmap.mmap(-1, 8 * 30_000_000))
        held[:] = 1.0
        total = sum((held * i).sum() for i in range(3))
    assert total > 0
    assert cost.seconds > 0
    assert cost.peak_memory_mb > 100
    if cost.energy_source == "estimate":
        assert cost.energy_wh == pytest.approx(cost.cpu_seconds * WATTS_PER_CORE / 3600)
    assert Cost(trained_parameters=1, total_parameters=4).trained_share == 0.25
