"""``compat: mergekit``: bfloat16 arithmetic step by step, against literal torch formulas; refused where unknown."""

import pytest
import torch

from core.merge.engine import merge
from core.merge.memory import merge_tensors
from core.merge.plan import make_plan
from tests.tiny_checkpoints import raw_tensors, write_llama, write_recipe

NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [write_llama(folder / f"m{i}", i) for i in range(4)]


def tensor(folder, name=NAME):
    _, shape, data = raw_tensors(folder)[name]
    return torch.frombuffer(bytearray(data), dtype=torch.bfloat16).reshape(shape)


def test_task_arithmetic_rounds_every_step(models, tmp_path):
    weights = [{"weight": w} for w in (0.4, 0.3, 0.2)]
    recipe = write_recipe(
        tmp_path / "r.yml", "task_arithmetic", models[1:], models[0], None, weights, compat="mergekit"
    )
    base, *experts = (tensor(m) for m in models)
    deltas = torch.stack([(e - base) * torch.tensor(w["weight"], dtype=base.dtype) for e, w in zip(experts, weights)])
    assert torch.equal(tensor(merge(recipe, tmp_path / "out")), base + deltas.sum(dim=0))


def test_ties_rounds_every_step(models, tmp_path):
    each = [{"weight": w, "density": 0.5} for w in (0.4, 0.3, 0.2)]
    recipe = write_recipe(tmp_path / "r.yml", "ties", models[1:], models[0], None, each, compat="mergekit")
    base, *experts = (tensor(m) for m in models)
    weighted, weights = [], torch.tensor([0.4, 0.3, 0.2], dtype=torch.bfloat16).reshape(3, 1, 1)
    for e in experts:
        d = e - base
        keep = torch.zeros(d.numel(), dtype=d.dtype)
        keep[torch.argsort(d.abs().flatten().float(), descending=True)[: d.numel() // 2]] = 1
        weighted.append(d * keep.reshape(d.shape))
    v = torch.stack(weighted) * weights
    agree = v.sign() == torch.where(v.sum(0) >= 0, 1, -1)
    divisor = (weights * agree).sum(0)
    expected = base + (v * agree).sum(0) / torch.where(divisor == 0, 1, divisor)
    assert torch.equal(tensor(merge(recipe, tmp_path / "out")), expected)


def test_dtype_is_the_format_of_the_arithmetic(models, tmp_path):
    weights = [{"weight": w} for w in (0.4, 0.3, 0.2)]
    more = {"compat": "mergekit", "dtype": "float32", "out_dtype": "bfloat16"}
    recipe = write_recipe(tmp_path / "r.yml", "task_arithmetic", models[1:], models[0], None, weights, **more)
    base, *experts = (tensor(m).float() for m in models)
    deltas = torch.stack([(e - base) * torch.tensor(w["weight"]) for e, w in zip(experts, weights)])
    assert torch.equal(tensor(merge(recipe, tmp_path / "out")), (base + deltas.sum(dim=0)).bfloat16())


@pytest.mark.parametrize(
    "method", ["slerp", "nuslerp", "sce", "model_stock", "nearswap", "linear", "dare_ties", "della"]
)
def test_it_stays_within_the_formats_resolution_of_the_exact_result(method, models, tmp_path):
    n = {"slerp": 1, "nearswap": 1, "nuslerp": 2}.get(method, 3)
    shared = {"slerp": {"t": 0.3}, "nearswap": {"t": 1e-3}}.get(method, {})
    each = [{} for _ in range(n)]
    if method in ("linear", "nuslerp", "dare_ties", "della"):
        each = [{"weight": w} for w in (0.4, 0.3, 0.2)[:n]]
    tensors = [{NAME: tensor(m)} for m in models]
    base = None if method == "linear" else tensors[0]
    both = [
        merge_tensors(method, tensors[1 : n + 1], base, shared=shared, per_model=each, compat=c)[NAME].double()
        for c in (None, "mergekit")
    ]
    assert (both[0] - both[1]).abs().mean() < 2e-4  # single elements may elect another sign


@pytest.mark.parametrize("method", ["tsv_m", "karcher", "arcee_fusion"])
def test_operators_without_such_a_form_are_refused_early(method, models, tmp_path):
    recipe = write_recipe(tmp_path / "r.yml", method, models[1:2], models[0], compat="mergekit")
    with pytest.raises(ValueError, match="compat: mergekit does not know"):
        make_plan(recipe)
