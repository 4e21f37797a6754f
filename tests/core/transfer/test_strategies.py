"""Every strategy on tiny models of every modality: learns, leaves the source alone, counts, repeats itself."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from core.data.examples import Examples
from core.transfer.budget import Budget
from core.transfer.modalities import MODALITIES
from core.transfer.modalities.table import TableBody
from core.transfer.sources import Source, open_source, train_source
from core.transfer.strategies import FAMILIES, STRATEGIES, StrategyConfig, fit
from core.transfer.target import Target, TargetError
from tests.core.transfer import tiny

QUICK = StrategyConfig(examples=160, max_epochs=4, precision="float32", max_new_tokens=4)
TOKENS = ("prompt_tuning", "prefix_tuning")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """kind of tiny model -> Source, each built once."""
    made = {}

    def get(kind: str, modality: str) -> Source:
        if (kind, modality) not in made:
            folder = tmp_path_factory.mktemp(kind)
            if modality == "table":
                made[kind, modality] = Source("perceptron", TableBody.load(tiny.table(60, seed=9)))
            else:
                made[kind, modality] = open_source(str(tiny.build(kind, folder)), modality)
        return made[kind, modality]

    return get


def target(kind: str) -> tuple[Target, Examples]:
    """Training target and test examples by name."""
    if kind == "regression":
        train, test = (e.with_labels([2.0 * y + 5 for y in e.labels]) for e in (tiny.texts(40), tiny.texts(30, 1)))
        return Target("t", train, "regression", "text", 0, "mse").checked(), test
    if kind == "language":
        answers = ["good film", "bad plot"]
        train, test = (e.with_labels([answers[y] for y in e.labels]) for e in (tiny.texts(16), tiny.texts(6, 1)))
        return Target("t", train, "generation", "language", 0, "rouge_l").checked(), test
    makers = {"text": (tiny.texts, 2), "image": (tiny.images, 3), "audio": (tiny.waves, 2), "table": (tiny.table, 3)}
    make, classes = makers[kind]
    return Target("t", make(42), "classification", kind, classes, "accuracy").checked(), make(30, 1)


def weights(source: Source) -> list[torch.Tensor]:
    return [p.detach().clone() for p in source.original.parameters()]


FOR_TEXT = [e.name for e in STRATEGIES if "text" in e.facts.get("modalities", ("text",)) and "needs" not in e.facts]
CELL = "nb201:|nor_conv_3x3~0|+|skip_connect~0|nor_conv_3x3~1|+|skip_connect~0|none~1|nor_conv_3x3~2|"


@pytest.mark.parametrize("name", FOR_TEXT)
class TestEveryStrategy:
    def test_contract(self, name, source):
        """On a tiny BERT: source unchanged, RNG untouched, same seed same answers, costs counted."""
        s, (t, test) = source("bert", "text"), target("text")
        before, state, labels = weights(s), torch.get_rng_state(), list(t.train.labels)
        np.random.seed(1)
        numpy_state = np.random.get_state()[1].copy()
        budget = Budget("train_labels")
        first = fit(name, s, t, QUICK, seed=3, budget=budget)
        assert torch.equal(torch.get_rng_state(), state)
        assert (np.random.get_state()[1] == numpy_state).all()
        assert all(torch.equal(a, b) for a, b in zip(before, weights(s)))
        assert t.train.labels == labels
        answers = first.predict(test)
        torch.manual_seed(99)
        again = fit(name, s, t, QUICK, seed=3).predict(test)
        np.testing.assert_allclose(answers.probabilities, again.probabilities, atol=1e-5)
        assert answers.probabilities.shape == (30, 2)
        np.testing.assert_allclose(answers.probabilities.sum(axis=1), 1, atol=1e-6)
        assert budget.counts["train_labels"] == 42
        cost = first.cost
        assert 0 <= cost.trained_share <= 1
        assert cost.seconds > 0
        if STRATEGIES.entry(name).facts["family"] == "share":
            assert cost.trained_parameters == 0
        else:
            assert cost.trained_parameters > 0
        assert (cost.train_examples > 0) == (name not in ("share", "linear_probe"))

    def test_learns_words_that_tell_the_class(self, name, source):
        t, test = target("text")
        config = StrategyConfig(examples=600, max_epochs=15, precision="float32")
        answers = fit(name, source("bert", "text"), t, config, seed=0).predict(test)
        assert answers.scores(["accuracy"], test.labels)["accuracy"] >= 0.8

    def test_regression_answers_in_the_units_of_the_target(self, name, source):
        t, test = target("regression")
        answers = fit(name, source("bert", "text"), t, QUICK, seed=0).predict(test)
        values = answers.scores(["mse", "r2"], test.labels)
        assert values["mse"] < 9, "answers in standard units would be off by 6"
        assert answers.probabilities is None

    def test_family_and_kinds_are_stated(self, name, source):
        facts = STRATEGIES.entry(name).facts
        assert facts["family"] in FAMILIES
        assert facts["source"]
        assert set(facts["kinds"]) <= {"classification", "regression", "generation"}


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("mpnet", "text"),
        ("llama", "text"),
        ("vit", "image"),
        ("resnet", "image"),
        ("wav2vec2", "audio"),
        ("perceptron", "table"),
    ],
)
def test_every_modality_serves_every_strategy_that_it_can(source, model, kind):
    """What cannot be served is refused with a reason; what is served beats chance."""
    s, (t, test) = source(model, kind), target(kind)
    refused = {}
    for name in STRATEGIES.names():
        try:
            config = StrategyConfig(examples=400, max_epochs=8, precision="float32", architecture=CELL)
            answers = fit(name, s, t, config, seed=0).predict(test)
        except ValueError as error:
            refused[name] = str(error)
            continue
        if STRATEGIES.entry(name).facts["family"] != "retrain":
            assert answers.scores(["accuracy"], test.labels)["accuracy"] > 1 / t.classes, name
    expected = {
        "mpnet": {"prefix_tuning", "searched"},
        "llama": {"searched"},
        "vit": {*TOKENS},
        "resnet": {*TOKENS, "ia3"},
        "wav2vec2": {*TOKENS, "searched"},
        "perceptron": {*TOKENS, "ia3", "searched"},
    }
    assert set(refused) == {*expected[model], "own_classifier"}
    assert all("need" in text or "has no attention" in text for text in refused.values())


@pytest.mark.parametrize("model", ["llama", "t5"])
def test_generation_learns(source, model):
    s, (t, test) = source(model, "language"), target("language")
    refused = []
    for name in STRATEGIES.names():
        if "generation" not in STRATEGIES.entry(name).facts["kinds"]:
            with pytest.raises(ValueError, match="is a generation"):
                fit(name, s, t, QUICK)
            refused.append(name)
            continue
        config = StrategyConfig(examples=240, max_epochs=15, precision="float32", max_new_tokens=4, batch_size=8)
        fitted = fit(name, s, t, config, seed=0)
        answers = fitted.predict(test)
        assert all(isinstance(a, str) for a in answers.values)
        assert answers.scores(["rouge_l", "exact_match"], test.labels)["rouge_l"] >= 0
        if fitted.losses:
            assert np.mean(fitted.losses[-3:]) < np.mean(fitted.losses[:3]), name
        else:
            assert fitted.labels_used is False, "the source as it is looks at no label"
    assert refused == ["linear_probe", "own_classifier", "searched"]


def test_searched_architecture_is_trained_and_named_when_wrong(source):
    s, (t, test) = source("vit", "image"), target("image")
    config = StrategyConfig(examples=900, max_epochs=20, precision="float32", architecture=CELL)
    answers = fit("searched", s, t, config, seed=0).predict(test)
    assert answers.scores(["accuracy"], test.labels)["accuracy"] > 0.8
    with pytest.raises(ValueError, match="search run reports"):
        fit("searched", s, t, QUICK)
    with pytest.raises(ValueError, match="space"):
        fit("searched", s, t, QUICK.model_copy(update={"architecture": "nb999:x"}))


def test_full_fine_tuning_of_a_language_model_answers_right(source):
    s, (t, _) = source("llama", "language"), target("language")
    config = StrategyConfig(examples=1200, max_epochs=75, batch_size=8, lr=3e-3, precision="float32", max_new_tokens=4)
    answers = fit("full", s, t, config, seed=0).predict(t.train)
    assert answers.scores(["exact_match"], t.train.labels)["exact_match"] >= 0.8


def test_layers_and_head_of_a_trained_source_give_probabilities(source):
    s, (t, test) = source("bert", "text"), target("text")
    trained = train_source(s, t, ("no", "yes"), lambda a, b: fit("full", a, b, QUICK, seed=0))
    assert trained.name.endswith("+ t")
    assert trained.sha256 != s.sha256
    p = trained.probabilities(test)
    assert p.shape == (30, 2)
    assert s.probabilities(test) is None
    fit("lora", trained, t, QUICK, seed=0)


def test_features_are_cached_on_disk_by_content(source, tmp_path):
    from core.state import Cache

    s = source("bert", "text")
    cached = Source(s.name, s.original, cache=Cache(tmp_path))
    first = cached.features(tiny.texts(10))
    assert len(list((tmp_path / "features").glob("*/features.npy"))) == 1
    other = Source(s.name, s.original, cache=Cache(tmp_path))
    np.testing.assert_array_equal(other.features(tiny.texts(10)), first)
    other.features(tiny.texts(11))
    assert len(list((tmp_path / "features").glob("*/features.npy"))) == 2


def test_peft_share_is_small_and_full_is_all(source):
    s, (t, _) = source("bert", "text"), target("text")
    share = {n: fit(n, s, t, QUICK, seed=0).cost.trained_share for n in ("ia3", "prompt_tuning", "full")}
    assert share["full"] == 1
    assert share["ia3"] < 0.05
    assert share["prompt_tuning"] < 0.05


@pytest.mark.parametrize("kind", ["bert", "mpnet", "llama"])
def test_training_only_the_words_that_occur_equals_training_all(source, kind, monkeypatch):
    s, (t, test) = source(kind, "text"), target("text")
    config = QUICK.model_copy(update={"weight_decay": 0.0})
    quick = fit("full", s, t, config, seed=0)
    with monkeypatch.context() as m:
        m.setattr("core.transfer.strategies.tuning.only_used_words", lambda body, inputs: nullcontext())
        whole = fit("full", s, t, config, seed=0)
    words = quick.net.body.backbone.get_input_embeddings()
    assert type(words) is torch.nn.Embedding
    np.testing.assert_allclose(quick.predict(test).probabilities, whole.predict(test).probabilities, atol=1e-4)
    before, after = s.original.backbone.get_input_embeddings().weight, words.weight
    assert (before != after).any(dim=1).sum() > 5
    np.testing.assert_allclose(
        after.detach(), whole.net.body.backbone.get_input_embeddings().weight.detach(), atol=1e-4
    )
    assert quick.cost.trained_share == 1


def test_every_modality_is_registered_with_what_it_reads():
    assert MODALITIES.names() == ["audio", "image", "language", "table", "text"]
    assert all(e.facts["reads"] for e in MODALITIES)


@pytest.mark.parametrize(
    ("labels", "kind", "classes", "words"),
    [
        ([1] * 8, "classification", 2, "all 8 training examples are of class 1"),
        ([0] * 8, "classification", 1, "1 class"),
        ([0, 1, 2, 3, 4, 5, 6, 7], "classification", 77, "77 classes but 8 training examples"),
        ([0, 1, 2] * 2 + [5, 0], "classification", 3, "no class index"),
        (["a"] * 8, "regression", 0, "regression needs numbers, got the label 'a'"),
        ([1.0] * 8, "regression", 0, "nothing can be learned"),
        ([1.0] * 7 + [float("nan")], "regression", 0, "finite"),
        ([" "] * 8, "generation", 0, "reference text"),
        ([], "classification", 2, "no training examples"),
    ],
)
def test_bad_targets_are_named_before_any_work(labels, kind, classes, words):
    examples = Examples(["a"] * len(labels), None, labels)
    with pytest.raises(TargetError, match=words):
        Target("t", examples, kind, "text", classes, "accuracy").checked()


def test_modalities_that_do_not_fit_are_named(source):
    t, _ = target("image")
    with pytest.raises(ValueError, match="modality text, target t of image"):
        fit("share", source("bert", "text"), t)
    with pytest.raises(ValueError, match="6 columns, the target has 7"):
        source("perceptron", "table").features(Examples([], None, [0, 1], np.zeros((2, 7), np.float32)))
    with pytest.raises(ValueError, match="reads arrays"):
        source("vit", "image").features(tiny.texts(3))
    with pytest.raises(ValueError, match="did you mean 'lora'"):
        fit("lorra", source("bert", "text"), target("text")[0])
