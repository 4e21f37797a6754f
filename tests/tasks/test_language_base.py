"""A base is told to be a language model by its configuration, and a plan fetches nothing to know it."""

import pytest
import torch
from safetensors.torch import load_file

from core.models.load import load_causal
from tasks import language_base
from tasks.language_base import as_safetensors, is_language
from tasks.load_model import load_model
from tasks.stage import Artifact, Output, planning
from tests import tiny_language, tiny_models


def test_the_configuration_tells(tmp_path):
    base = tiny_language.base_folder(tmp_path / "lm")
    assert is_language(str(base))
    encoder = tiny_models.encoder()
    encoder.backbone.save_pretrained(tmp_path / "encoder")
    encoder.tokenizer.save_pretrained(tmp_path / "encoder")
    assert not is_language(str(tmp_path / "encoder"))
    (base / "config.json").write_text("{")
    assert not is_language(str(base)), "whoever loads it says what is wrong"
    assert not is_language(str(tmp_path / "none"))


def test_what_is_not_here_is_not_fetched_to_be_told(home, monkeypatch):
    def fetched(name):
        raise AssertionError(f"{name} was fetched")

    monkeypatch.setenv("TRANSFEROPT_ASSETS", str(home / "assets"))
    monkeypatch.setattr(language_base, "resolve", fetched)
    assert is_language("smollm2-135m-instruct")
    assert not is_language("all-mpnet-base-v2")
    with planning():
        assert not is_language("owner/name")


def test_other_weights_become_safetensors(tmp_path):
    lm, folder = tiny_models.causal(), tmp_path / "bin"
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    (folder / "asset.json").write_text('{"name": "tiny", "licence": "MIT"}')
    given = Artifact(name="load-model", path=str(folder), sha256="0")
    assert as_safetensors(given) is given
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    out = Output(tmp_path / "out")
    out.folder.mkdir()
    language_base.plain_language_model.body(out, language_base.PlainLanguageConfig(), base=given)
    again = load_causal(str(out.folder), device="cpu").model.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in lm.model.state_dict().items())
    assert any(out.folder.glob("*.safetensors"))
    assert (out.folder / "asset.json").is_file()


@pytest.fixture
def adapter(tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    return folder


def test_an_adapter_is_loaded_where_one_is_wanted(adapter, home):
    with planning() as lines:
        with pytest.raises(ValueError, match="needed is a whole model"):
            load_model(str(adapter))
        load_model(str(adapter), adapter=True)
    assert [line.stage for line in lines] == ["load-model"]
