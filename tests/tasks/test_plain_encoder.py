"""Bases as they come (with a head, in shards, in bfloat16) become encoders whose experts differ from them alone."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertForMaskedLM, BertModel

from core.merge.task_vectors import task_vectors
from core.state import Cache
from tasks.load_model import ASSET
from tasks.plain_encoder import PlainConfig, as_plain_encoder, is_plain, plain_encoder
from tasks.stage import Artifact, Output
from tests import tiny_experts as te
from tests import tiny_models as tiny


def written(folder, kind):
    """A checkpoint of the tiny base in the given form, as the stage that loads models leaves it."""
    base = te.base_folder(folder / "plain")
    backbone = BertModel.from_pretrained(base, add_pooling_layer=False)
    out = folder / kind
    if kind == "head":
        model = BertForMaskedLM(tiny.bert_config(layers=2))
        model.bert.load_state_dict(backbone.state_dict())
        model.save_pretrained(out)
    else:
        sizes = {"max_shard_size": "4KB"} if kind == "shards" else {}
        (backbone.bfloat16() if kind == "bfloat16" else backbone).save_pretrained(out, **sizes)
    tiny.tokenizer().save_pretrained(out)
    (out / ASSET).write_text(json.dumps({"name": kind, "licence": "mit", "origin": "here"}))
    return base, Artifact(name="load-model", path=str(out), sha256=kind)


@pytest.mark.parametrize("kind", ["head", "shards", "bfloat16"])
def test_a_base_as_it_comes_gives_experts_that_differ_from_it(tmp_path, kind):
    base, artifact = written(tmp_path, kind)
    assert is_plain(base)
    assert not is_plain(artifact.folder)
    out = Output(tmp_path / "out")
    out.folder.mkdir()
    plain_encoder.body(out, PlainConfig(), base=artifact)
    assert is_plain(out.folder)
    assert json.loads((out.folder / ASSET).read_text())["licence"] == "mit"
    made, own = load_file(out.folder / "model.safetensors"), load_file(base / "model.safetensors")
    assert made.keys() == own.keys()
    for name, tensor in made.items():
        exact = own[name].bfloat16().float() if kind == "bfloat16" else own[name]
        assert torch.equal(tensor, exact)
    cache = Cache(tmp_path / "cache")
    folders = {t.name: te.train_expert(t, out.folder, te.CONFIG, cache) for t in te.tasks(("good", "plot"))}
    assert task_vectors(out.folder, folders, cache).tensors


def test_a_plain_base_and_one_of_a_plan_stay_as_they_are(tmp_path):
    base = Artifact(name="load-model", path=str(te.base_folder(tmp_path / "plain")), sha256="1")
    assert as_plain_encoder(base) is base
    planned = Artifact(name="load-model", path="", sha256="2", planned=True)
    assert as_plain_encoder(planned) is planned
    shutil.rmtree(base.folder)
