import numpy as np
import pytest
import torch

from core.models.prompt import (
    Demonstration,
    Prompt,
    calibrated,
    content_free_logits,
    label_tokens,
    log_softmax,
    pool_bias,
    prompted,
)
from core.models.score import score
from tests import tiny_models as tiny

PROMPT = Prompt(
    masked="{text} . it was {answer} .",
    causal="review : {text} . in summary , the movie was {answer}",
    words=[["bad", "awful"], ["very good"]],
    phrase="a {answer} movie",
)
MODELS = {"masked": tiny.masked, "causal": tiny.causal, "encoder": tiny.encoder}


@pytest.fixture(params=sorted(MODELS))
def model(request):
    return prompted(MODELS[request.param](), PROMPT)


def test_one_interface_for_three_kinds(model):
    logits, hidden = score(model, model.tokenize(tiny.TEXTS), dtype="float32", hidden=True)
    assert logits.shape == (8, 2)
    assert hidden.shape == (8, model.depth + 1, model.width)
    alone = score(model, model.tokenize(tiny.TEXTS[:1]), dtype="float32")[0]
    np.testing.assert_allclose(alone[0], logits[0], atol=1e-5)  # padding does not reach the answer


def test_logits_are_those_of_the_label_words_at_the_answer():
    for lm in (tiny.masked(), tiny.causal()):
        model = prompted(lm, PROMPT)
        text = model.render("a good movie")
        ids = torch.tensor([lm.tokenizer(text)["input_ids"]])
        full = lm.model(ids).logits[0]
        position = int((ids[0] == lm.tokenizer.mask_token_id).nonzero()[-1]) if lm.kind == "masked" else -1
        token = {w: full[position, lm.tokenizer.convert_tokens_to_ids(w)] for w in ("bad", "awful", "very", "good")}
        expected = [(token["bad"] + token["awful"]) / 2, (token["very"] + token["good"]) / 2]
        got = score(model, model.tokenize(["a good movie"]), dtype="float32")[0][0]
        np.testing.assert_allclose(got, [float(e.detach()) for e in expected], atol=1e-5)


def test_demonstrations_come_first_and_the_last_mask_answers():
    shown = [Demonstration("a good movie", 1), Demonstration("a bad movie", 0)]
    model = prompted(tiny.masked(), PROMPT, demonstrations=shown)
    text = model.render("fine plot")
    assert text.startswith("a good movie . it was very good .")
    assert text.endswith("fine plot . it was [MASK] .")
    plain = prompted(tiny.masked(), PROMPT)
    a, b = (score(m, m.tokenize(["fine plot"]), dtype="float32")[0] for m in (model, plain))
    assert not np.allclose(a, b)


def test_a_mask_in_the_text_is_not_the_answer():
    model = prompted(tiny.masked(), PROMPT)
    assert model.render("a [MASK] movie").count("[MASK]") == 1


def test_long_text_is_cut_and_the_template_stays():
    model = prompted(tiny.causal(), PROMPT)
    text = model.render(" ".join(["good"] * 500))
    assert text.endswith("the movie was")
    assert len(model.tokenizer(text)["input_ids"]) <= 64
    with pytest.raises(ValueError, match="tokens longer than"):
        prompted(tiny.causal(), PROMPT, too_long="error").render(" ".join(["good"] * 500))
    with pytest.raises(ValueError, match="template and demonstrations alone"):
        prompted(tiny.causal(), PROMPT, demonstrations=[Demonstration("good " * 80, 1)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masked": "{text} It was good."}, "exactly one answer slot"),
        ({"causal": "{answer} : {text}"}, "must end with the answer slot"),
        ({"masked": "{txt} {answer}"}, "slots are"),
        ({"words": [["good"], ["good"]]}, "stands for labels 0 and 1"),
        ({"words": [["good"], [" "]]}, "at least one word"),
        ({"words": [["good"]]}, "two or more labels"),
    ],
)
def test_faulty_prompts_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Prompt(**(PROMPT.model_dump() | change))


def test_label_words_that_are_nothing_or_collide():
    with pytest.raises(ValueError, match="tokenizes to nothing"):
        label_tokens(tiny.tokenizer(), [["good"], ["qwerty"]])
    with pytest.raises(ValueError, match="labels 0 and 1 have the same tokens"):
        label_tokens(tiny.tokenizer(), [["good"], [" good"]])


def test_prompt_of_a_task():
    class Task:
        template, causal_template = "{text} It was {mask}.", "Review: {text} The movie was"
        labels, label_words = ("neg", "pos"), ("bad|awful", "good")

    prompt = Prompt.of(Task, phrase="a {answer} film")
    assert prompt.words == (("bad", "awful"), ("good",))
    assert prompt.fill("causal", "x") == "Review: x The movie was"
    assert prompt.phrases == [["a bad film", "a awful film"], ["a good film"]]


def test_calibration():
    model = prompted(tiny.causal(), PROMPT)
    reference = content_free_logits(model)
    assert np.exp(reference).sum() == pytest.approx(1, abs=0.1)
    assert calibrated(reference[None], reference) == pytest.approx(0)
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(200, 3)) + np.array([2.0, 0.0, -1.0])
    balanced = np.exp(log_softmax(logits - pool_bias(logits))).mean(0)
    np.testing.assert_allclose(balanced, 1 / 3, atol=1e-3)
    prior = [0.5, 0.3, 0.2]
    skewed = np.exp(log_softmax(logits - pool_bias(logits, np.array(prior)))).mean(0)
    np.testing.assert_allclose(skewed, prior, atol=1e-3)


def test_temperature_divides_logits():
    np.testing.assert_allclose(np.exp(log_softmax(np.array([[2.0, 0.0]]), 2.0)), [[0.7310586, 0.2689414]], rtol=1e-5)


@pytest.mark.parametrize(("first", "second"), [(150, 149), (149, 150), (150, 3), (3, 150)])
@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_of_two_long_texts_neither_vanishes(kind, first, second):
    two = PROMPT.model_copy(update={"masked": "{text} ? {answer} , {pair}", "causal": "{text} and {pair} {answer}"})
    model = prompted(MODELS[kind](), two)
    shown = model.render("good " * first, "film " * second)
    counts = [shown.split().count(word) for word in ("good", "film")]
    assert len(model.tokenizer(shown)["input_ids"]) <= model.max_length
    if min(first, second) < 10:
        assert min(counts) == 3
    else:
        assert min(counts) >= 0.4 * max(counts)
    assert sum(counts) > 0.6 * model.max_length
