"""Extracted adapters load in peft, reproduce what they say they keep, and go back in through the reader."""

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

from core.merge.lora import open_adapter
from core.merge.lora_extract import extract_lora
from core.merge.tensors import FileSource, open_checkpoint


def bert():
    return BertModel(
        BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=50),
        add_pooling_layer=False,
    )


@pytest.fixture
def models(tmp_path):
    """A base and a model that differs by rank 3 in queries, fully in one dense layer, and in norms and biases."""
    torch.manual_seed(0)
    base = {k: v.clone().contiguous() for k, v in bert().state_dict().items()}
    changed = dict(base)
    for name, value in base.items():
        if "query.weight" in name or "word_embeddings" in name:
            changed[name] = value + torch.randn(value.shape[0], 3) @ torch.randn(3, value.shape[1]) * 0.1
        elif "layer.0.intermediate.dense.weight" in name:
            changed[name] = value + 0.1 * torch.randn(value.shape)
        elif "query.bias" in name or "layer.1.output.LayerNorm.weight" in name:
            changed[name] = value + 0.3 * torch.randn(value.shape)
    for folder, state in (("base", base), ("model", changed)):
        (tmp_path / folder).mkdir()
        save_file(state, tmp_path / folder / "model.safetensors")
    return tmp_path, base, changed


def through_peft(base, folder):
    model = bert()
    model.load_state_dict(base)
    return PeftModel.from_pretrained(model, folder).merge_and_unload().state_dict()


@pytest.mark.parametrize("rest", ["drop", "save"])
def test_what_is_kept_is_what_peft_gives_back(models, rest):
    folder, base, changed = models
    got = extract_lora(folder / "base", folder / "model", folder / "out", rank=4, rest=rest)
    merged = through_peft(base, folder / "out")
    total = sum((changed[k] - base[k]).double().square().sum() for k in base)
    lost = sum((changed[k] - merged[k]).double().square().sum() for k in base)
    assert got.kept == pytest.approx(1 - float(lost / total), abs=1e-6)
    ranks = {t.name: t.rank for t in got.tensors}
    assert ranks["encoder.layer.0.attention.self.query.weight"] == 4  # float32 inputs: not exactly of rank three
    assert ranks["encoder.layer.1.output.LayerNorm.weight"] == (0 if rest == "drop" else None)
    if rest == "save":
        assert torch.equal(
            merged["encoder.layer.1.output.LayerNorm.weight"], changed["encoder.layer.1.output.LayerNorm.weight"]
        )
        assert torch.equal(
            merged["encoder.layer.0.attention.self.query.bias"], changed["encoder.layer.0.attention.self.query.bias"]
        )


def test_energy_chooses_the_rank(models):
    folder, base, changed = models
    got = extract_lora(folder / "base", folder / "model", folder / "out", rank=16, energy=0.9999)
    ranks = {t.name: t.rank for t in got.tensors}
    assert ranks["encoder.layer.0.attention.self.query.weight"] == 3
    assert ranks["encoder.layer.0.intermediate.dense.weight"] > 8
    assert all(t.kept >= 0.9998 for t in got.tensors if t.rank)
    merged = through_peft(base, folder / "out")
    name = "encoder.layer.1.attention.self.query.weight"
    assert torch.allclose(merged[name], changed[name], atol=1e-5)


def test_extracted_adapter_goes_back_in(models):
    folder, _, changed = models
    extract_lora(folder / "base", folder / "model", folder / "out", rank=16, rest="save")
    checkpoint = open_checkpoint(folder / "base")
    adapter = open_adapter(folder / "out").bind(checkpoint)
    for name, info in checkpoint.tensors.items():
        source = adapter.source(name, FileSource(info))
        values = np.asarray(source.read(0, info.size), dtype=np.float64).reshape(info.shape)
        assert np.allclose(values, changed[name].numpy(), atol=1e-6), name
        source.close()


def test_bad_settings_and_models_are_named(models):
    folder, base, _ = models
    with pytest.raises(ValueError, match="nothing to extract"):
        extract_lora(folder / "base", folder / "base", folder / "out")
    with pytest.raises(ValueError, match="rank >= 1"):
        extract_lora(folder / "base", folder / "model", folder / "out", rank=0)
    (folder / "small").mkdir()
    save_file({k: v for k, v in base.items() if "layer.1" not in k}, folder / "small" / "model.safetensors")
    with pytest.raises(ValueError, match="only in one of"):
        extract_lora(folder / "base", folder / "small", folder / "out")
    assert not (folder / "out").exists()
