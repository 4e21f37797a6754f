"""A model that came as a classifier: its own classes, by name, before anything is adjusted."""

import numpy as np
import pytest
import torch
import transformers as t

from core.transfer.budget import Budget
from core.transfer.own_classifier import NamedTarget, order_of, with_own_classifier
from core.transfer.recommend import rank_sources
from core.transfer.sources import open_source
from core.transfer.strategies import fit
from tasks.rank_sources import check_score
from tasks.try_strategies import try_strategies
from tests.core.transfer import tiny

ROUNDED = 2e-3  # a machine that computes in bfloat16 gives probabilities so exactly
LABELS = {0: "dull", 1: "Bad", 2: "good"}


def saved(model, folder):
    """The folder of a model that is saved with a tokenizer."""
    model.save_pretrained(folder)
    tiny.tokenizer(folder)
    return folder


def bert(**more):
    return t.BertConfig(**tiny._sizes(intermediate_size=64, max_position_embeddings=64), **more)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A tiny BERT that tells three classes apart, and its folder."""
    torch.manual_seed(0)
    model = t.BertForSequenceClassification(bert(id2label=LABELS)).eval()
    return model, saved(model, tmp_path_factory.mktemp("classifier"))


def opened(folder, modality="text"):
    return with_own_classifier(open_source(str(folder), modality), folder)


def target(names, classes=2):
    return NamedTarget("t", tiny.texts(12, classes=classes), "classification", "text", classes, "accuracy", None, names)


def test_answers_are_the_models_own_among_the_targets_classes(classifier):
    model, folder = classifier
    source, test, budget = opened(folder), tiny.texts(9, 1), Budget("train_labels")
    fitted = fit("own_classifier", source, target(("GOOD", " bad")), budget=budget)
    inputs = source.original.inputs(test).batch(range(9))
    with torch.no_grad():
        logits = model(**inputs).logits[:, [2, 1]].double()
    np.testing.assert_allclose(fitted.predict(test).probabilities, logits.softmax(1).numpy(), atol=ROUNDED)
    assert not fitted.labels_used
    assert not budget.counts.get("train_labels")
    assert fitted.cost.trained_parameters == 0


def test_a_trial_on_two_classes_keeps_their_names(classifier):
    try_strategies(opened(classifier[1]), target(("good", "bad", "dull"), 3), ["own_classifier"])


def test_leep_and_nce_read_its_classes(classifier):
    source, plain = opened(classifier[1]), open_source(str(classifier[1]))
    for score in ("leep", "nce"):
        check_score(score, {"classifier": source})
        assert rank_sources([source], target(("good", "bad")), score)[0][1] is not None
        with pytest.raises(ValueError, match="output layer of its own"):
            check_score(score, {"encoder": plain})


@pytest.mark.parametrize("names", [("good", "awful"), ()])
def test_other_classes_are_refused_with_both_names(classifier, names):
    with pytest.raises(ValueError, match="dull, Bad, good"):
        fit("own_classifier", opened(classifier[1]), target(names))


def test_what_is_no_trained_classifier_stays_an_encoder(tmp_path):
    half = t.BertForSequenceClassification(bert(id2label=LABELS))
    state = {k: v for k, v in half.state_dict().items() if not k.startswith("classifier")}
    saved(half, tmp_path / "half")
    half.save_pretrained(tmp_path / "half", state_dict=state)
    saved(t.BertForSequenceClassification(bert(num_labels=1)), tmp_path / "number")
    several = bert(num_labels=3, problem_type="multi_label_classification")
    saved(t.BertForSequenceClassification(several), tmp_path / "several")
    saved(t.BertModel(bert()), tmp_path / "encoder")
    for name in ("half", "number", "several", "encoder"):
        assert opened(tmp_path / name).labels == (), name


def test_order_wants_every_name():
    assert order_of(("a", "B ", "c"), ("C", "b")) == [2, 1]
    assert order_of(("a", "b"), ("a", "d")) is None
    assert order_of(("a",), ()) is None


def _clip():
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return t.CLIPForImageClassification(t.CLIPConfig(vision_config={**vision, "image_size": 16, "patch_size": 8}))


IMAGE_MODELS = {
    "mobilenet": lambda: t.MobileNetV2ForImageClassification(t.MobileNetV2Config(depth_multiplier=0.25, image_size=32)),
    "mobilevit": lambda: t.MobileViTForImageClassification(
        t.MobileViTConfig(image_size=32, hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 8, 8, 8, 8, 40])
    ),
    "clip": _clip,
    "swin": lambda: t.SwinForImageClassification(
        t.SwinConfig(image_size=32, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4)
    ),
}


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_image_models_whose_width_no_setting_tells(name, tmp_path):
    model = IMAGE_MODELS[name]().eval()
    model.save_pretrained(tmp_path)
    source, examples = opened(tmp_path, "image"), tiny.images(4, classes=2, side=20)
    assert source.features(examples).shape == (4, source.original.width)
    assert source.original.fresh(0).width == source.original.width
    with torch.no_grad():
        own = model(**source.original.ready(source.original.inputs(examples).batch(range(4)))).logits.softmax(1)
    np.testing.assert_allclose(source.probabilities(examples), own.numpy(), atol=ROUNDED)
