"""Experts and their base: layouts of weights on disk, names with and without prefix, and what is of another base."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertForMaskedLM

from core.merge.experts import _complete, train_expert
from core.merge.one_base import Descent, longer_by
from core.merge.task_vectors import task_vectors
from core.merge.tensors import open_checkpoint
from core.models.load import load_encoder
from core.state import Cache
from tests import tiny_experts as te
from tests import tiny_models as tiny

NAMES = ("embeddings.word.weight", "encoder.layer.0.out.weight", "encoder.layer.1.out.weight", "pooler.dense.weight")


def tensors(scale=1.0, prefix=""):
    return {prefix + n: torch.full((2, 3), scale * (i + 1)) for i, n in enumerate(NAMES)}


def write(folder, values, kind):
    folder.mkdir()
    if kind in ("model.safetensors", "weights.safetensors"):
        save_file(values, folder / kind)
        return folder
    files = ("a-00001-of-00002.safetensors", "a-00002-of-00002.safetensors")
    weight_map = {name: files[i % 2] for i, name in enumerate(values)}
    for file in files:
        save_file({n: v for n, v in values.items() if weight_map[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("kind", ["model.safetensors", "weights.safetensors", "shards"])
@pytest.mark.parametrize("prefix", ["", "roberta.", "distilbert.", "model.encoder."])
def test_an_expert_gets_its_bases_tensors_from_any_layout(tmp_path, kind, prefix):
    head = {"lm_head.dense.weight": torch.ones(2, 2)} if prefix else {}
    base = write(tmp_path / "base", tensors(prefix=prefix) | head, kind)
    trained = {n: v for n, v in tensors(scale=3.0).items() if "pooler" not in n}
    own = tmp_path / "model.safetensors"
    save_file(trained, own)
    _complete(own, base)
    found = load_file(own)
    assert found.keys() == open_checkpoint(base).tensors.keys()
    assert all(torch.equal(found[prefix + n], v) for n, v in trained.items())
    assert torch.equal(found[f"{prefix}pooler.dense.weight"], tensors()["pooler.dense.weight"])


def test_a_base_with_a_head_gives_experts_that_merge_with_it(tmp_path):
    plain = te.base_folder(tmp_path / "plain")
    model = BertForMaskedLM(tiny.bert_config(layers=2))
    weights = {n: v for n, v in load_file(plain / "model.safetensors").items() if "pooler" not in n}
    model.bert.load_state_dict(weights)
    model.save_pretrained(tmp_path / "base", max_shard_size="8KB")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    cache = Cache(tmp_path / "cache")
    config = te.CONFIG.model_copy(update={"train": te.CONFIG.train.model_copy(update={"epochs": 1})})
    folders = {t.name: train_expert(t, tmp_path / "base", config, cache) for t in te.tasks(("good", "plot"))}
    vectors = task_vectors(tmp_path / "base", folders, cache)
    assert {t.name.partition(".")[0] for t in vectors.tensors} == {"bert"}
    state = load_encoder(folders["good"], device="cpu").backbone.state_dict()
    written = load_file(folders["good"] / "model.safetensors")
    assert all(torch.equal(v, written[f"bert.{n}"]) for n, v in state.items() if "position_ids" not in n)


def test_a_base_that_cannot_be_read_is_refused_before_the_training(tmp_path, monkeypatch):
    base = te.base_folder(tmp_path / "base")
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    monkeypatch.setattr("core.merge.experts._build", lambda *a: pytest.fail("trained"))
    with pytest.raises(FileNotFoundError, match=r"pytorch_model\.bin is a pickle, which is not opened"):
        train_expert(te.tasks()[0], base, te.CONFIG, Cache(tmp_path / "cache"))


def test_layouts_that_are_not_whole_are_named(tmp_path):
    folder = write(tmp_path / "shards", tensors(), "shards")
    (folder / "a-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"names a-00002-of-00002\.safetensors, which is not there"):
        open_checkpoint(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    with pytest.raises(ValueError, match=r"index\.json is no index of a model"):
        open_checkpoint(folder)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    save_file({"base_model.model.q.lora_A.weight": torch.ones(2, 2)}, adapter / "adapter_model.safetensors")
    (adapter / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"it is an adapter .*: write it behind its base, BASE\+"):
        open_checkpoint(adapter)


def test_one_file_counts_before_an_index_as_in_transformers(tmp_path):
    folder = write(tmp_path / "both", tensors(), "shards")
    save_file(tensors(scale=2.0), folder / "model.safetensors")
    assert [f.name for f in open_checkpoint(folder).files] == ["model.safetensors"]


def shapes(values):
    return {n: tuple(v.shape) for n, v in values.items()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({NAMES[1]: None}, r"1 tensors are .*it lacks 'encoder\.layer\.0\.out\.weight' \[2, 3\]"),
        ({NAMES[1]: torch.ones(2, 5)}, r"'encoder\.layer\.0\.out\.weight' has other shapes, \[2, 5\] and \[2, 3\] in"),
        ({"encoder.layer.2.out.weight": torch.ones(2, 3)}, r"'encoder\.layer\.2\.out\.weight' \[2, 3\] is not in the"),
    ],
)
def test_tensor_shapes_and_both_folders_are_named(change, said):
    own = {n: v for n, v in (tensors() | change).items() if v is not None}
    descent = Descent("mine", "/a/mine", "theirs", "/b/theirs")
    with pytest.raises(ValueError, match=said + r".*\(/a/mine; base: /b/theirs\)"):
        descent.prefix(shapes(tensors()), shapes(own))


def test_heads_and_poolers_do_not_count():
    own = shapes(tensors(prefix="electra.")) | {"classifier.out.weight": (2, 3)}
    own.pop("electra.pooler.dense.weight")
    descent = Descent("mine", "/a", "theirs", "/b")
    assert descent.prefix(shapes(tensors()), own) == "electra."
    with pytest.raises(ValueError, match=r"'extra\.weight' \[1\] is not in the base"):
        descent.prefix(shapes(tensors()), shapes(tensors()) | {"extra.weight": (1,)}, heads=False)


def test_names_are_longer_by_whole_parts_only():
    assert longer_by(["embeddings.word"], ["xembeddings.word"]) == ""
    assert longer_by(["embeddings.word", "b"], ["bert.embeddings.word", "bert.b"]) == "bert."


def test_changed_biases_alone_are_an_expert():
    descent = Descent("mine", "/a", "theirs", "/b")
    descent.add("weight", np.ones((2, 2)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"mine equals the base theirs: .*\(/a; base: /b\)"):
        descent.check()
    descent.add("bias", np.ones(2), np.full(2, 0.1))
    descent.check()
