"""Fuzz cases of the merge engine's readers: safetensors headers and recipes."""

import json
import math
import struct
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from hypothesis import strategies as st

from benchmarks.fuzzing import Reader, WrongAnswer, damaged, odd_values


def headers() -> st.SearchStrategy[bytes]:
    """Safetensors files of two or three small tensors, some with absurd entries or lengths."""
    entry = st.fixed_dictionaries(
        {
            "dtype": st.one_of(st.sampled_from(["F32", "BF16", "F16", "I64", "U8", "BOOL"]), odd_values(1)),
            "shape": st.one_of(st.lists(st.integers(0, 4), max_size=3), odd_values(1)),
            "data_offsets": st.one_of(st.tuples(st.integers(0, 40), st.integers(0, 80)).map(list), odd_values(1)),
        }
    )
    header = st.one_of(
        st.dictionaries(
            st.sampled_from(["a", "b", "layers.0.w", "__metadata__"]), st.one_of(entry, odd_values()), max_size=4
        ),
        odd_values(),
    )
    absurd = st.builds(_file_of_header, header, st.integers(0, 80), st.one_of(st.just(0), st.integers(-9, 1 << 62)))
    shapes = st.lists(st.tuples(st.sampled_from(sorted(SIZES)), st.lists(st.integers(0, 4), max_size=3)), max_size=4)
    honest = st.builds(_honest_file, shapes, st.integers(0, 9))
    return st.one_of(
        honest,
        damaged(honest),
        damaged(st.sampled_from(_valid_files())),
        absurd,
        st.binary(max_size=64),
        st.builds(_nested),
    )


def _honest_file(tensors: Sequence[tuple[str, list[int]]], padding: int) -> bytes:
    """A valid file of tensors of any format, its header padded with blanks."""
    header, at = {}, 0
    for i, (dtype, shape) in enumerate(tensors):
        size = math.prod(shape) * SIZES[dtype]
        header[f"t.{i}"] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode() + b" " * padding
    return struct.pack("<Q", len(text)) + text + bytes(at)


def _valid_files() -> list[bytes]:
    from safetensors.numpy import save

    small = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, np.float16)}
    mixed = {"w.0": np.zeros((2, 2)), "ids": np.arange(4), "empty": np.zeros((0, 3), np.float32), "one": np.ones(())}
    return [save(small), save(mixed, {"format": "pt"}), save({"flag": np.ones(3, bool)})]


def _file_of_header(header: Any, size: int, error: int) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", max(0, len(text) + error) % (1 << 64)) + text + bytes(size)


def _nested() -> bytes:
    text = b"[" * 200_000 + b"]" * 200_000
    return struct.pack("<Q", len(text)) + text


