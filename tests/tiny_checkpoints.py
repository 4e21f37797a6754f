"""Tiny llama checkpoints written without torch: a base and experts near it, in any dtype and shard layout."""

import json
from pathlib import Path

import numpy as np
import yaml

from core.merge.dtypes import NAMES, encode
from core.merge.tensors import ShardFiles, lay_out, open_checkpoint, write_exactly

HIDDEN, INNER, HEADS = 16, 24, 2
LONG = {short: long for long, short in NAMES.items()}


def llama_tensors(layers=3, vocabulary=40, tied=False):
    """Names and shapes."""
    shapes = {"model.embed_tokens.weight": (vocabulary, HIDDEN)}
    for i in range(layers):
        layer = f"model.layers.{i}"
        for part in "qkvo":
            shapes[f"{layer}.self_attn.{part}_proj.weight"] = (HIDDEN, HIDDEN)
        shapes |= {f"{layer}.mlp.{part}_proj.weight": (INNER, HIDDEN) for part in ("gate", "up")}
        shapes[f"{layer}.mlp.down_proj.weight"] = (HIDDEN, INNER)
        shapes |= {f"{layer}.{n}_layernorm.weight": (HIDDEN,) for n in ("input", "post_attention")}
    shapes["model.norm.weight"] = (HIDDEN,)
    if not tied:
        shapes["lm_head.weight"] = (vocabulary, HIDDEN)
    return shapes


def llama_values(seed, layers=3, vocabulary=40, tied=False):
    """Float64 values: ``seed`` 0 is the base, others are near it."""
    values = {}
    for i, (name, shape) in enumerate(llama_tensors(layers, vocabulary, tied).items()):
        base = np.random.default_rng([7, i]).standard_normal(shape) * 0.05 + ("norm" in name)
        noise = np.random.default_rng([seed, i, 1]).standard_normal(shape) * 2e-3
        values[name] = base if seed == 0 else base + noise
    return values


def write_checkpoint(folder: Path, values, dtype="BF16", shard_bytes=10**9, config=None) -> Path:
    """Write float64 ``values`` (or raw integer arrays) as safetensors."""
    kinds = {n: dtype if v.dtype == np.float64 else {"int64": "I64"}[v.dtype.name] for n, v in values.items()}
    layout = lay_out([(n, kinds[n], v.shape) for n, v in values.items()], shard_bytes)
    files = ShardFiles(folder, layout)
    for name, v in values.items():
        slot = layout.slots[name]
        raw = encode(v, dtype) if v.dtype == np.float64 else v
        write_exactly(files.fds[slot.shard], np.ascontiguousarray(raw), slot.offset)
    files.close()
    if layout.index() is not None:
        (folder / "model.safetensors.index.json").write_bytes(layout.index())
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def llama_config(layers=3, vocabulary=40, tied=False, dtype="BF16"):
    """``config.json``."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": layers, "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
        "vocab_size": vocabulary, "tie_word_embeddings": tied, "torch_dtype": LONG[dtype], "hidden_act": "silu",
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip


def write_llama(folder: Path, seed, *, layers=3, vocabulary=40, tied=False, dtype="BF16", shard_bytes=10**9) -> Path:
    """A tiny llama with a word-level tokenizer of ``vocabulary`` words."""
    values = llama_values(seed, layers, vocabulary, tied)
    write_checkpoint(folder, values, dtype, shard_bytes, llama_config(layers, vocabulary, tied, dtype))
    write_tokenizer(folder, ["<unk>", "<s>", "</s>", *[f"w{i}" for i in range(3, vocabulary)]])
    return folder


def write_tokenizer(folder: Path, words) -> None:
    """A whitespace tokenizer of ``words``."""
    vocab = {w: i for i, w in enumerate(words)}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
    data = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"}, "model": model}
    data |= dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    (folder / "tokenizer.json").write_text(json.dumps(data))
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names}))


def write_recipe(path: Path, method, models, base=None, parameters=None, per_model=None, **more) -> Path:
    """A recipe file for whole models."""
    inputs = [{"model": str(m)} | ({"parameters": p} if p else {}) for m, p in zip(models, per_model or [None] * 99)]
    data = {"merge_method": method, "models": inputs, **({"base_model": str(base)} if base else {}), **more}
    if parameters:
        data["parameters"] = parameters
    path.write_text(yaml.safe_dump(data))
    return path


def raw_tensors(folder: Path):
    """name -> (dtype, shape, bytes) of a model folder."""
    found = {}
    for name, info in open_checkpoint(folder).tensors.items():
        with open(info.file, "rb") as handle:
            handle.seek(info.offset)
            found[name] = (info.dtype, info.shape, handle.read(info.bytes))
    return found
