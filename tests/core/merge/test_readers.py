"""Fuzzing of the readers (500 cases each; the benchmark runs more), and the cases it found."""

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks.fuzz_coverage import READERS
from benchmarks.fuzzing import fuzz
from core.merge.recipe import load_recipe
from core.merge.tensors import read_header
from core.safe_yaml import load_yaml

EXPLODING = "a: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"b{i}: &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]\n" for i in range(5)
)


@pytest.mark.parametrize("name", READERS)
def test_reader_survives(name):
    outcome = fuzz(READERS[name], 500)
    assert not outcome.failure
    assert outcome.cases >= 400
    assert outcome.accepted >= 10  # the cases are not all hopeless


def write(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(shape, start, stop, dtype="U8"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"[" * 100_000, b"", "not a safetensors file"),
        ([1, 2], b"", "is a list"),
        ({"a": 3}, b"", "needed: dtype, shape, data_offsets"),
        ({"a": entry([-1], 0, 0)}, b"", "needed"),
        ({"a": entry([True], 0, 1)}, b"x", "needed"),
        ({"a": entry([1 << 62, 4], 0, 0)}, b"", "not"),
        ({"a": entry([2], 0, 2), "b": entry([2], 1, 3)}, b"xxx", "begins at byte"),
        ({"a": entry([1], 1, 2)}, b"xx", "begins at byte"),
        ({"a": entry([1], 0, 1)}, b"xx", "its header describes"),
        ({"a": entry([4], 0, 4)}, b"xx", "does not fit"),
        ({"a": entry([1], 0, 1, "F12")}, b"x", "unknown dtype"),
        (b'{"a": {}, "a": {}}', b"", "twice"),
        ({"__metadata__": {"a": 1}}, b"", "__metadata__"),
        ({"__metadata__": []}, b"", "__metadata__"),
    ],
)
def test_bad_headers_are_named(tmp_path, header, data, message):
    with pytest.raises(ValueError, match=message):
        read_header(write(tmp_path / "x.safetensors", header, data))


def test_good_headers_are_read(tmp_path):
    save_file({"a": np.ones((2, 3), np.float32), "e": np.zeros((0, 2)), "s": np.ones(())}, tmp_path / "x", {"k": "v"})
    found = read_header(tmp_path / "x")
    assert {n: (t.dtype, t.shape) for n, t in found.items()} == {
        "a": ("F32", (2, 3)),
        "e": ("F64", (0, 2)),
        "s": ("F64", ()),
    }
    assert read_header(write(tmp_path / "null", {"__metadata__": None}, b"")) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 20_000, "brackets open"),
        ("- " * 300 + "x", "levels deep"),
        ("&a [*a]", "contains itself"),
        (EXPLODING, "stands for more"),
        ("!!python/object/apply:os.system [x]", "not YAML"),
        ("a: [", "not YAML"),
        ("x" * (1 << 20) + "x", "characters"),
    ],
)  # fmt: skip
def test_hostile_yaml_is_one_readable_error(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_yaml(text, "file.yaml")
    assert len(str(caught.value)) < 500


def test_faults_of_a_recipe_are_placed(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("merge_method: ties\nmodels:\n- model: a\n  parameters: {weight: {a: 1}}\n- modle: b\n")
    with pytest.raises(
        ValueError, match=r"models\.0\.parameters\.weight: .*models\.1: unknown key 'modle', did you mean"
    ):
        load_recipe(path)
    path.write_text("merge_method: linear\nmodels: [{model: {model: a, lora: {x: 1}}}]\nout_shard_size: 1e400B\n")
    with pytest.raises(ValueError, match=r"has no path.*is no size"):
        load_recipe(path)
