"""Models fine-tuned elsewhere as experts: encoder as it is, a head from counted labels, foreign ones refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.special import softmax
from transformers import BertConfig, BertForSequenceClassification

from core.data.tasks import load_task
from core.merge.experts import ExpertConfig, load_expert, train_expert
from core.merge.task_vectors import task_vectors
from core.models.load import load_encoder
from core.models.score import score
from core.models.train import TrainConfig
from core.state import Cache
from tasks import take_expert as take
from tasks.load_model import ASSET
from tasks.stage import Artifact, Output
from tasks.take_expert import TakeExpertConfig, take_expert
from tests import tiny_chain


def artifact(folder, name):
    if not (folder / ASSET).exists():
        (folder / ASSET).write_text(json.dumps({"name": name, "licence": "mit", "origin": "elsewhere"}))
    return Artifact(name="load-model", path=str(folder), sha256=name)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return artifact(tiny_chain.base_folder(tmp_path_factory.mktemp("base")), "base")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny_chain.task_files(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def classifier(base, files, tmp_path_factory):
    """A classifier of transformers, fine-tuned with a pooler and a head of its own, embeddings included."""
    return artifact(tiny_chain.classifier(base.folder, files["mood"], tmp_path_factory.mktemp("classifier")), "theirs")


def taken(folder, model, base, file):
    folder.mkdir()
    out = Output(folder)
    config = TakeExpertConfig(task=file, examples=64, max_length=16)
    take_expert.body(out, config, model=model, base=base, data=None)
    return out, load_expert(folder)


def test_a_classifier_becomes_an_expert_of_its_base(base, files, classifier, tmp_path):
    out, expert = taken(tmp_path / "a", classifier, base, files["mood"])
    assert expert.task == "mood"
    assert out.facts["budget"] == {"train_labels": 64, "train_examples": 0}
    own, theirs = load_file(out.folder / "model.safetensors"), load_file(classifier.folder / "model.safetensors")
    start = load_file(base.folder / "model.safetensors")
    assert own.keys() == start.keys()
    for name, tensor in own.items():
        assert torch.equal(tensor, theirs.get(f"bert.{name}", tensor))
    test = load_task(files["mood"]).splits().test
    encoder = load_encoder(out.folder, device="cpu")
    x = score(encoder, encoder.tokenize(test.texts))[0]
    right = {}
    for probe in (False, True):
        weight, bias = expert.head(probe=probe)
        right[probe] = ((x @ weight.T + bias).argmax(1) == test.labels).mean()
    assert right[False] > 0.9
    other = taken(tmp_path / "b", classifier, base, files["light"])[0]  # a body may serve another task, badly
    assert task_vectors(base.folder, {"mood": out.folder, "light": other.folder}, Cache(tmp_path / "c")).tensors


def test_an_expert_of_an_earlier_run_keeps_its_head_and_labels(base, files, tmp_path):
    train = TrainConfig(lr=3e-3, epochs=2, batch_size=16, precision="float32")
    config = ExpertConfig(examples=48, max_length=16, train=train)
    made = tmp_path / "made"
    shutil.copytree(train_expert(load_task(files["mood"]), base.folder, config, Cache(tmp_path / "cache")), made)
    out, expert = taken(tmp_path / "a", artifact(made, "ours"), base, files["mood"])
    assert out.facts["budget"]["train_labels"] == 48
    assert all((a == b).all() for a, b in zip(expert.head(), load_expert(made).head(), strict=True))
    assert expert.card["base_sha256"] == base.sha256
    with pytest.raises(ValueError, match="is an expert of task 'mood', not of 'light'"):
        taken(tmp_path / "b", artifact(made, "ours"), base, files["light"])


def test_a_head_reads_what_varies_most_and_is_calibrated():
    """Two directions tell the classes apart; the faint one better. Merging would turn it first."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 400)
    x = rng.normal(0, 0.05, (400, 6))
    x[:, 0] = (2 * labels - 1) + rng.normal(0, 0.6, 400)
    x[:, 1] = 0.02 * (2 * labels - 1) + rng.normal(0, 0.001, 400)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("core.models.score.score", lambda *_, **__: (x, None))
        weight, bias = take.fit_head(None, None, labels, 3)
    assert abs(weight[1, 0]) > 10 * abs(weight[1, 1])
    logits = x @ weight.T + bias
    assert (logits.argmax(1) == labels).mean() > 0.93
    assert not (logits.argmax(1) == 2).any()
    right = softmax(logits, axis=1)[np.arange(400), labels]
    assert 0.85 < right.mean() < 0.99


def saved(folder, base, change=None, **sizes):
    config = BertConfig.from_pretrained(base.folder)
    for name, value in sizes.items():
        setattr(config, name, value)
    model = BertForSequenceClassification(config) if sizes or change is None else None
    if model is None:
        model = BertForSequenceClassification.from_pretrained(base.folder)
        change(model)
    model.save_pretrained(folder)
    for path in base.folder.glob("tokenizer*"):
        shutil.copy(path, folder)
    return artifact(folder, folder.name)


@pytest.mark.parametrize(
    ("name", "made", "said"),
    [
        ("foreign", {}, "away from it: it was fine-tuned from another base"),
        ("wide", {"intermediate_size": 64}, "is not of the base base"),
        ("deep", {"num_hidden_layers": 4}, "16 tensors are in one of them only"),
        ("shallow", {"num_hidden_layers": 2}, "16 tensors are in one of them only"),
        (
            "broken",
            {"change": lambda model: model.bert.encoder.layer[0].output.dense.weight.data.fill_(torch.nan)},
            "broken holds NaN or infinite values in 1 tensors",
        ),
        ("same", {"change": lambda model: None}, "equals the base base: there is nothing to merge"),
    ],
)
def test_what_is_of_another_base_is_refused(base, files, tmp_path, name, made, said):
    with pytest.raises(ValueError, match=said):
        taken(tmp_path / "a", saved(tmp_path / name, base, **made), base, files["mood"])


def test_another_vocabulary_is_refused(base, files, classifier, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(classifier.folder, other)
    text = json.loads((other / "tokenizer.json").read_text())
    vocabulary = text["model"]["vocab"]
    first, second = sorted(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(text))
    with pytest.raises(ValueError, match="reads other tokens than the base base"):
        taken(tmp_path / "a", artifact(other, "other"), base, files["mood"])
