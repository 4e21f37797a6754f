"""Strategies on families that were never measured: they train what they say, or say why they cannot."""

import numpy as np
import pytest

from core.data.examples import Examples
from core.transfer.sources import Source, open_source
from core.transfer.strategies import StrategyConfig, fit
from core.transfer.target import Target
from tests import tiny_families as tiny
from tests.core.transfer import tiny as tasks

QUICK = StrategyConfig(examples=24, min_epochs=1, max_epochs=1, max_new_tokens=2)
LONG = Examples([" ".join(["good"] * 300)], None, [0])
WITHOUT_PASTS = ("albert", "deberta", "deberta-v2", "distilbert", "modernbert", "mpnet")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """family and modality -> Source, each built once."""
    made = {}

    def get(family: str, modality: str = "text") -> Source:
        if (family, modality) not in made:
            folder = tiny.save(family, tmp_path_factory.mktemp(family))
            made[family, modality] = open_source(folder, modality, device="cpu")
        return made[family, modality]

    return get


def target(generation: bool = False) -> Target:
    texts = tasks.texts(24)
    if generation:
        answers = texts.with_labels([("good film", "bad plot")[y] for y in texts.labels])
        return Target("t", answers, "generation", "language", 0, "rouge_l")
    return Target("t", texts, "classification", "text", 2, "accuracy")


def trained(net, t: Target) -> dict:
    """Parameters inside the body that get a gradient; all that are trained must."""
    loss, _ = net.loss(t, net.body.inputs(t.train))
    loss(net, np.arange(8)).backward()
    found = {n: p for n, p in net.body.named_parameters() if p.requires_grad}
    assert found
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in found.values())
    return found


@pytest.mark.parametrize(
    ("family", "name", "inside"),
    [
        ("gpt2", "lora", "attn.c_attn.lora_"),
        ("gpt2", "ia3", "mlp.c_proj.ia3_"),
        ("distilbert", "ia3", "k_lin.ia3_"),
        ("deberta", "ia3", "in_proj.ia3_"),
        ("deberta-v2", "ia3", "key_proj.ia3_"),
        ("modernbert", "ia3", "mlp.Wo.ia3_"),
        ("albert", "ia3", "ffn_output.ia3_"),
        ("gpt_neox", "ia3", "dense_4h_to_h.ia3_"),
        ("albert", "adapter", "albert_layer_groups.0.adapter"),
        ("deberta", "full", "q_bias"),
        ("deberta", "scratch", "q_bias"),
        ("opt", "full", "project_out"),
        ("modernbert", "freeze", "final_norm"),
        *(
            (f, "prompt_tuning", "prompt_encoder")
            for f in ("albert", "electra", "distilbert", "deberta", "roberta", "opt")
        ),
        *(
            (f, "prefix_tuning", "prompt_encoder")
            for f in ("bert", "electra", "xlm-roberta", "gpt2", "qwen3", "gemma2")
        ),
    ],
)
def test_a_strategy_trains_inside_the_model_and_reads_long_texts(family, name, inside, source):
    t = target()
    fitted = fit(name, source(family), t, QUICK, seed=0)
    assert any(inside in n for n in trained(fitted.net, t))
    assert np.isfinite(fitted.predict(LONG).probabilities).all()


@pytest.mark.parametrize("family", WITHOUT_PASTS)
def test_prefixes_are_refused_where_the_model_takes_none(family, source):
    """ALBERT took them and did nothing with them."""
    with pytest.raises(ValueError, match=rf"past keys and values, {family} does not; use prompt_tuning, lora"):
        fit("prefix_tuning", source(family), target(), QUICK)


def test_virtual_tokens_without_room_are_refused(source):
    config = QUICK.model_copy(update={"virtual_tokens": 60})
    with pytest.raises(ValueError, match="60 virtual tokens leave no room"):
        fit("prompt_tuning", source("bert"), target(), config)


@pytest.mark.parametrize(("family", "name"), [("gpt2", "lora"), ("opt", "prompt_tuning"), ("t5", "prefix_tuning")])
def test_a_language_model_is_tuned_for_generation(family, name, source):
    t = target(generation=True)
    fitted = fit(name, source(family, "language"), t, QUICK, seed=0)
    assert not any("lm_head" in n for n in trained(fitted.net, t))
    assert len(fitted.predict(t.train).values) == 24


def test_heads_of_t5_need_not_be_as_wide_together_as_the_model(tmp_path):
    folder = tiny.save("t5", tmp_path, d_kv=24)
    t = target(generation=True)
    fitted = fit("prefix_tuning", open_source(folder, "language", device="cpu"), t, QUICK, seed=0)
    trained(fitted.net, t)


def test_features_of_a_language_model_stay_within_its_positions(source):
    opened = source("gpt2", "language")
    assert opened.original.max_length == 64
    assert opened.features(LONG).shape == (1, opened.original.width)
