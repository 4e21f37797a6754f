"""Everything that is refused is refused from the headers; layers, gradients and slices end up where they belong."""

import json
import subprocess
import sys

import numpy as np
import pytest

from core.merge.plan import describe, make_plan
from tests.tiny_checkpoints import llama_values, write_checkpoint, write_llama, write_recipe

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [write_llama(folder / f"m{i}", i) for i in range(3)]


def changed(folder, change, **more):
    values = llama_values(1)
    change(values)
    return write_checkpoint(folder, values, **more)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop(UP), f"{UP}.*missing in .*bad"),
        (lambda v: v.update({UP: np.zeros((3, 4))}), f"{UP}.*different shapes"),
        (
            lambda v: v.update({"model.embed_tokens.weight": np.zeros((41, 16))}),
            "vocabularies differ.*tokenizer_source",
        ),
        (lambda v: v.update({"model.extra.weight": np.zeros(3)}), "model.extra.weight.*is missing in"),
        (lambda v: v.update({UP: np.zeros((24, 16), np.int64)}), f"{UP}.*dtypes"),
    ],
)
def test_tensors_that_do_not_match(models, tmp_path, change, message):
    bad = changed(tmp_path / "bad", change)
    with pytest.raises(ValueError, match=message):
        make_plan(write_recipe(tmp_path / "r.yml", "model_stock", [bad, models[2]], models[0]))


def test_dtypes_that_differ_need_a_decision(models, tmp_path):
    other = changed(tmp_path / "other", lambda v: None, dtype="F32")
    weights = [{"weight": 1.0}, {"weight": 1.0}]
    with pytest.raises(ValueError, match=r"different dtypes.*set dtype"):
        make_plan(write_recipe(tmp_path / "a.yml", "linear", [other, models[2]], per_model=weights))
    plan = make_plan(write_recipe(tmp_path / "b.yml", "linear", [other, models[2]], per_model=weights, dtype="float16"))
    assert {j.dtype for j in plan.jobs} == {"F16"}


@pytest.mark.parametrize(
    ("method", "more", "message"),
    [
        ("tise", {}, "unknown merge operator 'tise', did you mean 'ties'"),
        ("ties", {"parameters": {"wieght": 1}}, "unknown parameter 'wieght'.*did you mean 'weight'"),
        ("ties", {}, "parameter 'weight' is required"),
        ("ties", {"parameters": {"weight": 0.0, "normalize": True}}, "sum to zero"),
        ("linear", {"parameters": {"weight": [0.0, 1.0]}}, "sum to zero"),
        ("ties", {"parameters": {"weight": 1, "density": 1.5}}, "allowed: 0.* to 1"),
        ("della", {"parameters": {"weight": 1, "density": 0.1, "epsilon": 0.2}}, "must lie inside"),
        ("model_stock", {"parameters": {"filter_wise": "perhaps"}}, "must be bool"),
        ("model_stock", {"chat_template": "chatlm"}, "chat_template 'chatlm' is no template"),
        ("slerp", {"parameters": {"t": 0.5}}, "at most 1 models"),
    ],
)
def test_settings_that_make_no_merge(models, tmp_path, method, more, message):
    base = None if method == "linear" else models[0]
    with pytest.raises(ValueError, match=message):
        make_plan(write_recipe(tmp_path / "r.yml", method, models[1:], base, **more))


