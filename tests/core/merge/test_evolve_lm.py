"""Language-model objectives, and a merge of tiny causal models searched with them."""

import numpy as np
import pytest
import torch

from core.evolve.optimizers import OPTIMIZERS
from core.merge.candidate import InMemoryModel
from core.merge.fitness import Fitness
from core.merge.objectives_lm import GenerationObjective, LikelihoodObjective, LmEvalObjective, fold
from core.merge.recipe_space import RecipeSpace, SpaceConfig
from core.merge.solver import Evaluator, SolverConfig, run_search, tune_static
from core.merge.task_vectors import task_vectors
from core.state import Cache
from core.transfer.budget import Budget
from tests import tiny_models as tiny

PROMPTS = ["the movie is good", "the plot was bad", "a great film", "a dull scene"]


def likelihood(tokenizer, **changes):
    return LikelihoodObjective("mood", tokenizer, PROMPTS, ["yes", "no"], [0, 1, 0, 1], **changes)


def test_likelihood_follows_the_model_and_not_the_batch():
    lm = tiny.causal()
    task = likelihood(lm.tokenizer)
    hits = task.score(lm.model, np.arange(4))
    alone = likelihood(lm.tokenizer, batch_tokens=1)
    np.testing.assert_array_equal(hits, [alone.score(lm.model, np.array([i]))[0] for i in range(4)])
    ids = lm.tokenizer([f"{PROMPTS[0]} yes", f"{PROMPTS[0]} no"], return_tensors="pt")
    with torch.inference_mode():
        logp = lm.model(input_ids=ids["input_ids"]).logits.log_softmax(-1)
    values = [float(logp[k, 3, ids["input_ids"][k, 4]]) for k in range(2)]
    assert hits[0] == float(values[0] > values[1])


def test_a_broken_model_gives_nan_scores():
    lm = tiny.causal()
    with torch.no_grad():
        lm.model.model.norm.weight.fill_(float("nan"))
    assert np.isnan(likelihood(lm.tokenizer).score(lm.model, np.arange(4))).all()


def test_generation_matches_exactly_after_folding():
    lm = tiny.causal()
    task = GenerationObjective("say", lm.tokenizer, PROMPTS[:2], ["Very good!", ["no", "bad"]], max_new_tokens=3)
    assert task.matches(" very  GOOD\nand more", 0)
    assert task.matches("bad", 1)
    assert not task.matches("very good movie", 0)
    ids = lm.tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        made = lm.model.generate(input_ids=ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
    said = lm.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
    assert GenerationObjective("say", lm.tokenizer, PROMPTS[:1], [said], 3).score(lm.model, np.array([0])) == [1.0]
    assert fold("A, b!") == "a b"


def test_wrong_tasks_are_refused():
    tokenizer = tiny.causal().tokenizer
    with pytest.raises(ValueError, match="one class"):
        LikelihoodObjective("mood", tokenizer, PROMPTS[:2], ["yes", "no"], [0, 0])
    with pytest.raises(ValueError, match="no answer"):
        LikelihoodObjective("mood", tokenizer, PROMPTS[:2], ["yes", "no"], [0, 2])
    with pytest.raises(ValueError, match="2 prompts for 1 targets"):
        GenerationObjective("say", tokenizer, PROMPTS[:2], ["a"])


def test_harness_tasks_say_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install lm-eval"):
        LmEvalObjective("arc_easy", None, 10)


def test_causal_models_are_searched_like_encoders(tmp_path):
    base = tiny.causal(seed=0)
    folders = {}
    base.model.save_pretrained(tmp_path / "base")
    for k, name in enumerate(("mood", "say")):
        other = tiny.causal(seed=0).model
        generator = torch.Generator().manual_seed(k)
        with torch.no_grad():
            for parameter_name, p in other.named_parameters():
                if "layers" in parameter_name and p.ndim > 1:
                    p.add_(0.01 * torch.randn(p.shape, generator=generator))
        other.save_pretrained(tmp_path / name)
        folders[name] = tmp_path / name
    vectors = task_vectors(tmp_path / "base", folders, Cache(tmp_path / "cache"))
    space = RecipeSpace(vectors, SpaceConfig(basis="raw", granularity="layers"))
    say = GenerationObjective("say", base.tokenizer, PROMPTS, ["good", "bad", "good", "dull"], max_new_tokens=2)
    fitness = Fitness(
        InMemoryModel(base.model, vectors, space.groups), {"mood": likelihood(base.tokenizer), "say": say}, 2
    )
    budget, config = Budget("task_examples", 120), SolverConfig(finalists=1, racing_parts=1)
    start, _ = tune_static(fitness, space, budget, config, scales=(0.3, 0.6))
    optimizer = OPTIMIZERS.get("cma")(space.box(start, 0.2), seed=0)
    result = run_search(optimizer, Evaluator(fitness, space, config), budget, config)
    assert result.best is not None
    assert budget.spent <= 120
