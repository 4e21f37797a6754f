"""Families that were never measured: loaded, prompted and tuned, each answer compared with the model's own forward."""

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, normalizers, processors

from core.data.examples import Examples
from core.distill.teachers import TeacherConfig, build, tune
from core.models.load import kind_of, load_causal, load_encoder, load_masked
from core.models.prompt import LastState, Prompt, body_and_head, label_tokens, prompted
from core.models.score import score
from core.models.train import TrainConfig
from tests import tiny_families as tiny

PROMPT = Prompt(
    masked="{text} . it was {answer} .",
    causal="review : {text} . it was {answer}",
    words=[["bad", "awful"], ["very good"]],
    phrase="a {answer} film",
)
TEXTS = ["a good film", "a great film and very fine music so it was good", "a bad film", "dull plot", "awful"]
LABELS = [1, 1, 0, 0, 0]
LONG = " ".join(["good"] * 400)
ONE_TEXT = tuple(f for f in tiny.FAMILIES if f != "t5")
LOADERS = {"encoder": load_encoder, "masked": load_masked, "causal": load_causal}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """family and kind -> folder of its tiny model, each saved once."""
    made = {}

    def get(family: str, kind: str = "") -> str:
        if (family, kind) not in made:
            made[family, kind] = tiny.save(family, tmp_path_factory.mktemp(family), kind)
        return made[family, kind]

    return get


@pytest.mark.parametrize("family", ONE_TEXT)
def test_label_logits_are_those_of_the_whole_model(family, folder):
    """Heads in several parts, bounded logits, projections: whatever comes behind the body counts."""
    kind = kind_of(folder(family))
    assert kind == ("causal" if family in tiny.CAUSAL else "masked")
    lm = LOADERS[kind](folder(family), device="cpu")
    model = prompted(lm, PROMPT)
    got, hidden = score(model, model.tokenize([*TEXTS, LONG]), dtype="float32", hidden=True)
    expected = []
    for text in [*TEXTS, LONG]:
        ids = torch.tensor([lm.tokenizer(model.render(text))["input_ids"]])
        with torch.no_grad():
            logits = lm.model(input_ids=ids).logits[0]
        at = -1 if kind == "causal" else int((ids[0] == lm.tokenizer.mask_token_id).nonzero()[-1])
        expected.append((logits[at][model.label_ids] * model.label_weights).sum((-1, -2)).numpy())
    np.testing.assert_allclose(got, np.stack(expected), atol=2e-5)
    assert hidden.shape == (len(expected), 3, model.width)
    last = score(LastState(lm.model), model.tokenize(TEXTS), dtype="float32")[0]
    assert last.shape == (len(TEXTS), model.width)


@pytest.mark.parametrize("family", ONE_TEXT)
def test_an_encoder_reads_texts_of_any_length_in_every_dtype(family, folder):
    encoder = load_encoder(folder(family), device="cpu")
    padded = family in tiny.PADDED_ONE and family != "opt"  # OPT's table is longer by the rows it leaves out
    assert encoder.max_length == (62 if padded else 64)
    together, hidden = score(encoder, encoder.tokenize([*TEXTS, LONG]), dtype="float32", hidden=True)
    alone = np.concatenate([encoder.embed([t], dtype="float32") for t in [*TEXTS, LONG]])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert together.shape == (6, encoder.width)
    assert hidden.shape == (6, 3, encoder.width)
    narrow = encoder.embed([*TEXTS, LONG], dtype="bfloat16")
    assert np.abs(narrow - together).max() < 0.3 * np.abs(together).max()


@pytest.mark.parametrize("family", ONE_TEXT)
@pytest.mark.parametrize("tuning", ["lora", "prompt"])
def test_teachers_are_tuned_by_what_is_inserted(family, tuning, folder):
    """Every inserted parameter gets a gradient, and the longest text still fits beside soft tokens."""
    kind = "encoder" if family == "albert" else kind_of(folder(family))
    train = TrainConfig(lr=1e-2, epochs=1, batch_size=6)
    config = TeacherConfig(asset=folder(family), kind=kind, tuning=tuning, soft_tokens=20, rank=2, train=train)
    model = build(config, PROMPT, device="cpu")
    before = score(model, model.tokenize(TEXTS), dtype="float32")[0]
    tune(model, Examples([*TEXTS, LONG], None, [*LABELS, 1]), config, 0)
    model(model.tokenize([*TEXTS, LONG]).batch(np.arange(6))).sum().backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert any("lora_" in n or "prompt_encoder" in n for n in trained)
    assert all(p.grad is not None for p in trained.values())
    assert np.abs(score(model, model.tokenize(TEXTS), dtype="float32")[0] - before).max() > 1e-3


def test_soft_tokens_without_room_for_a_text_are_refused(folder):
    config = TeacherConfig(asset=folder("roberta"), kind="encoder", tuning="prompt", soft_tokens=60)
    model = build(config, PROMPT, device="cpu")
    with pytest.raises(ValueError, match=r"60 virtual tokens leave no room .* reads 62 tokens.* give at most 54"):
        tune(model, Examples(TEXTS, None, LABELS), config, 0)