def test_paths_and_duplicates(models, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        make_plan(write_recipe(tmp_path / "a.yml", "model_stock", ["/nowhere", models[1]], models[0]))
    with pytest.raises(ValueError, match="twice"):
        make_plan(write_recipe(tmp_path / "b.yml", "model_stock", [models[1], models[1]], models[0]))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(ValueError, match="not a safetensors file"):
        make_plan(write_recipe(tmp_path / "c.yml", "model_stock", [tmp_path / "broken", models[1]], models[0]))
    cut = write_llama(tmp_path / "cut", 1) / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated"):
        make_plan(write_recipe(tmp_path / "d.yml", "model_stock", [cut.parent, models[1]], models[0]))


def test_relative_paths_count_from_the_recipe(models, tmp_path):
    write_llama(tmp_path / "here", 1)
    recipe = write_recipe(tmp_path / "r.yml", "passthrough", ["here"])
    assert len(make_plan(recipe).jobs) == 30


def test_not_enough_disk(models, tmp_path, monkeypatch):
    recipe = write_recipe(tmp_path / "r.yml", "passthrough", models[:1])
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("core.merge.plan.shutil.disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match="not enough disk"):
        make_plan(recipe, tmp_path / "out")


def test_parameters_of_other_operators_are_noted(models, tmp_path):
    plan = make_plan(write_recipe(tmp_path / "r.yml", "model_stock", models[1:], models[0], {"int8_mask": True}))
    assert any("int8_mask" in n for n in plan.notes)


def test_gradients_follow_the_layers(models, tmp_path):
    weight = [{"filter": "mlp", "value": [0.0, 1.0]}, {"value": [2.0, 4.0]}]
    plan = make_plan(write_recipe(tmp_path / "r.yml", "task_arithmetic", models[1:], models[0], {"weight": weight}))
    got = {j.name: j.per_model[0]["weight"] for j in plan.jobs}
    assert [got[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(3)] == [0.0, 0.5, 1.0]
    assert [got[f"model.layers.{i}.input_layernorm.weight"] for i in range(3)] == [2.0, 3.0, 4.0]
    assert got["model.embed_tokens.weight"] == got["lm_head.weight"] == 2.0


def test_slices_stack_layers(models, tmp_path):
    sources = [[{"model": str(models[0]), "layer_range": [0, 2]}], [{"model": str(models[1]), "layer_range": [1, 3]}]]
    recipe = {"merge_method": "passthrough", "slices": [{"sources": s} for s in sources], "dtype": "bfloat16"}
    plan = make_plan(recipe)
    assert plan.config["num_hidden_layers"] == 4
    origin = {j.name: (j.inputs[0].model, j.inputs[0].name) for j in plan.jobs}
    assert origin["model.layers.2.mlp.up_proj.weight"] == (1, "model.layers.1.mlp.up_proj.weight")
    assert origin["model.layers.3.mlp.up_proj.weight"] == (1, "model.layers.2.mlp.up_proj.weight")
    assert origin["model.embed_tokens.weight"][0] == 0
    assert origin["model.norm.weight"][0] == origin["lm_head.weight"][0] == 1
    sources[1][0]["layer_range"] = [1, 4]
    with pytest.raises(ValueError, match="it has 3 layers"):
        make_plan({**recipe, "slices": [{"sources": s} for s in sources]})


def test_modules_take_their_part(tmp_path):
    def two(seed):
        rng = np.random.default_rng(seed)
        names = ("shared.weight", *[f"{p}.block.{i}.w" for p in ("encoder", "decoder") for i in range(2)])
        return {n: rng.standard_normal((3, 3)) for n in names}

    a, b = (str(write_checkpoint(tmp_path / str(i), two(i))) for i in range(2))
    modules = {"encoder": {"models": [{"model": a}]}, "decoder": {"models": [{"model": b}]}}
    plan = make_plan({"merge_method": "passthrough", "modules": modules})
    origin = {j.name: j.inputs[0].model for j in plan.jobs}
    assert origin.pop("shared.weight") == 0
    assert origin == {f"{p}.block.{i}.w": m for m, p in enumerate(("encoder", "decoder")) for i in range(2)}


def test_missing_keep_copies(models, tmp_path):
    extra = changed(tmp_path / "extra", lambda v: v.update({"score.weight": np.ones((2, 16))}))
    recipe = write_recipe(tmp_path / "r.yml", "model_stock", [extra, models[2]], models[0], missing="keep")
    job = next(j for j in make_plan(recipe).jobs if j.name == "score.weight")
    assert job.copy
    assert job.inputs[0].model == 1


def test_describe_says_what_will_happen(models, tmp_path):
    plan = make_plan(write_recipe(tmp_path / "r.yml", "model_stock", models[1:], models[0]))
    text = describe(plan, 2, tmp_path / "out")
    for word in ("model_stock", "reads", "writes", "memory", "time", "disk", "fits     yes"):
        assert word in text


def test_validation_imports_no_heavy_package(models, tmp_path):
    recipe = write_recipe(tmp_path / "r.yml", "model_stock", models[1:], models[0])
    code = (
        "import sys, json; from flows.cli.merge import merge; "
        f"merge({str(recipe)!r} and __import__('pathlib').Path({str(recipe)!r}), "
        f"__import__('pathlib').Path({str(tmp_path / 'out')!r}), plan=True, threads=None, part=None); "
        "print(json.dumps([m for m in ('torch', 'prefect', 'mlflow', 'transformers', 'scipy') if m in sys.modules]))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(out.splitlines()[-1]) == []
