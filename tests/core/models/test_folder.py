"""What is refused from a model's folder before its weights are read, and what loading says meanwhile."""

import json

import pytest
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken

from core.data.assets import AssetError
from core.models.folder import check_one_text, check_readable, check_vocabulary
from core.models.load import locate
from core.transfer.modalities import MODALITIES
from core.transfer.sources import open_source
from tests.core.transfer import tiny


@pytest.mark.parametrize(
    ("kind", "modality"), [("vit", "image"), ("wav2vec2", "audio"), ("llama", "language"), ("t5", "language")]
)
def test_a_model_is_loaded_without_a_word(kind, modality, tmp_path, capfd):
    tiny.build(kind, tmp_path)
    capfd.readouterr()
    open_source(str(tmp_path), modality)
    assert "".join(capfd.readouterr()) == ""


@pytest.mark.parametrize(
    ("kind", "modality", "message"),
    [
        ("bert", "image", "is a model of type bert; needed is an image classifier"),
        ("bert", "audio", "is a model of type bert; needed is an audio classifier"),
        ("vit", "language", "is a model of type vit; needed is a causal or sequence-to-sequence language model"),
        ("bert", "language", r"lack weights \(cls.predictions.bias and \d more\); needed is a causal"),
    ],
)
def test_a_model_of_another_kind_is_one_line(kind, modality, message, tmp_path):
    tiny.build(kind, tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        MODALITIES.get(modality).load(tmp_path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_a_gguf_file_reads_no_images(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    for modality in ("image", "audio"):
        with pytest.raises(ValueError, match=f"is a GGUF language model; needed is an {modality} classifier"):
            MODALITIES.get(modality).load(tmp_path / "model.gguf")


def test_a_language_model_without_tokenizer_is_refused(tmp_path):
    tiny.build("llama", tmp_path)
    for file in tmp_path.glob("*token*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"has no tokenizer .*: save the one that the model was trained with"):
        MODALITIES.get("language").load(tmp_path)


@pytest.mark.parametrize(("kind", "modality", "output"), [("vit", "image", "classifier"), ("resnet", "image", "class")])
def test_absent_weights_are_refused_unless_they_are_the_output_layer(kind, modality, output, tmp_path):
    tiny.build(kind, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")

    def without(start):
        kept = {name: value for name, value in weights.items() if not name.startswith(start)}
        assert len(kept) < len(weights)
        save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})

    without(output)
    MODALITIES.get(modality).load(tmp_path)
    prefix = json.loads((tmp_path / "config.json").read_text())["model_type"]
    without(f"{prefix}.e")
    with pytest.raises(ValueError, match=rf"lack weights \({prefix}\.\S+ and \d+ more\); needed is an image"):
        MODALITIES.get(modality).load(tmp_path)


def _cut_weights(folder):
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:100])


def _unknown_type(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "bertx"}))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "has a config.json but no weights"),
        (_cut_weights, "model.safetensors is damaged"),
        (lambda folder: (folder / "config.json").write_text("{"), "is no configuration of a model"),
        (_unknown_type, "is no configuration of a model .*`bertx`"),
    ],
)
def test_a_folder_that_cannot_be_loaded_is_refused_from_its_headers(harm, message, tmp_path):
    tiny.build("bert", tmp_path)
    check_readable(tmp_path)
    harm(tmp_path)
    with pytest.raises(AssetError, match=message) as error:
        check_readable(tmp_path)
    assert "\n" not in str(error.value)


def test_a_tokenizer_without_words_or_with_more_than_the_model_embeds_is_refused(tmp_path):
    tiny.build("bert", tmp_path)
    check_vocabulary(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 12}))
    with pytest.raises(AssetError, match=r"has ids up to \d+, the model embeds 12 \(0 to 11\)"):
        check_vocabulary(tmp_path)
    for file in tmp_path.glob("*token*"):
        file.unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    with pytest.raises(AssetError, match="knows no word"):
        check_vocabulary(tmp_path)


def test_one_text_is_not_read_by_a_sequence_to_sequence_model(tmp_path):
    check_one_text(locate(tiny.build("bert", tmp_path / "bert")))
    with pytest.raises(ValueError, match=r"t5 is a sequence-to-sequence model \(t5\); needed is an encoder"):
        check_one_text(locate(tiny.build("t5", tmp_path / "t5")))


@pytest.mark.parametrize("kind", ["Bert", "DistilBert", "Electra"])
def test_heads_of_one_part_and_of_several_are_read_without_the_weights(kind):
    import torch
    import transformers

    from core.models.prompt import body_and_head

    with torch.device("meta"):
        config = getattr(transformers, f"{kind}Config")(num_hidden_layers=1)
        model = getattr(transformers, f"{kind}ForMaskedLM")(config)
        body, head = body_and_head(model)
        assert body is model.base_model
        assert head(torch.zeros(3, config.hidden_size)).shape == (3, config.vocab_size)


def test_a_token_of_another_modality_needs_no_embedding(tmp_path):
    """Gemma 3's image token lies behind its word embeddings; no text becomes one."""
    from transformers import AutoTokenizer

    tiny.build("bert", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.add_tokens([AddedToken(f"<image {i}>", special=True) for i in range(9)], special_tokens=True)
    assert len(tokenizer) > 48
    tokenizer.save_pretrained(tmp_path)
    check_vocabulary(tmp_path)
    tokenizer.add_tokens(["<no special one>"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(AssetError, match=r"has ids up to \d+, the model embeds 48"):
        check_vocabulary(tmp_path)
