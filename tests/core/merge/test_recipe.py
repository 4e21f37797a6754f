"""mergekit's YAML: gradients, filters, precedence, model references, refusals."""

import pytest
import yaml

from core.merge.recipe import SCHEMA, ModelRef, Recipe, evaluate, load_recipe, lookup, write_recipe

TIES = """
merge_method: ties
base_model: base
dtype: bfloat16
parameters: {normalize: true, int8_mask: true, weight: 0.1}
models:
  - model: one
    parameters:
      weight: [0, 0.5, 1]
      density:
        - {filter: mlp, value: 0.25}
        - {filter: self_attn, value: [0.2, 0.4]}
        - value: 5e-1
  - {model: "two@main+adapter"}
"""


@pytest.fixture
def ties(tmp_path):
    (tmp_path / "r.yml").write_text(TIES)
    return load_recipe(tmp_path / "r.yml")


@pytest.mark.parametrize(("t", "value"), [(0, 0), (0.25, 0.25), (0.5, 0.5), (0.75, 0.75), (1, 1)])
def test_gradients_are_linear_between_their_points(ties, t, value):
    assert evaluate(ties.models[0].parameters["weight"], "x", t) == pytest.approx(value)


def test_the_first_matching_filter_counts(ties):
    density = ties.models[0].parameters["density"]
    assert evaluate(density, "model.layers.0.mlp.up_proj.weight", 0) == 0.25
    assert evaluate(density, "model.layers.0.self_attn.q_proj.weight", 0.5) == pytest.approx(0.3)
    assert evaluate(density, "model.norm.weight", 0) == "5e-1"  # a number in YAML 1.1's eyes is a word; checked later
    assert evaluate([density[0]], "model.norm.weight", 0) is None


def test_words_and_booleans_are_not_interpolated():
    assert [evaluate([True, False], "x", t) for t in (0, 0.9, 1)] == [True, True, False]
    assert evaluate(["a", "b", "c"], "x", 0.6) == "b"


def test_the_innermost_setting_that_has_a_value_wins(ties):
    scopes = [ties.models[1].parameters, ties.parameters]
    assert lookup("weight", scopes, "x", 0) == 0.1
    only_mlp = {"weight": [ties.models[0].parameters["density"][0]]}
    assert lookup("weight", [only_mlp, ties.parameters], "x", 0) == 0.1
    assert lookup("weight", [only_mlp, ties.parameters], "mlp", 0) == 0.25
    assert lookup("density", scopes, "x", 0) is None


@pytest.mark.parametrize(
    ("written", "path", "revision", "lora"),
    [("a/b", "a/b", None, None), ("a/b@r", "a/b", "r", None), ("a+b/c", "a", None, "b/c"), ("a@r+c", "a", "r", "c")],
)
def test_model_references(written, path, revision, lora):
    ref = ModelRef.model_validate(written)
    assert (ref.path, ref.revision, ref.lora) == (path, revision, lora)
    assert str(ref) == written
    assert ref == ModelRef.model_validate({"model": {"path": path, "revision": revision}, "lora": lora})


def test_references_have_the_base_first_and_each_once(ties):
    assert [str(r) for r in ties.references()] == ["base", "one", "two@main+adapter"]


def test_what_is_written_reads_back(ties):
    again = Recipe(**yaml.safe_load(yaml.safe_dump(ties.model_dump(mode="json", exclude_defaults=True))))
    assert again == ties


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_modle": "x"}, "did you mean 'base_model'"),
        ({"models": [{"model": "a", "paramters": {}}]}, "did you mean 'parameters'"),
        ({"dtype": "bfloat61"}, "did you mean 'bfloat16'"),
        ({"slices": [{"sources": [{"model": "a", "layer_range": [0, 1]}]}]}, "exactly one of models, slices, modules"),
        ({"models": None, "slices": [{"sources": [{"model": "a", "layer_range": [3, 3]}]}]}, "layer_range"),
        ({"models": None}, "exactly one"),
        ({"tokenizer_source": "base", "tokenizer": {"source": "base"}}, "not both"),
        ({"models": [{"model": "a+b+c"}]}, "cannot be read"),
        ({"compat": "mergekitt"}, "mergekit"),
        ({"seed": -1}, "seed"),
    ],
)
def test_refusals(change, message):
    data = {"merge_method": "linear", "models": [{"model": "a"}]}
    with pytest.raises(ValueError, match=message):
        load_recipe({**data, **change})


def test_files_that_are_not_recipes(tmp_path):
    (tmp_path / "a.yml").write_text("- 1\n- 2\n")
    (tmp_path / "b.yml").write_text("a: [1,\n")
    with pytest.raises(ValueError, match="expected keys"):
        load_recipe(tmp_path / "a.yml")
    with pytest.raises(ValueError, match="not YAML"):
        load_recipe(tmp_path / "b.yml")
    with pytest.raises(FileNotFoundError):
        load_recipe(tmp_path / "c.yml")


def test_shard_sizes_in_words():
    data = {"merge_method": "linear", "models": [{"model": "a"}]}
    assert load_recipe({**data, "out_shard_size": "500M"}).out_shard_size == 500_000_000
    assert load_recipe({**data, "out_shard_size": "2b"}).out_shard_size == 2_000_000_000


def test_written_recipes_carry_their_schema_and_a_newer_one_is_refused(tmp_path, ties):
    path = tmp_path / "recipe.yaml"
    write_recipe(path, ties.model_dump(mode="json", exclude_defaults=True))
    written = yaml.safe_load(path.read_text())
    assert next(iter(written.items())) == ("schema_version", SCHEMA)
    assert load_recipe(path) == ties
    assert written == ties.written()

    path.write_text(yaml.safe_dump(written | {"schema_version": SCHEMA + 1, "something": "new"}))
    with pytest.raises(ValueError, match=f"recipe.yaml: a recipe of schema {SCHEMA + 1}.*update transferopt$"):
        load_recipe(path)
