"""Sources and targets: what is cached under which hash, what counts as a label, what a target's test must not teach."""

import numpy as np
import pytest

from core.data.examples import Examples
from core.state import Cache
from core.transfer.experiment import DataSteps, Trial, prepared, run_trial, target_of
from core.transfer.recommend import rank_sources
from core.transfer.situation import describe
from core.transfer.sources import open_source, save_source, train_source
from core.transfer.strategies import StrategyConfig, fit
from core.transfer.strategies.linear_probe import probe_weights
from core.transfer.target import Target, TargetError
from tests.core.transfer import tiny

QUICK = StrategyConfig(examples=64, max_epochs=2, min_epochs=1, precision="float32")
STEPS = DataSteps(clean=())


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    root = tmp_path_factory.mktemp("source")
    return open_source(tiny.build("bert", root / "bert"), max_length=16, cache=Cache(root / "cache"))


def target(n=24, **more):
    return Target("toy", tiny.texts(n), "classification", "text", 2, "accuracy", **more)


def trained(base, seed, lr=1e-3):
    settings = QUICK.model_copy(update={"lr": lr})
    return train_source(base, target(), ("no", "yes"), lambda s, t: fit("full", s, t, settings, seed))


def test_models_trained_otherwise_are_other_models(base):
    """One hash for two would give one the other's cached features."""
    one, other = trained(base, 0), trained(base, 7, lr=3e-3)
    assert len({base.sha256, one.sha256, other.sha256}) == 3
    assert trained(base, 0).sha256 == one.sha256
    new = tiny.texts(10, seed=5)
    found = {s.sha256: s.features(new) for s in (base, one, other)}
    for source in (one, other):
        source.cache = None
        source._features.clear()
        np.testing.assert_allclose(found[source.sha256], source.features(new), atol=1e-6)


def test_a_saved_model_has_the_hash_of_its_files(base, tmp_path):
    for seed, folder in ((0, "a"), (1, "b")):
        save_source(trained(base, seed), tmp_path / folder)
    a, b = (open_source(tmp_path / folder, max_length=16, cache=base.cache) for folder in "ab")
    assert len({base.sha256, a.sha256, b.sha256}) == 3
    new = tiny.texts(10, seed=6)
    assert not np.allclose(a.features(new), base.features(new), atol=1e-4)


def write(path, labels):
    rows = tiny.texts(len(labels)).texts
    (path / "toy.csv").write_text("text,label\n" + "".join(f"{t},{y}\n" for t, y in zip(rows, labels, strict=True)))
    (path / "toy.yaml").write_text("kind: single\nsource: {path: toy.csv}\nlabels: ['no', 'yes']\nmetric: accuracy\n")
    return str(path / "toy.yaml")


def test_a_file_written_anew_is_read_anew(tmp_path):
    before = prepared(write(tmp_path, ["no", "yes"] * 30), STEPS)[0]
    after = prepared(write(tmp_path, ["no"] * 30 + ["yes"] * 30), STEPS)[0]
    assert before.sha256 != after.sha256
    assert prepared(str(tmp_path / "toy.yaml"), STEPS)[0] is after


def test_a_changed_copy_is_no_further_label(base, tmp_path):
    task = write(tmp_path, ["no", "yes"] * 60)
    steps = DataSteps(clean=(), augment=("word_drop",), copies=2)
    found = target_of(task, 20, 0, steps)
    assert (len(found.train), found.counted) == (60, 20)
    assert found.groups.tolist() == [*range(20)] * 3
    rows = run_trial(base, task, Trial(strategy="linear_probe", examples=20, steps=steps, training=QUICK)).rows
    assert rows[0].budget == {"train_labels": 20.0}
    plain = target_of(task, 20, 0, STEPS)
    assert describe(base, found) == describe(base, plain)
    assert rank_sources([base], found)[0][1] == rank_sources([base], plain)[0][1]


