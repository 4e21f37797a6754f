"""Merging adapters of a tiny causal language model: exact task vectors, every kind of search, and bad input."""

import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from core.evolve.loop import Evaluation
from core.merge.adapter_experts import AdapterConfig, prompts_of, train_adapter
from core.merge.adapter_vectors import adapter_vectors
from core.merge.baselines import SEARCHES, greedy_soup
from core.merge.basis import BASES
from core.merge.choices import with_choices
from core.merge.emfto import EmftoConfig
from core.merge.engine import merge
from core.merge.experts import load_expert
from core.merge.fitness import Racing, race
from core.merge.language import in_memory, language_problem
from core.merge.problem import ProblemConfig, own_scores
from core.merge.recipe_space import RecipeSpace, SpaceConfig
from core.merge.solver import SolverConfig
from core.merge.static import static_deltas, static_methods
from core.transfer.budget import Budget
from tests import tiny_language as tl

CONFIG = ProblemConfig(
    space=SpaceConfig(basis="raw", granularity="layers"), batch=10, validation_examples=40, precision="float32"
)
SEARCH = EmftoConfig(solver=SolverConfig(finalists=1, population=4))
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def problem(language):
    return language_problem(language.base, language.experts, CONFIG, language.cache)


def alone(problem, index):
    matrix = np.zeros(problem.space.shape)
    matrix[index] = 1.0
    return matrix


def test_adapters_learn_their_task_and_are_found_again(language, problem):
    assert (
        train_adapter(tl.task(language.base.parent, "mood"), language.base, tl.CONFIG, language.cache)
        == (language.folders["mood"])
    )
    base = problem.fitness.full(np.zeros(problem.space.shape))
    for index, name in enumerate(language.folders):
        own = problem.fitness.full(alone(problem, index))
        assert own.hits[index] > 0.9 > base.hits[index], name
        assert own.score[index] == pytest.approx(1.0)
    card = load_expert(language.folders["light"]).card
    assert (card["train_labels"], card["train_examples"]) == (96, 96 * 16)


def test_task_vectors_equal_pefts_own_merge(language):
    vectors = adapter_vectors(language.base, language.folders, language.cache)
    start = load_file(language.base / "model.safetensors")
    for row, folder in zip(vectors.deltas, language.folders.values(), strict=True):
        model = AutoModelForCausalLM.from_pretrained(language.base, dtype="float64")
        merged = PeftModel.from_pretrained(model, folder).merge_and_unload().state_dict()
        for t in vectors.tensors:
            wanted = merged[t.name].numpy() - start[t.name].double().numpy()
            np.testing.assert_allclose(row[t.start : t.stop].reshape(t.shape), wanted, atol=1e-6)
        others = set(start) - {t.name for t in vectors.tensors}
        assert all(torch.equal(merged[name].float(), start[name]) for name in others)
    layers = [t.layer for t in vectors.tensors]
    assert layers == sorted(layers)


