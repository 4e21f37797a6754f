"""Everything that is refused is refused from the headers; layers, gradients and slices end up where they belong."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import ModernBertConfig, ModernBertModel, T5Config, T5ForConditionalGeneration

from core.merge.engine import merge
from core.merge.names import is_vocabulary
from core.merge.plan import describe, make_plan
from core.merge.statistics import Statistics
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


def stacked(folder, ranges, module=None):
    """A recipe of slices of one model."""
    slices = [{"sources": [{"model": str(folder), "layer_range": list(r)}]} for r in ranges]
    part = {"slices": slices}
    return {"merge_method": "passthrough"} | ({"modules": module | {"decoder": part}} if module else part)


def test_each_stack_of_an_encoder_decoder_has_its_own_depth(tmp_path):
    sizes = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2}
    torch.manual_seed(0)
    T5ForConditionalGeneration(T5Config(num_layers=3, num_decoder_layers=4, **sizes)).save_pretrained(tmp_path / "t5")
    encoder = {"encoder": {"slices": [{"sources": [{"model": str(tmp_path / "t5"), "layer_range": [1, 3]}]}]}}
    merge(stacked(tmp_path / "t5", [(2, 4), (2, 3)], encoder), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["num_layers"], config["num_decoder_layers"]) == (2, 3)
    model, told = T5ForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["mismatched_keys"]
    start = T5ForConditionalGeneration.from_pretrained(tmp_path / "t5")
    for side in ("encoder", "decoder"):  # positions belong to the stack, though they lie in its first layer
        first, own = (getattr(m, side).block[0].layer[0].SelfAttention for m in (start, model))
        assert torch.equal(own.relative_attention_bias.weight, first.relative_attention_bias.weight)
    assert torch.equal(model.decoder.block[2].layer[2].DenseReluDense.wi.weight,
                       start.decoder.block[2].layer[2].DenseReluDense.wi.weight)  # fmt: skip


def test_a_first_layer_of_another_make_stays_first(tmp_path):
    """ModernBERT's layer 0 has no norm before its attention: elsewhere it would be loaded with a random one."""
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    tokens = dict(zip(("pad", "bos", "eos", "cls", "sep"), range(5), strict=True))
    config = ModernBertConfig(num_hidden_layers=4, **sizes, **{f"{k}_token_id": v for k, v in tokens.items()})
    ModernBertModel(config).save_pretrained(tmp_path / "m")
    for ranges in ([(1, 3)], [(0, 2), (0, 2)]):
        with pytest.raises(ValueError, match=r"layer 0 of layers has no 'attn_norm.weight'.*nowhere else"):
            make_plan(stacked(tmp_path / "m", ranges))
    merge(stacked(tmp_path / "m", [(0, 1), (2, 4)]), tmp_path / "out")
    kept, told = ModernBertModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not told["missing_keys"]
    assert len(kept.layers) == 3
    assert kept.config.layer_types == [config.layer_types[i] for i in (0, 2, 3)]


def test_statistics_of_other_names_are_refused(models, tmp_path):
    """Each tensor without statistics is averaged; where none has any, the merge is not what was asked for."""
    path = tmp_path / "gram.safetensors"
    Statistics("gram", {"bert.other.weight": np.eye(4)}, 1).save(path)
    recipe = write_recipe(tmp_path / "r.yml", "regmean", models[1:], None, {"statistics": str(path)})
    with pytest.raises(ValueError, match=r"are of 'bert.other.weight' and others, the merge is of"):
        make_plan(recipe)


def test_statistics_follow_a_layer_to_its_place_in_a_slice(models, tmp_path):
    """They were collected on the models, where the layer has another number."""
    taken, place = UP, UP.replace(".1.", ".0.")
    files = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for file, value in zip(files, (3.0, 1.0), strict=True):
        Statistics("fisher", {taken: np.full(llama_values(0)[taken].shape, value)}, 1).save(file)
    sources = [
        {"model": str(m), "layer_range": [1, 2], "parameters": {"statistics": str(f)}}
        for m, f in zip(models[1:], files, strict=True)
    ]
    shared, exact = {"normalize_fisher": False}, {"out_dtype": "float32"}
    merge({"merge_method": "fisher", "slices": [{"sources": sources}], "parameters": shared} | exact, tmp_path / "out")
    a, b = (load_file(m / "model.safetensors")[taken].float() for m in models[1:])
    merged = load_file(tmp_path / "out" / "model.safetensors")[place]
    torch.testing.assert_close(merged, 0.75 * a + 0.25 * b)
    assert not torch.allclose(merged, (a + b) / 2, atol=1e-3)


@pytest.mark.parametrize("name", ["decoder.bias", "vocab_projector.bias", "cls.predictions.bias", "lm_head.bias"])
def test_a_heads_bias_counts_tokens(name):
    assert is_vocabulary(name, (50,), {"vocab_size": 50})
    assert not is_vocabulary("encoder.decoder.bias", (50,), {"vocab_size": 50})
