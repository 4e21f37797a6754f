import numpy as np
import pytest
import torch

from core.models.encoder import embed_batches
from core.models.heads import Classifier, label_word_head, linear_head
from core.models.layers import first_layers
from core.models.load import kind_of, load_causal, load_encoder, load_masked, locate, shape
from core.models.score import Tokenized, length_buckets, resolve_dtype, score
from tests import tiny_models as tiny


def save(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_embeddings_do_not_depend_on_padding_or_order():
    encoder = tiny.encoder()
    together = encoder.embed(tiny.TEXTS, dtype="float32")
    alone = np.concatenate([encoder.embed([t], dtype="float32") for t in tiny.TEXTS])
    assert together.shape == (8, 16)
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.linalg.norm(encoder.embed(tiny.TEXTS, normalize=True), axis=1) == pytest.approx(1)


def test_pairs_carry_token_types():
    encoder = tiny.encoder()
    tokens = encoder.tokenize(["a good movie"], ["a bad film"])
    assert tokens.token_types == [[0, 0, 0, 0, 0, 1, 1, 1, 1]]
    with pytest.raises(ValueError, match="one for each"):
        encoder.tokenize(["a", "b"], ["c"])


def test_first_layers():
    encoder = tiny.encoder(layers=3)
    small = encoder.first_layers(2)
    _, hidden = encoder(encoder.tokenize(tiny.TEXTS).batch(np.arange(8)), hidden=True)
    _, cut = small(small.tokenize(tiny.TEXTS).batch(np.arange(8)), hidden=True)
    assert torch.allclose(hidden[:3], cut)
    assert small.sha256 != encoder.sha256
    assert encoder.depth == 3
    with pytest.raises(ValueError, match="give 1 to 3"):
        first_layers(encoder.backbone, 4)


def test_load_from_folders_and_gguf_refusals(tmp_path):
    encoder, mlm, clm = tiny.encoder(), tiny.masked(), tiny.causal()
    loaded = load_encoder(str(save(encoder.backbone, encoder.tokenizer, tmp_path / "e")), layers=2, device="cpu")
    np.testing.assert_allclose(
        loaded.embed(tiny.TEXTS, dtype="float32"), encoder.first_layers(2).embed(tiny.TEXTS, dtype="float32"), atol=1e-6
    )
    for kind, load, lm in (("masked", load_masked, mlm), ("causal", load_causal, clm)):
        again = load(str(save(lm.model, lm.tokenizer, tmp_path / kind)), device="cpu")
        ids = torch.tensor([[2, 7, 9]])
        assert torch.allclose(lm.model(ids).logits, again.model(ids).logits, atol=1e-6)
        assert again.kind == kind_of(str(tmp_path / kind)) == kind
    assert kind_of(str(tmp_path / "e")) == "encoder"
    assert shape(str(tmp_path / "e")) == (16, 3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no model"):
        locate(str(tmp_path / "empty"))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="needs a CUDA device"):
            load_causal(str(tmp_path / "causal"), quantised="4bit")


def test_label_word_head_answers_without_training():
    encoder = tiny.encoder()
    model = Classifier(encoder, label_word_head(encoder, [["a bad movie"], ["a good movie"]]), normalize=True)
    assert model.logits(["a bad movie", "a good movie"], dtype="float32").argmax(1).tolist() == [0, 1]
    for phrases, message in (
        ([["a"]], "two classes or more"),
        ([["a"], [""]], "at least one phrase"),
        ([["a"], ["a"]], "same label phrases"),
    ):
        with pytest.raises(ValueError, match=message):
            label_word_head(encoder, phrases)
    with pytest.raises(ValueError, match=r"reads the label phrases .'👍'. and .'👎'. alike"):
        label_word_head(encoder, [["👍"], ["a good movie"], ["👎"]])


def test_linear_head_is_seeded():
    torch.manual_seed(0)
    a = linear_head(4, 2, seed=1)
    torch.manual_seed(9)
    assert torch.equal(a.weight, linear_head(4, 2, seed=1).weight)
    assert not torch.equal(a.weight, linear_head(4, 2, seed=2).weight)


def test_buckets_cover_and_bound_the_padded_size():
    lengths = np.random.default_rng(0).integers(1, 300, size=500)
    batches = list(length_buckets(lengths, 1000))
    assert sorted(np.concatenate(batches)) == list(range(500))
    assert all(len(b) == 1 or len(b) * lengths[b].max() <= 1000 for b in batches)


def test_scores_in_every_dtype_agree():
    encoder = tiny.encoder()
    exact = score(encoder, encoder.tokenize(tiny.TEXTS), dtype="float32")[0]
    rough = score(encoder, encoder.tokenize(tiny.TEXTS), dtype="bfloat16")[0]
    np.testing.assert_allclose(exact, rough, atol=0.05)
    assert resolve_dtype("auto", "cpu") in ("float32", "bfloat16")
    with pytest.raises(ValueError, match="allowed"):
        resolve_dtype("fp8")


def test_tokenized_pieces():
    tokens = Tokenized.of(tiny.tokenizer(), tiny.TEXTS, max_length=4)
    assert tokens.lengths.max() == 4
    both = tokens.take([1, 0]) + tokens.take([2])
    assert both.ids == [tokens.ids[1], tokens.ids[0], tokens.ids[2]]
    batch = tokens.batch(np.array([0, 1]))
    assert batch["input_ids"].shape == (2, 4)
    assert tokens.sha256 != both.sha256


def test_no_texts_give_no_rows_or_a_plain_error():
    encoder = tiny.encoder()
    model = Classifier(encoder, linear_head(16, 2, seed=0))
    assert encoder.embed([]).shape == (0, 16)
    assert encoder.embed([], normalize=True).shape == (0, 16)
    assert model.logits([]).shape == (0, 2)
    with pytest.raises(ValueError, match="predict: there are no texts"):
        score(encoder, encoder.tokenize([]), description="predict")


def test_batches_go_to_their_rows():
    encoder = tiny.encoder()
    tokens = encoder.tokenize(tiny.TEXTS)
    batches = [(rows, tokens.batch(rows)) for rows in length_buckets(tokens.lengths, 20)]
    assert len(batches) > 2
    expected = score(encoder, tokens, dtype="float32", batch_tokens=20)[0]
    np.testing.assert_array_equal(embed_batches(encoder, batches, len(tokens)), expected)
