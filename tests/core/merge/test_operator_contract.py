"""What every merge operator promises, checked for all of them; a new operator joins by being registered."""

import numpy as np
import pytest
import torch

from core.merge.adamerging import Coefficients
from core.merge.dtypes import decode
from core.merge.engine import merge
from core.merge.memory import merge_tensors
from core.merge.operators import OPERATORS, REQUIRED, contract
from core.merge.statistics import Statistics
from tests.tiny_checkpoints import llama_tensors, llama_values, raw_tensors, write_checkpoint, write_llama, write_recipe

NAMES = OPERATORS.names()
VALUES = {"weight": (0.4, 0.3, 0.2), "t": (0.3,), "density": (0.5, 0.6, 0.7), "select_topk": (0.5,), "iterations": (5,)}


def count(name):
    """How many models besides the base the operator is tried with."""
    c = contract(name)
    return min(3, c.max_models or 3)


def parameters(name, folder):
    """Shared values and one set a model: the required ones, and those that make the operator do something."""
    c = contract(name)
    shared, each = {}, [{} for _ in range(count(name))]
    for key, p in c.parameters.items():
        if p.file:
            files = statistics(name, folder, len(each))
            if p.scope == "shared":
                shared[key] = str(files[0])
            for values, f in zip(each, files):
                values |= {key: str(f)} if p.scope != "shared" else {}
        elif key in VALUES and (p.default is REQUIRED or key != "weight"):
            if p.scope == "shared":
                shared[key] = VALUES[key][0]
            else:
                for i, values in enumerate(each):
                    values[key] = VALUES[key][i]
    return shared, each


def statistics(name, folder, n):
    """Files for the operators that need some."""
    shapes = llama_tensors()
    files = []
    for i in range(n):
        path = folder / f"{name}-{i}.statistics"
        rng = np.random.default_rng(i)
        if name == "adamerging":
            Coefficients({t: [0.3, 0.2, 0.1][:n] for t in shapes}, []).save(path)
        elif name == "regmean":
            grams = {t: rng.standard_normal((50, s[-1])) for t, s in shapes.items() if len(s) == 2}
            Statistics("gram", {t: g.T @ g / 50 for t, g in grams.items()}, 50).save(path)
        else:
            Statistics("fisher", {t: rng.random(s) for t, s in shapes.items()}, 50).save(path)
        files.append(path)
    return files


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [write_llama(folder / f"m{i}", i) for i in range(4)]


def recipe(path, name, models, folder, **more):
    c = contract(name)
    shared, each = parameters(name, folder)
    base = None if c.base == "ignored" else models[0]
    return write_recipe(path, name, models[1 : 1 + count(name)], base, shared, each, **more)


@pytest.mark.parametrize("name", NAMES)
def test_same_bytes_whatever_threads_shards_and_kernels(name, models, tmp_path, monkeypatch):
    before = [raw_tensors(m) for m in models]
    states = np.random.get_state()[1].tobytes(), torch.get_rng_state()
    one = merge(recipe(tmp_path / "a.yml", name, models, tmp_path), tmp_path / "one", threads=1)
    monkeypatch.setenv("TRANSFEROPT_KERNELS", "numpy")
    shards = [write_checkpoint(tmp_path / f"s{i}", llama_values(i), shard_bytes=900) for i in range(4)]
    path = recipe(tmp_path / "b.yml", name, shards, tmp_path, out_shard_size=2000)
    many = merge(path, tmp_path / "many", threads=3)
    assert len(list(many.glob("model-*"))) > 5
    assert raw_tensors(one) == raw_tensors(many)
    assert [raw_tensors(m) for m in models] == before
    after = np.random.get_state()[1].tobytes(), torch.get_rng_state()
    assert states[0] == after[0]
    assert torch.equal(states[1], after[1])


@pytest.mark.parametrize("name", NAMES)
def test_in_memory_equals_on_disk(name, models, tmp_path):
    c = contract(name)
    shared, each = parameters(name, tmp_path)
    tensors = [{n: _torch(*t) for n, t in raw_tensors(m).items()} for m in models]
    base = None if c.base == "ignored" else tensors[0]
    merged = merge_tensors(name, tensors[1 : 1 + len(each)], base, shared=shared, per_model=each)
    written = raw_tensors(merge(recipe(tmp_path / "a.yml", name, models, tmp_path), tmp_path / "out"))
    assert set(merged) == set(written)
    for n, (_, shape, data) in written.items():
        assert tuple(merged[n].shape) == shape
        assert merged[n].view(torch.int16).numpy().tobytes() == data


@pytest.mark.parametrize("name", NAMES)
def test_output_is_finite_and_near_its_inputs(name, models, tmp_path):
    out = raw_tensors(merge(recipe(tmp_path / "a.yml", name, models, tmp_path), tmp_path / "out"))
    base = raw_tensors(models[0])
    assert set(out) == set(base)
    for n, (dtype, shape, data) in out.items():
        values = decode(np.frombuffer(data, np.uint16), dtype)
        start = decode(np.frombuffer(base[n][2], np.uint16), "BF16")
        assert shape == base[n][1]
        assert np.isfinite(values).all()
        assert np.abs(values - start).max() < 0.5


@pytest.mark.parametrize("name", [n for n in NAMES if contract(n).random])
def test_random_operators_depend_on_the_seed_alone(name, models, tmp_path):
    outs = [
        raw_tensors(merge(recipe(tmp_path / f"{i}.yml", name, models, tmp_path, seed=s), tmp_path / f"out{i}"))
        for i, s in enumerate((1, 1, 2))
    ]
    assert outs[0] == outs[1]
    assert outs[0] != outs[2]


@pytest.mark.parametrize("name", NAMES)
def test_refuses_no_model_and_too_few(name, models, tmp_path):
    c = contract(name)
    path = write_recipe(tmp_path / "a.yml", name, [], None if c.base == "ignored" else models[0])
    with pytest.raises(ValueError, match=r"exactly one of models|needs"):
        merge(path, tmp_path / "out")
    if c.min_models > 1:
        path = write_recipe(tmp_path / "b.yml", name, models[1:2], models[0] if c.base == "required" else None)
        with pytest.raises(ValueError, match="needs at least"):
            merge(path, tmp_path / "out")
    if c.base == "required":
        with pytest.raises(ValueError, match="base"):
            merge(write_recipe(tmp_path / "c.yml", name, models[1 : 1 + count(name)]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", NAMES)
def test_nan_stops_with_the_tensors_name(name, models, tmp_path):
    values = llama_values(1)
    values["model.layers.1.mlp.up_proj.weight"][3, 5] = np.nan
    bad = write_checkpoint(tmp_path / "bad", values)
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        merge(recipe(tmp_path / "a.yml", name, [models[0], bad, *models[2:]], tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", NAMES)
def test_registration_is_complete(name):
    entry, c = OPERATORS.entry(name), contract(name)
    assert entry.summary
    assert c.source
    assert all(p.description for p in c.parameters.values())


def _torch(dtype, shape, data):
    return torch.frombuffer(bytearray(data), dtype=torch.bfloat16).reshape(shape)