def test_tied_embeddings_stay_one_tensor_and_take_no_part(language, problem):
    assert not any("embed" in t.name or "lm_head" in t.name for t in problem.raw.tensors)
    model = problem.fitness.model.write(alone(problem, 0))
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    stored = load_file(language.base / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(model.get_input_embeddings().weight.detach(), stored)


def test_buffers_keep_their_precision_in_bfloat16(problem):
    network = problem.fitness.model.model
    before = {name: b.clone() for name, b in network.named_buffers()}
    assert before
    in_memory(network, problem.raw, problem.space.groups, torch.bfloat16)
    assert next(network.parameters()).dtype == torch.bfloat16
    assert all(torch.equal(b, before[name]) for name, b in network.named_buffers())


@pytest.mark.parametrize("basis", BASES.names())
def test_the_engine_executes_the_recipe_to_the_same_weights(language, basis, tmp_path):
    """In every basis: those that decompose a delta must see the adapter's rank, not the noise of its rounding."""
    space = SpaceConfig(basis=basis, granularity="layers")
    problem = language_problem(
        language.base, language.experts, CONFIG.model_copy(update={"space": space}), language.cache
    )
    coefficients = problem.space.coefficients(np.random.default_rng(0).uniform(0, 1.2, problem.space.dimensions))
    model = problem.fitness.model.write(coefficients)
    merge(problem.recipe(coefficients), tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(parameter.detach().numpy(), written[name].numpy(), atol=2e-6)


def test_a_recipe_of_chosen_components_is_the_engines(language, tmp_path):
    problem = language_problem(language.base, language.experts, CONFIG, language.cache)
    chosen = with_choices(problem, ("raw", "tsv_m@0.5"), language.cache)
    recipe = chosen.space.coefficients(chosen.space.mixed(0, 0.25).sample(np.random.default_rng(2)))
    merge(chosen.recipe(recipe), tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name, parameter in chosen.fitness.model.write(recipe).named_parameters():
        np.testing.assert_allclose(parameter.detach().numpy(), written[name].numpy(), atol=2e-6)


@pytest.mark.parametrize("search", ["emfto", "cold_cma", "random", "ga"])
def test_every_search_runs_within_its_budget(problem, search):
    budget = Budget("task_examples", 700)
    outcome = SEARCHES.get(search)(problem.fitness, problem.space, budget, SEARCH, problem.owners, seed=0)
    assert budget.spent == outcome.spent <= 700
    assert len(outcome.answers) >= 4
    assert outcome.validation.mean >= outcome.start_validation.mean


@pytest.mark.parametrize("name", ["iso_c", "tsv_m", "wudi"])
def test_a_static_merge_of_adapters_is_the_engines(language, problem, name, tmp_path):
    methods = static_methods([name], 3)
    found = static_deltas(problem.raw, methods, cache=language.cache)
    experts = [f"{language.base}+{folder}" for folder in language.folders.values()]
    merge(methods[name].recipe(1.0, language.base, experts), tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    for t in found.tensors:
        mine = (found.base + found.deltas[0])[t.start : t.stop].reshape(t.shape)
        np.testing.assert_allclose(mine, written[t.name].numpy(), atol=2e-6)


def test_static_methods_and_the_soup_work_on_the_same_fitness(problem, language):
    names = ["average", "task_arithmetic", "ties", "dare_linear", "dare_ties", "iso_c", "tsv_m", "wudi"]
    methods = static_methods(names, 3)
    space = RecipeSpace(problem.raw, SpaceConfig(basis="raw", granularity="global"))
    fitness, network = problem.fitness, problem.fitness.model.model
    fitness.model = in_memory(
        network, static_deltas(problem.raw, methods, cache=language.cache), space.groups, torch.float32
    )
    for row in range(len(methods)):
        assert np.isfinite(fitness.full(np.eye(len(methods))[:, [row]]).mean)
    fitness.model = in_memory(network, problem.raw, space.groups, torch.float32)
    own = own_scores(fitness.model, fitness.objectives)
    recipe, answer = greedy_soup(fitness, space, Budget("task_examples"))
    assert answer.mean >= max(fitness.full(np.eye(3)[:, [i]]).mean for i in range(3))
    assert recipe.sum() == pytest.approx(1.0)
    assert min(own.values()) > 0.9


def test_smooth_values_follow_the_hits_and_tell_near_misses(problem):
    for name, objective in problem.fitness.objectives.items():
        scored = objective.judge(problem.fitness.model.write(alone(problem, 0)), np.arange(objective.size))
        assert ((scored.soft >= 0) & (scored.soft <= 1)).all()
        assert len(np.unique(scored.soft)) > 2, name
    quick = problem.fitness.evaluate(alone(problem, 2), 0)
    assert np.isnan(quick.hits).tolist() == [False, False, True]  # nothing is written for a mini-batch
    assert np.isfinite(quick.score).all()
    mood = problem.fitness.objectives["mood"]
    scored = mood.judge(problem.fitness.model.model, np.arange(mood.size))
    np.testing.assert_array_equal(scored.soft > 0.5, scored.correct == 1)


def test_a_nan_candidate_fails_and_the_run_goes_on(problem, monkeypatch):
    good, broken = np.full(problem.space.shape, 0.3), np.full(problem.space.shape, np.nan)
    answers = race(problem.fitness, [good, broken, good], 0, Racing(parts=2, keep=2))
    assert [np.isfinite(a.mean) for a in answers] == [True, False, True]
    write, calls = problem.fitness.model.write, []

    def sometimes(coefficients):
        calls.append(1)
        return write(coefficients * (np.nan if len(calls) % 5 == 0 and len(calls) > 8 else 1.0))

    monkeypatch.setattr(problem.fitness.model, "write", sometimes)
    for search in ("emfto", "cold_cma"):
        budget = Budget("task_examples", 800)
        outcome = SEARCHES.get(search)(problem.fitness, problem.space, budget, SEARCH, problem.owners, seed=0)
        scores = [Evaluation(a.mean).score for _, a in outcome.answers]
        assert np.isnan(scores).any()
        assert np.isfinite(scores).sum() > 4
        assert np.isfinite(outcome.validation.mean)


def test_experts_of_another_base_are_refused(language, tmp_path):
    stranger = tl.base_folder(tmp_path / "other", seed=5)
    with pytest.raises(ValueError, match="which is not this"):
        language_problem(stranger, language.experts, CONFIG, language.cache)
    short = tl.CONFIG.model_copy(update={"examples": 16})
    alien = load_expert(train_adapter(tl.task(tmp_path, "mood"), stranger, short, language.cache))
    with pytest.raises(ValueError, match="different bases"):
        language_problem(language.base, [alien, *language.experts[1:]], CONFIG, language.cache)
    with pytest.raises(ValueError, match="two experts of task"):
        language_problem(language.base, [language.experts[0]] * 2, CONFIG, language.cache)
    wider = tl.base_folder(tmp_path / "wider", width=32)
    with pytest.raises(ValueError, match="belongs to another model"):
        adapter_vectors(wider, language.folders, language.cache)


def changed(language, tmp_path, change):
    """The experts' folders with ``mood`` replaced by a copy whose tensors went through ``change``."""
    folder = tmp_path / "changed"
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes((language.folders["mood"] / "adapter_config.json").read_bytes())
    save_file(change(load_file(language.folders["mood"] / WEIGHTS)), folder / WEIGHTS)
    return {**language.folders, "mood": folder}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {k: v * float("nan") for k, v in t.items()}, "NaN"),
        (lambda t: {k: v * 0 for k, v in t.items()}, "equals the base"),
        (lambda t: {k: v * 100 for k, v in t.items()}, "another base, or diverged"),
        (lambda t: {k.replace("layers.1", "layers.7"): v for k, v in t.items()}, "the base has 0 such tensors"),
    ],
    ids=["nan", "zero", "far", "missing"],
)
def test_broken_adapters_are_named(language, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        adapter_vectors(language.base, changed(language, tmp_path, change), language.cache)


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_adapters_that_touch_tied_embeddings_are_refused(language, tmp_path, target):
    config = AdapterConfig(targets=("q_proj", target), examples=16)
    with pytest.raises(ValueError, match="embedding or the head"):
        train_adapter(tl.task(tmp_path, "mood"), language.base, config, language.cache)
    model = AutoModelForCausalLM.from_pretrained(language.base)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=[target]))
    wrapped.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    with pytest.raises(ValueError, match="ties embeddings and head"):
        adapter_vectors(language.base, {**language.folders, "mood": tmp_path / "adapter"}, language.cache)