def check_header(path: Path, answer: Any) -> None:
    """The reference library's verdict: what it reads we read equally; what we accept lies in the file, apart."""
    from safetensors import SafetensorError, safe_open

    reference = None
    try:
        with safe_open(path, "np") as file:
            reference = {n: (file.get_slice(n).get_dtype(), file.get_slice(n).get_shape()) for n in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        pass
    if answer is None:
        known = reference is not None and all(dtype in SIZES for dtype, _ in reference.values())
        if known and not _names_a_key_twice(path):
            raise WrongAnswer(f"refused a file that is valid: {reference}")
        return
    if reference is None:
        raise WrongAnswer("accepted a file that the reference library refuses")
    ours = {n: (t.dtype, list(t.shape)) for n, t in answer.items()}
    if ours != reference:
        raise WrongAnswer(f"read {ours}, the reference library {reference}")
    places = sorted((t.offset, t.offset + t.bytes) for t in answer.values())
    if any(stop > path.stat().st_size for _, stop in places) or any(a[1] > b[0] for a, b in pairwise(places)):
        raise WrongAnswer(f"tensors overlap or leave the file: {places}")


def _names_a_key_twice(path: Path) -> bool:
    """We refuse such a header, the reference library takes the last entry."""
    data = path.read_bytes()
    text = data[8 : 8 + struct.unpack("<Q", data[:8])[0]]
    twice = False

    def note(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal twice
        twice = twice or len({k for k, _ in pairs}) < len(pairs)
        return dict(pairs)

    json.loads(text, object_pairs_hook=note)
    return twice


SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2}
SIZES |= {"U8": 1, "BOOL": 1}


def recipes() -> st.SearchStrategy[bytes]:
    """Recipes, damaged recipes, mappings with absurd values at any key, deep and exploding YAML."""
    keys = ["merge_method", "models", "slices", "modules", "base_model", "parameters", "dtype", "tokenizer", "seed"]
    keys += ["out_dtype", "tokenizer_source", "compat", "out_shard_size", "missing", "chat_template", "nonsense"]
    absurd = st.builds(
        lambda base, changes: yaml.safe_dump({**yaml.safe_load(base), **changes}).encode(),
        st.sampled_from(RECIPES),
        st.dictionaries(st.sampled_from(keys), odd_values(3), max_size=3),
    )
    numbers = st.one_of(st.floats(-2, 2), st.integers(0, 3), st.booleans(), st.lists(st.floats(0, 1), max_size=4))
    setting = st.one_of(numbers, st.lists(st.fixed_dictionaries({"value": numbers}, optional={"filter": st.text()})))
    honest = st.builds(
        lambda base, parameters: yaml.safe_dump({**yaml.safe_load(base), "parameters": parameters}).encode(),
        st.sampled_from(RECIPES),
        st.dictionaries(st.sampled_from(["weight", "density", "lambda", "t", "normalize"]), setting, max_size=3),
    )
    return st.one_of(
        honest, damaged(honest), damaged(st.sampled_from(RECIPES)), absurd, st.sampled_from(HOSTILE_YAML),
        st.binary(max_size=60), st.text(max_size=60).map(lambda t: t.encode("utf-8", "surrogatepass")),
    )  # fmt: skip


RECIPES = [
    b"""merge_method: ties
base_model: base
models:
  - model: a+lora
    parameters: {weight: [0, 0.5, 1], density: 0.2}
  - model: {model: {path: b, revision: main}, lora: {path: c}}
    parameters:
      weight:
        - filter: self_attn
          value: [0.1, 0.9]
        - value: 0.5
parameters: {normalize: true, lambda: 1.0}
dtype: bfloat16
""",
    b"""merge_method: passthrough
slices:
  - sources: [{model: a, layer_range: [0, 4]}]
  - sources: [{model: b, layer_range: [2, 6], parameters: {scale: [{filter: o_proj, value: 0.0}, {value: 1.0}]}}]
tokenizer: {source: union, pad_to_multiple_of: 64}
out_shard_size: 500M
chat_template: auto
""",
    b"""merge_method: slerp
modules: {text_decoder: {models: [{model: a}, {model: b}]}, vision_tower: {models: [{model: a}]}}
base_model: a
parameters: {t: 0.5}
seed: 3
compat: mergekit
""",
]
HOSTILE_YAML = [
    b"a: &a [x, x, x, x, x, x, x, x, x]\n"
    + b"".join(b"%c: &%c [%s]\n" % (98 + i, 98 + i, b", ".join([b"*%c" % (97 + i)] * 9)) for i in range(9))
    + b"merge_method: linear\n",
    b"[" * 20_000,
    b"{a: " * 20_000,
    b"- " * 20_000,
    b"? " * 20_000,
    b"- " * 300 + b"x",
    b"merge_method: linear\nchat_template: '" + b"[{" * 3_000 + b"'\n",
    b"&a [*a]",
    b"merge_method: &m [*m]\n",
    b"models: &m\n  - model: *m\nmerge_method: linear\n",
    b"!!python/object/apply:os.system ['true']\n",
    b"merge_method: !!binary aGk=\nmodels: !!set {a, b}\n",
    b"merge_method: 2001-01-01\nmodels: [{model: 2001-01-01}]\n",
    b"? [1, 2]\n: 3\nmerge_method: linear\n",
    b"out_shard_size: 1e400B\nmerge_method: linear\nmodels: [{model: a}]\n",
]


def check_recipe(path: Path, answer: Any) -> None:
    """An accepted recipe is one: it names an operator and models, and survives being written and read."""
    if answer is None:
        return
    text = answer.model_dump_json()
    if any(len(part) > 1 << 20 for part in text.split('"')):
        raise WrongAnswer("a recipe with a word of a megabyte was accepted")
    if not isinstance(answer.merge_method, str) or not answer.references():
        raise WrongAnswer(f"accepted without operator or models: {text[:200]}")
    again = type(answer)(**answer.model_dump())
    if not _same(again.model_dump(), answer.model_dump()):
        raise WrongAnswer(f"changed by writing and reading: {text[:200]}")


def _same(a: Any, b: Any) -> bool:
    """Equality under which NaN equals itself."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b))
    both_nan = isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b)
    return both_nan or (a == b and type(a) is type(b))


def _read_header(path: Path) -> Any:
    from core.merge.tensors import read_header

    return read_header(path)


def _read_recipe(path: Path) -> Any:
    from core.merge.recipe import load_recipe

    return load_recipe(path)


READERS = (
    Reader("safetensors header", ("core.merge.tensors",), headers, _read_header, check_header, ".safetensors"),
    Reader("merge recipe", ("core.merge.recipe",), recipes, _read_recipe, check_recipe, ".yaml"),
)
