"""A packaged merge goes into the registry, is promoted only on a significant gain, predicts and serves."""

import json
import shutil

import mlflow
import numpy as np
import pandas as pd
import pytest
from safetensors import SafetensorError

from core.models.classifier import Head, TextClassifier, save
from tasks import mlflow_store, serving
from tasks.hits import Hits
from tasks.register_model import register_model
from tasks.stage import Artifact
from tests.tiny_experts import base_folder


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    root = tmp_path_factory.mktemp("package")
    base = base_folder(root / "base")
    rng = np.random.default_rng(0)
    heads = {t: Head(rng.normal(size=(2, 16)).astype("f4"), np.zeros(2, "f4"), ("no", "yes")) for t in ("one", "two")}
    save(root / "folder", base, heads, 32, {"method": "average"})
    return root / "folder"


def register(package, name, scores, digest, items="the same"):
    client = mlflow_store.client()
    run = client.create_run(client.create_experiment(f"{name}-{digest}"))
    hits = {task: Hits(items, np.arange(400) < share * 400) for task, share in scores.items()}
    tags = {"sha256": digest, "accuracies": json.dumps(scores), **Hits.tags(hits)}
    serving.log_model(run.info.run_id, package, name, serving.CHALLENGER, tags)
    return client


def test_challenger_becomes_champion_only_when_it_is_surely_better(package):
    client = register(package, "tiny", {"a": 0.5, "b": 0.6, "c": 0.7}, "v1")
    version = lambda alias: client.get_model_version_by_alias("tiny", alias).version  # noqa: E731
    assert version("champion") == version("challenger")
    first = version("champion")
    better = {"a": 0.6, "b": 0.71, "c": 0.8}
    register(package, "tiny", {"a": 0.52, "b": 0.55, "c": 0.72}, "v2")
    assert version("champion") == first
    assert version("challenger") != first
    register(package, "tiny", better, "v3", items="of another draw")
    assert version("champion") == first
    register(package, "tiny", {t: better[t] for t in "ab"}, "v4")  # it lacks a task that the champion has
    assert version("champion") == first
    register(package, "tiny", better | {"d": 0.1}, "v5")
    assert version("champion") == version("challenger") != first


def test_a_model_of_one_task_is_promoted_by_its_items(package):
    client = register(package, "single", {"a": 0.5}, "v1")
    first = client.get_model_version_by_alias("single", "champion").version
    register(package, "single", {"a": 0.502}, "v2")
    assert client.get_model_version_by_alias("single", "champion").version == first
    register(package, "single", {"a": 0.6}, "v3")
    assert client.get_model_version_by_alias("single", "champion").version != first


def test_hits_of_long_tests_fill_several_tags():
    right = np.random.default_rng(0).random(50_000) < 0.5
    tags = Hits.tags({"long": Hits("x", right), "short": Hits("y", right[:3])})
    assert len(tags) == 3
    assert max(map(len, tags.values())) <= 4500
    back = Hits.of(tags)
    assert (back["long"].right == right).all()
    assert back["short"].items == "y"
    assert Hits.of({}) == {}


def test_a_registered_model_predicts_as_its_package_does(package):
    register(package, "other", {"a": 0.5, "b": 0.6}, "v1")
    texts = ["a good movie", "a bad plot"]
    expected = TextClassifier(package).predict(texts, task="one")
    assert TextClassifier(serving.package_of("other")).predict(texts, task="one") == expected
    served = mlflow.pyfunc.load_model("models:/other@champion")
    answers = served.predict(pd.DataFrame({"text": texts, "task": ["one", "one"]}))
    assert answers["label"].tolist() == [e.label for e in expected]
    with pytest.raises(ValueError, match=r"no folder and no registered model 'nothing' \(registered: .*other"):
        serving.package_of("nothing")


def test_wrong_calls_name_what_is_there(package):
    classifier = TextClassifier(package)
    with pytest.raises(ValueError, match="unknown task 'on', did you mean 'one'"):
        classifier.predict(["a"], task="on")
    with pytest.raises(ValueError, match="no task was named; this model has one, two"):
        classifier.predict(["a"])
    with pytest.raises(ValueError, match="text 1 is empty"):
        classifier.predict(["a", "  "], task="one")
    with pytest.raises(ValueError, match="is no packaged classifier"):
        TextClassifier(package / "encoder")


def test_logging_does_not_load_the_model_again(package, monkeypatch):
    def refuse(*_):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(TextClassifier, "__init__", refuse)
    client = register(package, "unloaded", {"a": 0.5, "b": 0.6}, "v1")
    version = client.get_model_version_by_alias("unloaded", "champion")
    info = mlflow.models.get_model_info(f"models:/unloaded/{version.version}")
    assert info.signature is not None
    assert info.saved_input_example_info is not None


def test_a_package_that_does_not_answer_is_not_registered(package, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(package, broken)
    (broken / "encoder" / "model.safetensors").write_bytes(b"")
    artifact = Artifact(name="package-merge", path=str(broken), sha256="x")
    with pytest.raises(SafetensorError, match="header"):
        register_model("broken", artifact, artifact, "average", {})


def test_a_task_gets_as_many_texts_as_it_reads(package, tmp_path):
    """A pair task answered from its first text alone would be wrong without a word."""
    rng = np.random.default_rng(0)
    head = lambda pair: Head(rng.normal(size=(2, 16)).astype("f4"), np.zeros(2, "f4"), ("no", "yes"), pair)  # noqa: E731
    save(tmp_path, package / "encoder", {"one": head(False), "two": head(True), "old": head(None)}, 32, {})
    model = TextClassifier(tmp_path)
    assert {t: h.pair for t, h in model.heads.items()} == {"one": False, "two": True, "old": None}
    with pytest.raises(ValueError, match="'two' reads two texts at a time; give the second ones"):
        model.predict(["a"], task="two")
    with pytest.raises(ValueError, match="'one' reads one text at a time; leave the second ones out"):
        model.predict(["a"], ["b"], task="one")
    assert model.predict(["a"], ["b"], task="old") != model.predict(["a"], task="old")
    serving.log_model(register_run("pairs"), tmp_path, "pairs", serving.CHALLENGER, {"sha256": "p"})
    served = mlflow.pyfunc.load_model("models:/pairs@challenger")
    frame = pd.DataFrame({"text": ["a", "a", "c"], "task": ["one", "two", "two"], "pair": [None, "b", "d"]})
    expected = model.predict(["a"], task="one") + model.predict(["a", "c"], ["b", "d"], task="two")
    assert served.predict(frame)["label"].tolist() == [e.label for e in expected]
    with pytest.raises(ValueError, match="second text 1 is empty or no text: ''"):
        model.predict(["a", "c"], ["b", ""], task="two")
    with pytest.raises(Exception, match="second text 1 is empty"):
        served.predict(frame.assign(pair=[None, "b", None]))


def register_run(name):
    client = mlflow_store.client()
    return client.create_run(client.create_experiment(name)).info.run_id
