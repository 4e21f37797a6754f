"""Adapters as peft writes them, against peft's own merge in float64; and adapters that must be refused."""

import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

from core.merge.dtypes import decode
from core.merge.lora import open_adapter
from core.merge.tensors import FileSource, open_checkpoint


def bert():
    return BertModel(
        BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=50)
    )


def gpt2():
    return GPT2Model(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50, bos_token_id=0, eos_token_id=0))


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.second(self.first(x))


CASES = {
    "plain": (bert, {"target_modules": ["query", "value"], "lora_alpha": 7}),
    "rslora and patterns": (
        bert,
        {
            "target_modules": ["query", "dense"],
            "use_rslora": True,
            "rank_pattern": {"layer.1.attention.self.query": 2},
            "alpha_pattern": {"layer.0.*.dense": 11},
        },
    ),
    "embedding": (bert, {"target_modules": ["word_embeddings", "key"]}),
    "modules saved": (bert, {"target_modules": ["query"], "modules_to_save": ["pooler", "LayerNorm"]}),
    "lora bias": (bert, {"target_modules": ["query"], "lora_bias": True}),
    "biases": (bert, {"target_modules": ["query"], "bias": "lora_only"}),
    "dora": (bert, {"target_modules": ["query", "word_embeddings"], "use_dora": True}),
    "transposed": (gpt2, {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    "transposed dora": (gpt2, {"target_modules": ["c_attn"], "fan_in_fan_out": True, "use_dora": True}),
    "convolution": (Convolutions, {"target_modules": ["first", "second"]}),
    "convolution dora": (Convolutions, {"target_modules": ["first"], "use_dora": True}),
}


@pytest.fixture(params=CASES, ids=str)
def saved(request, tmp_path):
    """Folders of base and adapter, and the merged weights by peft in float64."""
    make, settings = CASES[request.param]
    torch.manual_seed(0)
    model = make()
    base = {k: v.clone().contiguous() for k, v in model.state_dict().items()}
    (tmp_path / "base").mkdir()
    save_file(base, tmp_path / "base" / "model.safetensors")
    adapted = get_peft_model(model, LoraConfig(r=4, **settings))
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn_like(p)).abs_() if "magnitude" in name else p.normal_(0, 0.2)
    adapted.save_pretrained(tmp_path / "adapter")
    again = make()
    again.load_state_dict(base)
    loaded = PeftModel.from_pretrained(again, tmp_path / "adapter").double()
    return tmp_path, dict(loaded.merge_and_unload().state_dict())


def read(source, step=None):
    n = int(np.prod(source.shape))
    step = step or n
    parts = [decode(source.read(i, min(i + step, n)), source.dtype).copy() for i in range(0, n, step)]
    return np.concatenate(parts).reshape(source.shape)


def test_adapters_equal_pefts_own_merge(saved):
    folder, expected = saved
    base = open_checkpoint(folder / "base")
    adapter = open_adapter(folder / "adapter").bind(base.tensors)
    touched = 0
    for name, info in base.tensors.items():
        source = adapter.source(name, FileSource(info))
        values, reference = read(source), expected[name].numpy()
        source.close()
        assert np.linalg.norm(values - reference) <= 1e-12 * np.linalg.norm(reference), name
        touched += adapter.touches(name)
    assert touched == len(adapter.changes) > 0


def test_reading_by_pieces_gives_the_same_bytes(saved, monkeypatch):
    folder, _ = saved
    monkeypatch.setattr("core.merge.lora.TILE", 40)
    base = open_checkpoint(folder / "base")
    adapter = open_adapter(folder / "adapter").bind(base.tensors)
    for name in adapter.names:
        whole, pieces = (adapter.source(name, FileSource(base.tensors[name])) for _ in range(2))
        assert read(whole).tobytes() == read(pieces, 7).tobytes(), name


def test_an_adapter_finds_its_tensors_under_a_prefix(tmp_path):
    torch.manual_seed(0)
    get_peft_model(bert(), LoraConfig(r=2, target_modules=["query"])).save_pretrained(tmp_path / "adapter")
    state = {f"bert.{k}": v.contiguous() for k, v in bert().state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    adapter = open_adapter(tmp_path / "adapter").bind(open_checkpoint(tmp_path).tensors)
    assert adapter.touches("bert.encoder.layer.0.attention.self.query.weight")


def change_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def plain(tmp_path):
    get_peft_model(bert(), LoraConfig(r=2, target_modules=["query"])).save_pretrained(tmp_path / "adapter")
    save_file({k: v.contiguous() for k, v in bert().state_dict().items()}, tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "only 'LORA'"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base model"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"r": 0}, "r is 0"),
    ],
)
def test_adapters_that_are_no_plain_deltas_are_refused(plain, changes, message):
    change_config(plain / "adapter", **changes)
    with pytest.raises(ValueError, match=message):
        open_adapter(plain / "adapter")


def test_missing_files_other_models_and_damage_are_named(plain, tmp_path):
    with pytest.raises(FileNotFoundError, match="adapter_config"):
        open_adapter(tmp_path / "nowhere")
    tensors = open_checkpoint(plain).tensors
    adapter = open_adapter(plain / "adapter")
    with pytest.raises(ValueError, match="the base has 0 such"):
        adapter.bind({k: v for k, v in tensors.items() if "layer.1" not in k})
    weights = plain / "adapter" / "adapter_model.safetensors"
    state = load_file(weights)
    save_file({k: v.repeat(1, 2) if "lora_A" in k else v for k, v in state.items()}, weights)
    with pytest.raises(ValueError, match="another model"):
        open_adapter(plain / "adapter").bind(tensors)
    save_file({k: v for k, v in state.items() if "lora_A" not in k}, weights)
    with pytest.raises(ValueError, match="not both"):
        open_adapter(plain / "adapter")
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="safe_serialization"):
        open_adapter(plain / "adapter")
