"""Whole-tensor operators and adapters through the engine, on any number of threads, opened by transformers."""

import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from core.merge.engine import merge
from core.merge.operators import ArraySource, make_group, merge_group
from core.merge.statistics import Statistics


def bert(seed):
    torch.manual_seed(seed)
    config = BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=70,
        max_position_embeddings=40,
    )  # fmt: skip
    return BertModel(config, add_pooling_layer=False)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Base, two experts, and an adapter with random factors."""
    folder = tmp_path_factory.mktemp("models")
    base = bert(0)
    base.save_pretrained(folder / "base")
    for e in (1, 2):
        model = bert(0)
        torch.manual_seed(e)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.02 * torch.randn_like(p))
        model.save_pretrained(folder / f"e{e}")
    adapted = get_peft_model(bert(0), LoraConfig(r=4, target_modules=["query", "dense"], lora_alpha=9))
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_" in name:
                p.normal_(0, 0.1)
    adapted.save_pretrained(folder / "adapter")
    return folder


def recipe(folder, method, models=("e1", "e2"), base="base", parameters=None, **each):
    return {
        "merge_method": method,
        "base_model": str(folder / base),
        "models": [
            {"model": "+".join(str(folder / m) for m in name.split("+")), "parameters": each} for name in models
        ],
        "parameters": parameters or {},
    }


@pytest.mark.parametrize("method", ["tsv_m", "iso_c", "iso_cts", "wudi", "knots", "pcb", "emr", "consensus", "magmax"])
def test_engine_writes_the_operators_result(models, tmp_path, method):
    outs = [merge(recipe(models, method), tmp_path / f"t{threads}", threads=threads) for threads in (1, 3)]
    shards = [(out / "model.safetensors").read_bytes() for out in outs]
    assert shards[0] == shards[1]
    got = load_file(outs[0] / "model.safetensors")
    states = [load_file(models / n / "model.safetensors") for n in ("base", "e1", "e2")]
    for name in ("encoder.layer.1.attention.self.key.weight", "embeddings.LayerNorm.weight"):
        base, *experts = (ArraySource(s[name].numpy()) for s in states)
        expected = merge_group(method, make_group(method, experts, base, name=name))
        assert np.array_equal(got[name].numpy(), expected.astype(np.float32)), name
    BertModel.from_pretrained(outs[0], add_pooling_layer=False)


def test_an_adapter_in_a_recipe_is_the_delta_it_means(models, tmp_path):
    out = merge(recipe(models, "task_arithmetic", models=["base+adapter"], weight=1.0), tmp_path / "out")
    merged = PeftModel.from_pretrained(bert(0), models / "adapter").merge_and_unload().state_dict()
    got = load_file(out / "model.safetensors")
    for name, value in got.items():
        assert torch.allclose(value, merged[name], atol=1e-6), name
    manifest = json.loads((out / "merge.json").read_text())
    assert "adapter_model.safetensors" in json.dumps(manifest)


def test_adapters_and_experts_mix(models, tmp_path):
    out = merge(recipe(models, "tsv_m", models=["base+adapter", "e1"]), tmp_path / "out")
    assert all(torch.isfinite(v).all() for v in load_file(out / "model.safetensors").values())


def test_a_changed_statistics_file_or_adapter_is_another_merge(models, tmp_path):
    """A finished or half merge must not be taken for that of new statistics."""
    name = "encoder.layer.0.attention.self.query.weight"
    rng = np.random.default_rng(0)

    def run(out):
        r = recipe(models, "regmean", parameters={"off_diagonal": 1.0})
        for i, m in enumerate(r["models"]):
            m["parameters"] = {"statistics": str(tmp_path / f"{i}.safetensors")}
        return load_file(merge(r, out) / "model.safetensors")[name]

    def collect():
        for i in range(2):
            x = rng.standard_normal((50, 32))
            Statistics("gram", {name: x.T @ x / 50}, 50).save(tmp_path / f"{i}.safetensors")

    collect()
    first = run(tmp_path / "one")
    collect()
    assert not torch.equal(first, run(tmp_path / "two"))
    with pytest.raises(ValueError, match="one"):
        run(tmp_path / "one")


@pytest.mark.parametrize("method", ["tsv_m", "iso_c", "wudi"])
def test_a_tensor_that_nobody_moved_is_the_base_without_any_work(method, monkeypatch):
    from core.merge import compute, kernels
    from core.merge.operators import OPERATORS, ArraySource, make_group

    base = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    group = make_group(method, [ArraySource(base), ArraySource(base.copy())], ArraySource(base), name="frozen")

    def refuse(name):
        raise AssertionError("the operator ran")

    out = np.empty_like(base)
    monkeypatch.setattr(OPERATORS, "get", refuse)
    compute.write_group(group, "F32", kernels.Tensor(out.ctypes.data, 0, -1))
    np.testing.assert_array_equal(out, base)
