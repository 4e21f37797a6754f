"""What is refused from a model's folder before its weights are read, and what loading says meanwhile."""

import json

import pytest
from safetensors.torch import load_file, save_file

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
