"""Experts, task vectors, bases, recipe spaces and in-memory fitness, end to end on tiny real fine-tunes."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from core.merge.basis import BASES, in_basis
from core.merge.candidate import InMemoryModel
from core.merge.engine import merge
from core.merge.experts import check_tasks, load_expert, train_expert
from core.merge.fitness import Fitness, Racing, race
from core.merge.objectives import EncoderObjective, FunctionObjective, judge
from core.merge.recipe_space import RecipeSpace, SpaceConfig, exact_tensors
from core.merge.task_vectors import task_vectors
from tests import tiny_experts as te


def fitness_of(world, basis="raw", granularity="global", **settings):
    vectors = in_basis(world.vectors, basis, world.cache)
    space = RecipeSpace(vectors, SpaceConfig(basis=basis, granularity=granularity))
    model = InMemoryModel(world.encoder(), vectors, space.groups)
    return Fitness(model, world.objectives(), **{"batch": 20, **settings}), space


def one_hot(space, index):
    matrix = np.zeros(space.shape)
    matrix[index] = 1.0
    return matrix


def test_experts_learn_their_task_and_are_found_again(world):
    task = te.tasks()[0]
    folder = train_expert(task, world.base, te.CONFIG, world.cache)
    assert folder == world.folders["good"]
    expert = load_expert(folder)
    assert expert.task == "good"
    assert expert.card["train_labels"] == 96
    fitness, space = fitness_of(world)
    own = fitness.full(one_hot(space, 0))
    base = fitness.full(np.zeros(space.shape))
    assert own.hits[0] > 0.95 > base.hits[0]
    assert set(load_file(folder / "model.safetensors")) == set(load_file(world.base / "model.safetensors"))


def test_embeddings_stay_frozen_and_take_no_part(world):
    names = [t.name for t in world.vectors.tensors]
    assert names
    assert not any("embeddings" in n for n in names)


def test_in_memory_weights_equal_the_expert_at_weight_one(world):
    fitness, space = fitness_of(world)
    model = fitness.model.write(one_hot(space, 1))
    stored = load_file(world.folders["plot"] / "model.safetensors")
    for name, parameter in model.backbone.named_parameters():
        np.testing.assert_allclose(parameter.detach().numpy(), stored[name], atol=1e-6)


@pytest.mark.parametrize("basis", BASES.names())
@pytest.mark.parametrize("granularity", ["global", "blocks:2", "kinds", "layers"])
def test_memory_recipe_and_engine_agree(world, basis, granularity, tmp_path):
    fitness, space = fitness_of(world, basis, granularity)
    coefficients = space.coefficients(np.random.default_rng(0).uniform(0, 1.5, space.dimensions))
    model = fitness.model.write(coefficients)
    recipe = space.recipe(coefficients, world.base, world.folders)
    exact = exact_tensors(recipe)
    merge(recipe, tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(written[name].tobytes() == tensor.tobytes() for name, tensor in exact.items())
    for name, parameter in model.backbone.named_parameters():
        np.testing.assert_allclose(parameter.detach().numpy(), exact[name], atol=2e-6)


@pytest.mark.parametrize("basis", BASES.names())
def test_components_sum_to_the_static_operator(world, basis):
    vectors = in_basis(world.vectors, basis, world.cache)
    from core.merge.operators import ArraySource, make_group, merge_group

    t = next(t for t in vectors.tensors if len(t.shape) == 2)
    raw = world.vectors
    base = np.array(raw.base[t.start : t.stop]).reshape(t.shape).astype(np.float64)
    sources = [
        ArraySource(base + np.asarray(d, dtype=np.float64).reshape(t.shape)) for d in raw.deltas[:, t.start : t.stop]
    ]
    facts = BASES.entry(basis).facts
    group = make_group(
        facts["operator"], sources, ArraySource(base), shared=facts["shared"], per_model=[{"weight": 1.0}] * 3
    )
    expected = merge_group(facts["operator"], group) - base
    got = vectors.deltas[:, t.start : t.stop].sum(axis=0).reshape(t.shape)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_a_basis_of_another_package_is_computed_and_kept_by_its_own_code(world, monkeypatch):
    """A function defined in a test module, as in a third party's: none of this project's."""
    monkeypatch.setattr(BASES, "_entries", dict(BASES._entries))

    @BASES.register("halves", operator="task_arithmetic", shared={"normalize": False, "lambda": 0.5})
    def halves(deltas):
        return [np.asarray(d, dtype=np.float64) / 2 for d in deltas]

    vectors = in_basis(world.vectors, "halves", world.cache)
    np.testing.assert_allclose(vectors.deltas, world.vectors.deltas / 2, atol=1e-7)
    assert vectors.sha256 != in_basis(world.vectors, "raw", world.cache).sha256
    assert in_basis(world.vectors, "halves", world.cache).sha256 == vectors.sha256


def test_holding_a_context_gives_the_same_weights(world):
    fitness, space = fitness_of(world, granularity="blocks:2")
    rng = np.random.default_rng(1)
    context, moved = rng.uniform(0, 1, space.shape), rng.uniform(0, 1, space.shape)
    for moving in ([1], [0, 2], [0, 1]):
        mixed = context.copy()
        mixed[moving] = moved[moving]
        fitness.model.release()
        whole = torch.nn.utils.parameters_to_vector(fitness.model.write(mixed).parameters()).clone()
        fitness.model.hold(context, moving)
        held = torch.nn.utils.parameters_to_vector(fitness.model.write(mixed).parameters())
        assert torch.allclose(whole, held, atol=1e-6)


def test_cost_counts_task_examples_and_rounds_cover_the_validation_set(world):
    fitness, space = fitness_of(world)
    x = one_hot(space, 0)
    assert fitness.evaluate(x, 0).cost == fitness.price == 60
    assert fitness.evaluate(x, 0, ["dark"]).cost == 20
    assert fitness.full(x).cost == fitness.validation_size == 180
    seen = np.concatenate([fitness.indices("good", r) for r in range(3)])
    assert sorted(seen) == list(range(60))


def test_control_variate_makes_rounds_comparable(world):
    fitness, space = fitness_of(world)
    near = one_hot(space, 0) * 0.9
    before = [fitness.evaluate(near, r).score[0] for r in range(3)]
    fitness.set_control(one_hot(space, 0))
    after = [fitness.evaluate(near, r).score[0] for r in range(3)]
    assert np.std(after) < np.std(before)
    assert np.mean(after) == pytest.approx(np.mean(before), abs=1e-9)  # three rounds are the whole set: unbiased


def test_racing_drops_losers_and_saves_examples(world):
    fitness, space = fitness_of(world)
    good, bad = np.full(space.shape, 0.6), np.full(space.shape, -0.5)
    plain = race(fitness, [good, good * 0.9, bad, bad], 0, None)
    raced = race(fitness, [good, good * 0.9, bad, bad], 0, Racing(parts=4, keep=2))
    assert [a.stopped for a in raced] == [False, False, True, True]
    assert [a.cost for a in plain] == [60] * 4
    assert [a.cost for a in raced[:2]] == [60] * 2
    assert all(a.cost < 60 for a in raced[2:])
    for a, b in zip(plain[:2], raced[:2]):
        np.testing.assert_allclose(a.score, b.score, atol=1e-12)


def test_median_of_means_ignores_a_bad_block(world):
    fitness, space = fitness_of(world, blocks=5)
    answer = fitness.evaluate(one_hot(space, 0), 0)
    assert np.isfinite(answer.mean)


def test_nan_weights_give_a_failed_candidate_not_an_exception(world):
    fitness, space = fitness_of(world)
    answer = fitness.evaluate(np.full(space.shape, np.nan), 0)
    assert math.isnan(answer.mean)
    assert answer.cost == 60


def test_margin_smoothing_keeps_the_order_of_hits():
    logits = np.array([[2.0, 0.0], [0.1, 0.0], [0.0, 0.1], [0.0, 5.0]])
    scored = judge(logits, np.zeros(4, dtype=int))
    assert scored.correct.tolist() == [1, 1, 0, 0]
    assert (np.diff(scored.soft) < 0).all()
    assert ((scored.soft > 0.5) == (scored.correct == 1)).all()


def test_lifting_between_granularities(world):
    vectors = world.vectors
    coarse, fine = (RecipeSpace(vectors, SpaceConfig(granularity=g)) for g in ("global", "blocks:2"))
    x = np.array([[0.3], [0.6], [0.9]])
    np.testing.assert_allclose(coarse.lift(x, fine), np.repeat(x, 2, axis=1))
    np.testing.assert_allclose(fine.lift(coarse.lift(x, fine), coarse), x)


def test_simplex_sums_to_total(world):
    space = RecipeSpace(world.vectors, SpaceConfig(form="simplex", total=1.5, granularity="blocks:2"))
    coefficients = space.coefficients(np.random.default_rng(0).normal(size=space.dimensions))
    np.testing.assert_allclose(coefficients.sum(axis=0), 1.5, atol=3e-4)
    np.testing.assert_allclose(space.coefficients(space.vector(coefficients)), coefficients, atol=2e-4)


def test_user_function_is_an_objective(world):
    fitness, space = fitness_of(world)

    def norm(model, tokenizer):
        return np.full(7, float(model.backbone.encoder.layer[0].output.dense.bias.norm()))

    objective = FunctionObjective("norm", 7, norm)
    mixed = Fitness(fitness.model, {**fitness.objectives, "norm": objective}, batch=7)
    assert mixed.evaluate(one_hot(space, 0), 0).tasks == ("good", "plot", "dark", "norm")
    aligned = te.problem(world).fitness
    mixed = Fitness(aligned.model, {**aligned.objectives, "norm": objective}, batch=2, targets=aligned.targets)
    coefficients = np.full((3, mixed.model.slices[-1][0] + 1), 0.3)
    assert mixed.set_control(coefficients).hits[-1] == pytest.approx(norm(mixed.model.write(coefficients), None)[0])
    raced = race(mixed, [coefficients] * 2, 0, Racing(parts=3, keep=1))  # more pieces than examples
    assert all(np.isfinite(answer.mean) for answer in raced)
    wrong = FunctionObjective("norm", 9, norm)
    with pytest.raises(ValueError, match="expected one for each of 9"):
        Fitness(fitness.model, {"norm": wrong}, batch=7).evaluate(one_hot(space, 0), 0)


def test_experts_of_another_base_are_refused(world, tmp_path):
    other = te.base_folder(tmp_path / "other", seed=7)
    with pytest.raises(ValueError, match="fine-tuned from another base"):
        task_vectors(other, world.folders, world.cache)
    cards = [load_expert(f) for f in world.folders.values()]
    alien = train_expert(te.tasks()[0], other, te.CONFIG, world.cache)
    with pytest.raises(ValueError, match="different bases"):
        check_tasks([*cards[1:], load_expert(alien)])
    with pytest.raises(ValueError, match="two experts of task"):
        check_tasks([cards[0], cards[0]])


def test_missing_tensors_wrong_shapes_and_nan_are_named(world, tmp_path):
    tensors = load_file(world.folders["good"] / "model.safetensors")
    name = world.vectors.tensors[0].name

    def folder(kind, changed):
        path = tmp_path / kind
        path.mkdir()
        save_file(changed, path / "model.safetensors")
        return {**world.folders, "good": path}

    lacking = folder("lacking", {k: v for k, v in tensors.items() if k != name})
    with pytest.raises(ValueError, match="lacks"):
        task_vectors(world.base, lacking, world.cache)
    with pytest.raises(ValueError, match="other shapes"):
        task_vectors(world.base, folder("shape", {**tensors, name: np.zeros(3, np.float32)}), world.cache)
    with pytest.raises(ValueError, match="NaN"):
        task_vectors(world.base, folder("nan", {**tensors, name: tensors[name] * np.nan}), world.cache)
    with pytest.raises(ValueError, match="equals the base"):
        task_vectors(world.base, {**world.folders, "good": world.base}, world.cache)
    with pytest.raises(ValueError, match="at least two"):
        task_vectors(world.base, {"good": world.folders["good"]}, world.cache)


def test_an_expert_without_head_or_task_is_refused(world, tmp_path):
    card = json.loads((world.folders["good"] / "expert.json").read_text())
    (tmp_path / "expert.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match="needs the head"):
        load_expert(tmp_path).head()
    (tmp_path / "expert.json").write_text(json.dumps({**card, "task": ""}))
    with pytest.raises(ValueError, match="names no task"):
        load_expert(tmp_path)


def test_one_class_validation_is_refused(world):
    objective = world.objectives()["good"]
    with pytest.raises(ValueError, match="one class"):
        objective.take(np.flatnonzero(objective.labels == 0))
    with pytest.raises(ValueError, match="mini-batch of 0"):
        Fitness(fitness_of(world)[0].model, world.objectives(), batch=0)
    assert isinstance(objective, EncoderObjective)


def test_tied_tensors_are_refused(world):
    encoder = world.encoder()
    layers = encoder.backbone.encoder.layer
    layers[1].output.dense.weight = layers[0].output.dense.weight
    vectors = world.vectors
    with pytest.raises(ValueError, match=r"tied|matches 0"):
        InMemoryModel(encoder, vectors, [0] * len(vectors.tensors))


@pytest.mark.parametrize("granularity", ["global", "blocks:2", "layers"])
def test_unknown_granularity_is_refused(world, granularity):
    RecipeSpace(world.vectors, SpaceConfig(granularity=granularity))
    with pytest.raises(ValueError, match="granularity"):
        RecipeSpace(world.vectors, SpaceConfig(granularity="blocks:9"))
    with pytest.raises(ValueError, match="allowed: global"):
        RecipeSpace(world.vectors, SpaceConfig(granularity="block"))