@pytest.mark.parametrize("family", ["phi", "modernbert", "opt"])
def test_the_last_layers_train_with_what_comes_behind_them(family, folder):
    kind = kind_of(folder(family))
    train = TrainConfig(lr=1e-2, steps=1, batch_size=4)
    config = TeacherConfig(asset=folder(family), kind=kind, last_layers=1, train=train)
    model = build(config, PROMPT, device="cpu")
    tune(model, Examples(TEXTS, None, LABELS), config, 0)
    free = {n for n, p in model.named_parameters() if p.requires_grad and ".layers." not in n}
    behind = {"phi": "final_layernorm", "modernbert": "final_norm", "opt": "project_out"}[family]
    assert any(behind in name for name in free)


@pytest.mark.parametrize(
    ("family", "saved", "kind", "message"),
    [
        ("t5", "", "encoder", "is a sequence-to-sequence model .t5.; needed is an encoder"),
        ("t5", "", "causal", "is a sequence-to-sequence model .t5.; needed is a causal language model"),
        ("t5", "", "masked", "is a sequence-to-sequence model .t5.; needed is a masked language model"),
        ("llama", "", "masked", "is a model of type llama; needed is a masked"),
        ("bert", "", "causal", "is a model of type bert; needed is a causal"),
        ("bert", "encoder", "masked", r"lack weights \(cls\.\S+ and \d more\); needed is a masked"),
        ("gpt2", "encoder", "causal", None),  # its head is its word embeddings
        ("gpt_neox", "encoder", "causal", r"lack weights \((embed_out|lm_head)\.weight\); needed is a causal"),
    ],
)
def test_a_model_is_not_loaded_as_what_it_is_not(family, saved, kind, message, folder):
    if message is None:
        LOADERS[kind](folder(family, saved), device="cpu")
        return
    with pytest.raises(ValueError, match=message) as error:
        LOADERS[kind](folder(family, saved), device="cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["encoder", "masked"])
def test_a_model_without_tokenizer_is_refused(kind, tmp_path):
    tiny.save("bert", tmp_path)
    for file in tmp_path.glob("*token*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"has no tokenizer .*: save the one that the model was trained with"):
        LOADERS[kind](str(tmp_path))


def test_tensors_are_read_from_a_bin_file(tmp_path):
    """Of a pytorch_model.bin torch reads tensors only; one with anything else in it is refused (test_untrusted)."""
    tiny.save("bert", tmp_path)
    before = load_encoder(str(tmp_path), device="cpu").embed(TEXTS, dtype="float32")
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    np.testing.assert_array_equal(load_encoder(str(tmp_path), device="cpu").embed(TEXTS, dtype="float32"), before)


def test_electras_discriminator_is_an_encoder(tmp_path):
    with torch.random.fork_rng(devices=[]):
        transformers.ElectraForPreTraining(tiny.config("electra")).save_pretrained(tmp_path)
    tiny.tokenizer("electra").save_pretrained(tmp_path)
    assert kind_of(str(tmp_path)) == "encoder"
    assert load_encoder(str(tmp_path), device="cpu").embed(["a good film"]).shape == (1, 32)


def test_a_plain_output_layer_is_the_head_and_a_bounded_one_is_not(folder):
    assert isinstance(body_and_head(load_causal(folder("llama"), device="cpu").model)[1], torch.nn.Linear)
    model = load_causal(folder("gemma3_text"), device="cpu").model
    logits = body_and_head(model)[1](1000 * torch.ones(3, 32))
    assert logits.shape == (3, model.config.vocab_size)
    assert logits.abs().max() <= 2.0


def test_a_body_without_head_is_named(folder):
    with pytest.raises(ValueError, match="BertModel has no language-model head"):
        body_and_head(load_encoder(folder("bert"), device="cpu").backbone)


def _of_pieces(words: list[str], **post) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer that puts a blank before every text, as Llama 2's does."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("\u2581", -1.0), *((f"\u2581{w}", -1.0) for w in words)]
    made = Tokenizer(models.Unigram(pieces, unk_id=0))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    if post:
        made.post_processor = processors.TemplateProcessing(**post)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="</s>")


def test_label_words_are_tokens_as_they_stand_in_a_text():
    words = _of_pieces(["a", "good", "bad", "very"])
    ids, weights = label_tokens(words, [["bad"], ["very good"]])
    tokens = [[words.convert_ids_to_tokens(int(i)) for i in row[0]] for row in ids]
    assert tokens[1] == ["\u2581very", "\u2581good"]
    assert tokens[0][0] == "\u2581bad"
    assert weights[0, 0].tolist() == [1, 0]


def test_a_causal_prompt_is_not_ended(folder):
    """A tokenizer that ends every text: the answer is read at the last word, not behind the end."""
    lm = load_causal(folder("llama"), device="cpu")
    plain = prompted(lm, PROMPT)
    expected = score(plain, plain.tokenize(TEXTS), dtype="float32")[0]
    inner = lm.tokenizer.backend_tokenizer
    end = [("</s>", lm.tokenizer.eos_token_id)]
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=end)
    assert lm.tokenizer("a")["input_ids"][-1] == lm.tokenizer.eos_token_id
    ended = prompted(lm, PROMPT)
    np.testing.assert_allclose(score(ended, ended.tokenize(TEXTS), dtype="float32")[0], expected, atol=1e-6)
