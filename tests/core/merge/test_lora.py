"""Adapters as peft writes them, against peft's own merge in float64; and adapters that must be refused."""

import json
import os
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, LlamaConfig, LlamaForCausalLM

from core.merge.compute import open_group
from core.merge.dtypes import decode
from core.merge.engine import merge
from core.merge.linalg import svd
from core.merge.lora import open_adapter
from core.merge.plan import make_plan
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
    adapter = open_adapter(folder / "adapter").bind(base)
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
    adapter = open_adapter(folder / "adapter").bind(base)
    for name in adapter.names:
        whole, pieces = (adapter.source(name, FileSource(base.tensors[name])) for _ in range(2))
        assert read(whole).tobytes() == read(pieces, 7).tobytes(), name


def test_an_adapter_finds_its_tensors_under_a_prefix(tmp_path):
    torch.manual_seed(0)
    get_peft_model(bert(), LoraConfig(r=2, target_modules=["query"])).save_pretrained(tmp_path / "adapter")
    state = {f"bert.{k}": v.contiguous() for k, v in bert().state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    adapter = open_adapter(tmp_path / "adapter").bind(open_checkpoint(tmp_path))
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
    base = open_checkpoint(plain)
    adapter = open_adapter(plain / "adapter")
    with pytest.raises(ValueError, match="the base has 0 such"):
        adapter.bind(replace(base, tensors={k: v for k, v in base.tensors.items() if "layer.1" not in k}))
    weights = plain / "adapter" / "adapter_model.safetensors"
    state = load_file(weights)
    save_file({k: v.repeat(1, 2) if "lora_A" in k else v for k, v in state.items()}, weights)
    with pytest.raises(ValueError, match="another model"):
        open_adapter(plain / "adapter").bind(base)
    save_file({k: v for k, v in state.items() if "lora_A" not in k}, weights)
    with pytest.raises(ValueError, match="not both"):
        open_adapter(plain / "adapter")
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="safe_serialization"):
        open_adapter(plain / "adapter")


def llama(tied):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, tie_word_embeddings=tied, **sizes))


def save_adapted(model, folder, **settings):
    """Base and adapter on disk, every adapted weight moved; the adapted model."""
    model.save_pretrained(folder / "base")
    adapted = get_peft_model(model, LoraConfig(r=2, **settings))
    torch.manual_seed(1)
    with torch.no_grad():
        for p in adapted.parameters():
            if p.requires_grad:
                p.normal_(0, 0.2)
    adapted.save_pretrained(folder / "adapter")
    return adapted


def test_the_layer_below_an_adapted_head_is_no_replacement(tmp_path):
    """peft saves the base layers of embedding and head beside their factors."""
    adapted = save_adapted(llama(tied=False), tmp_path, target_modules=["embed_tokens", "lm_head", "q_proj"])
    assert any("base_layer" in name for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    wanted = adapted.merge_and_unload().state_dict()
    model = f"{tmp_path / 'base'}+{tmp_path / 'adapter'}"
    merge({"merge_method": "passthrough", "models": [{"model": model}]}, tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    base = load_file(tmp_path / "base" / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.allclose(written[name], wanted[name], atol=1e-6)
        assert not torch.allclose(written[name], base[name], atol=1e-2)


@pytest.mark.parametrize(
    "settings",
    [{"target_modules": ["embed_tokens"]}, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}],
    ids=["factors", "saved"],
)
def test_the_engine_refuses_the_change_of_one_end_of_tied_embeddings(tmp_path, settings):
    save_adapted(llama(tied=True), tmp_path, **settings)
    recipe = {"merge_method": "passthrough", "models": [{"model": f"{tmp_path / 'base'}+{tmp_path / 'adapter'}"}]}
    with pytest.raises(ValueError, match="ties embeddings and head"):
        make_plan(recipe)


def test_a_norm_saved_in_full_is_no_end_of_tied_embeddings(tmp_path):
    save_adapted(llama(tied=True), tmp_path, target_modules=["q_proj"], modules_to_save=["input_layernorm"])
    path = tmp_path / "base" / "config.json"
    config = json.loads(path.read_text())
    recipe = {"merge_method": "passthrough", "models": [{"model": f"{tmp_path / 'base'}+{tmp_path / 'adapter'}"}]}
    assert make_plan(recipe).jobs
    config["text_config"] = {"vocab_size": config.pop("vocab_size")}  # as models of several modalities write it
    path.write_text(json.dumps(config))
    assert make_plan(recipe).jobs


def test_a_source_closed_twice_leaves_another_files_number_alone(plain):
    """Two threads merge adapters with modules saved in full: what one closed again was the other's open file."""
    info = open_checkpoint(plain).tensors["encoder.layer.0.attention.self.query.weight"]
    first = FileSource(info)
    number = first._fd
    first.close()
    second = FileSource(info)
    assert second._fd == number
    first.close()
    assert second.read(0, info.size).shape == (info.size,)
    second.close()


def test_every_file_that_an_adapters_tensor_opens_is_closed(tmp_path):
    settings = {"target_modules": ["query"], "modules_to_save": ["pooler"], "bias": "lora_only"}
    save_adapted(bert(), tmp_path, **settings)
    before = len(os.listdir("/proc/self/fd"))
    recipe = {"merge_method": "passthrough", "models": [{"model": f"{tmp_path / 'base'}+{tmp_path / 'adapter'}"}]}
    merge(recipe, tmp_path / "out")
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_adapters_delta_is_its_product_and_has_its_rank(tmp_path):
    """The sum with a base of large weights would round a weak adapter's product to full rank."""
    model = bert()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1e4)
    save_adapted(model, tmp_path, target_modules=["query"])
    recipe = {
        "merge_method": "iso_c",
        "base_model": str(tmp_path / "base"),
        "models": [{"model": f"{tmp_path / 'base'}+{tmp_path / 'adapter'}"}],
    }
    plan = make_plan(recipe)
    job = next(j for j in plan.jobs if j.name.endswith("layer.0.attention.self.query.weight"))
    with ExitStack() as stack:
        delta = open_group(plan, job, stack).delta(0)
    assert svd(delta)[1].size == 2
