"""The real models behind the prompt interface: they answer clear sentences without having seen a label."""

import numpy as np
import pytest

from core.models.load import kind_of, load_causal, load_encoder, shape
from core.models.prompt import Prompt, pool_bias, prompted
from core.models.score import score

PROMPT = Prompt(
    masked="{text} It was {answer}.",
    causal="Review: {text} In summary, the movie was {answer}",
    words=[["terrible"], ["great"]],
    phrase="a {answer} movie",
)
TEXTS = [
    "A wonderful film, moving and beautifully acted from start to finish.",
    "One of the best comedies of the year, I loved every minute.",
    "Brilliant, funny and full of heart.",
    "An excellent script and a superb cast.",
    "A dreadful mess, badly acted and painfully dull.",
    "One of the worst movies I have ever seen, I hated it.",
    "Boring, stupid and a complete waste of time.",
    "An awful script and a lifeless cast.",
]
LABELS = np.array([1, 1, 1, 1, 0, 0, 0, 0])


@pytest.mark.parametrize("layers", [None, 3])
def test_minilm_answers_through_label_phrases(layers):
    model = prompted(load_encoder("all-minilm-l6-v2", layers=layers), PROMPT)
    logits = score(model, model.tokenize(TEXTS))[0]
    assert ((logits - pool_bias(logits)).argmax(1) == LABELS).mean() >= (0.85 if layers is None else 0.6)
    exact = score(model, model.tokenize(TEXTS), dtype="float32")[0]
    np.testing.assert_allclose(logits, exact, atol=0.3)


def test_dequantised_smollm2_answers_with_label_words():
    assert kind_of("smollm2-135m-instruct") == "causal"
    assert shape("smollm2-135m-instruct") == (576, 30)
    model = prompted(load_causal("smollm2-135m-instruct"), PROMPT)
    logits = score(model, model.tokenize(TEXTS))[0]
    assert ((logits - pool_bias(logits)).argmax(1) == LABELS).mean() >= 0.85
