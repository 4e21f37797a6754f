"""Synthetic checkpoints for the merge benchmark: a llama-shaped base and experts near it, the same bytes everywhere.

Every tensor has its own Philox stream, keyed by the seed and by the CRC-32 of ``model/tensor``: base values are normal
with deviation 0.02 (norm weights around 1), an expert is the base plus normal noise of 0.001, all rounded to bfloat16.
Each model has two shards and an index, a configuration and a word-level tokenizer, so that it loads like a real one.

    python benchmarks/merge_models.py FOLDER [tiny|small|big]
"""

import json
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.hashing import sha256_file
from core.merge.dtypes import decode

SEED = 20261121
EXPERTS = 4
BASE_DEVIATION, NOISE = np.float32(0.02), np.float32(1e-3)


@dataclass(frozen=True)
class Shape:
    """Dimensions of a llama."""

    hidden: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    vocabulary: int

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes in the order of the files."""
        width = self.hidden // self.heads
        yield "model.embed_tokens.weight", (self.vocabulary, self.hidden)
        for i in range(self.layers):
            layer = f"model.layers.{i}"
            for part, rows in (("q", self.heads), ("k", self.key_heads), ("v", self.key_heads)):
                yield f"{layer}.self_attn.{part}_proj.weight", (rows * width, self.hidden)
            yield f"{layer}.self_attn.o_proj.weight", (self.hidden, self.heads * width)
            yield f"{layer}.mlp.gate_proj.weight", (self.inner, self.hidden)
            yield f"{layer}.mlp.up_proj.weight", (self.inner, self.hidden)
            yield f"{layer}.mlp.down_proj.weight", (self.hidden, self.inner)
            yield f"{layer}.input_layernorm.weight", (self.hidden,)
            yield f"{layer}.post_attention_layernorm.weight", (self.hidden,)
        yield "model.norm.weight", (self.hidden,)
        yield "lm_head.weight", (self.vocabulary, self.hidden)

    def config(self) -> dict:
        """``config.json``."""
        return {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": self.hidden,
            "intermediate_size": self.inner, "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_heads, "vocab_size": self.vocabulary, "max_position_embeddings": 2048,
            "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "bos_token_id": 1, "eos_token_id": 2,
            "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        }  # fmt: skip


SHAPES = {
    "tiny": Shape(64, 176, 4, 4, 2, 512),
    "small": Shape(1024, 2816, 24, 16, 8, 32000),  # 0.349 B parameters, 0.70 GB
    "big": Shape(2048, 5632, 22, 32, 4, 32000),  # 1.10 B parameters, 2.2 GB
}


def generate(folder: Path, size: str) -> dict[str, str]:
    """Write base and experts under ``folder`` (what is there already is kept); file -> sha256 of the shards."""
    shape = SHAPES[size]
    digests = {}
    for model in ("base", *[f"expert{i}" for i in range(EXPERTS)]):
        target = folder / model
        done = target / "digests.json"
        if not done.is_file():
            target.mkdir(parents=True, exist_ok=True)
            _write_model(target, shape, model)
            shards = sorted(target.glob("*.safetensors"))
            done.write_text(json.dumps({f"{model}/{f.name}": sha256_file(f) for f in shards}))
        digests |= json.loads(done.read_text())
    return digests


def _stream(model: str, tensor: str) -> np.random.Generator:
    key = [SEED, zlib.crc32(f"{model}/{tensor}".encode())]
    return np.random.Generator(np.random.Philox(key=key))


def _bfloat16(values: np.ndarray) -> np.ndarray:
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def _values(model: str, tensor: str, shape: tuple[int, ...]) -> np.ndarray:
    """Raw bfloat16 elements of a tensor."""
    base = _stream("base", tensor).standard_normal(shape, dtype=np.float32) * BASE_DEVIATION
    if "norm" in tensor:
        base += np.float32(1.0)
    raw = _bfloat16(base)
    if model == "base":
        return raw
    noise = _stream(model, tensor).standard_normal(shape, dtype=np.float32) * NOISE
    return _bfloat16(decode(raw, "BF16").astype(np.float32) + noise)


def _write_model(folder: Path, shape: Shape, model: str) -> None:
    tensors = list(shape.tensors())
    half = sum(int(np.prod(s)) for _, s in tensors) // 2
    shards, filled = ([], []), 0
    for name, s in tensors:
        shards[filled >= half].append((name, s))
        filled += int(np.prod(s))
    weight_map = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05d}-of-00002.safetensors"
        _write_shard(folder / file, shard, model)
        weight_map |= {name: file for name, _ in shard}
    index = {"metadata": {"total_size": 2 * filled}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=1))
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}))
    _write_tokenizer(folder, shape.vocabulary)


def _write_shard(path: Path, tensors: list[tuple[str, tuple[int, ...]]], model: str) -> None:
    header: dict = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in tensors:
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        for name, shape in tensors:
            handle.write(_values(model, name, shape).tobytes())


def _write_tokenizer(folder: Path, size: int) -> None:
    words = ["<unk>", "<s>", "</s>", *[f"w{i}" for i in range(3, size)]]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }  # fmt: skip
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


if __name__ == "__main__":
    for file, digest in generate(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "small").items():
        print(digest, file)