def test_wrong_settings_are_named(language, tmp_path):
    mood = tl.task(tmp_path, "mood")
    with pytest.raises(ValueError, match="no module 'query'"):
        train_adapter(mood, language.base, AdapterConfig(targets=("query",), examples=16), language.cache)
    with pytest.raises(ValueError, match="at least two"):
        adapter_vectors(language.base, {"mood": language.folders["mood"]}, language.cache)
    with pytest.raises(ValueError, match="of kind 'regression'"):
        train_adapter(mood.model_copy(update={"kind": "regression"}), language.base, tl.CONFIG, language.cache)


def test_an_expert_that_answers_nothing_is_no_reference(language, tmp_path):
    config = tl.CONFIG.model_copy(update={"examples": 8, "train": tl.CONFIG.train.model_copy(update={"lr": 1e-9})})
    untrained = load_expert(train_adapter(tl.task(tmp_path, "light"), language.base, config, language.cache))
    with pytest.raises(ValueError, match="'light' answers none of its 40 validation examples"):
        language_problem(language.base, [*language.experts[:2], untrained], CONFIG, language.cache)


def test_prompts_are_cut_and_end_where_the_answer_begins(tmp_path):
    mood = tl.task(tmp_path, "mood")
    examples = mood.splits().test.take([0])
    (prompt,) = prompts_of(mood, examples, 3)
    assert prompt == f"review : {' '.join(examples.texts[0].split()[:3])} summary :"


def test_cards_say_what_an_adapter_was_made_of(language):
    card = json.loads((language.folders["light"] / "expert.json").read_text())
    assert card["task"] == "light"
    assert AdapterConfig(**card["config"]) == tl.CONFIG
    assert not list(language.folders["light"].glob("*.ckpt"))
