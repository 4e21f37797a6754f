"""The last layer at the answer alone: the same answers from less work."""

import numpy as np
import pytest

from core.distill.export import export_student, load_student
from core.models.answer_only import answer_only, position_wise
from core.models.layers import layer_list
from core.models.load import load_causal, load_masked
from core.models.prompt import Prompt, prompted
from core.models.score import score
from tests import tiny_families as tiny

PROMPT = Prompt(
    masked="{text} . it was {answer} .",
    causal="review : {text} . it was {answer}",
    words=[["bad", "awful"], ["very good"]],
)
TEXTS = ["a good film", "a great film and very fine music so it was good", "a bad film", "dull plot", "awful"]
FAMILIES = tuple(f for f in tiny.FAMILIES if f != "t5")


def model_of(folder, family):
    load = load_causal if family in tiny.CAUSAL else load_masked
    return prompted(load(str(folder), device="cpu"), PROMPT)


def last_layer(model):
    holder, name = layer_list(model.model)
    return getattr(holder, name)[-1]


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_and_their_states_stay(family, tmp_path):
    tiny.save(family, tmp_path)
    model = model_of(tmp_path, family)
    tokens = model.tokenize(TEXTS)
    before = score(model, tokens, dtype="float32", hidden=True)
    assert answer_only(model) is model
    for _ in range(2):  # asked for twice, it is done once
        for whole, served in zip(before, score(answer_only(model), tokens, dtype="float32", hidden=True), strict=True):
            np.testing.assert_allclose(served, whole, atol=1e-5)


@pytest.mark.parametrize("family", tiny.CAUSAL)
def test_the_last_layer_works_on_one_position_of_each_text(family, tmp_path):
    tiny.save(family, tmp_path)
    model = model_of(tmp_path, family)
    parts = position_wise(last_layer(model))
    seen = []
    for part in parts:
        whole = part.forward
        part.forward = lambda states, whole=whole: (seen.append(states.shape[1]), whole(states))[1]
    score(answer_only(model), model.tokenize(TEXTS), dtype="float32")
    assert seen
    assert set(seen) == {1}


def test_a_served_student_works_so(tmp_path):
    tiny.save("llama", tmp_path / "llama")
    model = model_of(tmp_path / "llama", "llama")
    expected = score(model, model.tokenize(TEXTS), dtype="float32")[0]
    student = load_student(export_student(model, tmp_path / "student", ["bad", "good"]), device="cpu")
    seen = []
    part = position_wise(last_layer(student.model))[-1]
    part.register_forward_hook(lambda _, given, out: seen.append(np.abs(out.float().numpy()).sum(-1)))
    probabilities = student.probabilities(TEXTS)
    assert (probabilities.argmax(1) == expected.argmax(1)).all()
    assert seen
    assert all(((works > 0).sum(1) == 1).all() for works in seen)