def test_copies_do_not_divide_the_folds_that_choose_a_penalty(monkeypatch):
    """A copy in another fold tells the label, and noise would look learnable."""
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.normal(size=(30, 8))] * 3)
    examples = Examples([str(i) for i in range(90)], None, [int(y) for y in rng.integers(0, 2, 30)] * 3)
    seen = []

    def watched(model, x, y, cv, scoring):
        seen.extend(cv)
        return np.zeros(len(cv))

    monkeypatch.setattr("sklearn.model_selection.cross_val_score", watched)
    probe_weights(features, Target("noise", examples, "classification", "text", 2, "accuracy", originals=30), 0)
    assert seen
    for train, held_out in seen:
        assert not set(train % 30) & set(held_out % 30)
        assert held_out.max() < 30


def test_a_sources_data_leave_out_the_targets_test(tmp_path):
    task = write(tmp_path, ["no", "yes"] * 60)
    whole = prepared(task, STEPS)[0].train
    barred = whole.folded()[:50]
    assert not set(target_of(task, 1000, 0, STEPS, without=barred).train.folded()) & set(barred)
    with pytest.raises(TargetError, match="every training example of toy stands in the target's test"):
        target_of(task, 1000, 0, STEPS, without=whole.folded())


def test_numbers_are_ranked_as_numbers(base):
    """A class a number would make noise as good as a feature that equals them."""
    rng = np.random.default_rng(0)
    values = [float(v) for v in rng.normal(size=60)]
    numbers = Target("n", Examples(tiny.texts(60).texts, None, values), "regression", "text", 0, "mse")

    class Fixed:
        head = None

        def __init__(self, features):
            self.given = features

        def fits(self, _):
            pass

        def features(self, _):
            return self.given

    noise = Fixed(rng.normal(size=(60, 3)))
    tells = Fixed(np.stack([np.array(values), *rng.normal(size=(2, 60))], axis=1))
    ranked = rank_sources([noise, tells], numbers)
    assert ranked[0][0] is tells
    assert ranked[0][1] > ranked[1][1] + 0.5
    assert [value for _, value in rank_sources([noise, tells], numbers, "h-score")] == [None, None]
    answers = Target("g", Examples(["a"] * 4, None, ["w", "x", "y", "z"]), "generation", "text", 0, "bleu")
    assert rank_sources([Fixed(rng.normal(size=(4, 3)))], answers)[0][1] is None


def test_images_are_scaled_by_the_training_images_in_every_split(tmp_path):
    splits, changes = prepared("digits", DataSteps())
    assert changes[-1].settings == {"divided by": 16.0}
    assert all(getattr(splits, part).arrays.max() <= 1 for part in ("train", "validation", "test"))
    vit = open_source(tiny.build("vit", tmp_path / "vit"), "image")
    one = splits.test.take([0])
    together = vit.original.inputs(splits.test.take(range(9))).arrays[0]
    np.testing.assert_array_equal(vit.original.inputs(one).arrays[0], together)
    raw = Examples([], None, [0], np.full((1, 1, 8, 8), 16.0, dtype=np.float32))
    with pytest.raises(ValueError, match="lie between 0 and 16: divide them"):
        vit.original.inputs(raw)


def test_a_class_without_example_is_never_the_nearest(base):
    some = Target("toy", tiny.texts(20), "classification", "text", 3, "accuracy")
    assert set(fit("share", base, some, QUICK).predict(tiny.texts(60, seed=3)).values) <= {0, 1}


def test_a_long_prompt_keeps_its_question(tmp_path):
    folder = tiny.build("llama", tmp_path / "llama")
    source = open_source(folder, "language", max_length=16, template="what is {text} and {pair} where so")
    long = Examples(["good " * 40, "bad"], ["dull " * 30, "fine"], ["x", "y"])
    tokens = source.original.inputs(long)
    words = [source.original.tokenizer.convert_ids_to_tokens(ids) for ids in tokens.ids]
    for row in words:
        assert row[-2:] == ["where", "so"]  # and no end behind which there is nothing to say
    assert len(words[0]) <= 16
    assert {"good", "dull"} <= set(words[0])
