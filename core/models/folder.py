"""What a model's folder tells before its weights are read: its architecture, its files, whether it has a tokenizer."""

from collections.abc import Collection, Container
from pathlib import Path
from typing import Any

from core.data.assets import AssetError
from core.models.load import Source
from core.safe_yaml import load_yaml

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.*", "*.model", "*.gguf")
SAVE = "save the one that the model was trained with beside it, tokenizer.save_pretrained(folder)"


def check_tokenizer(folder: Path) -> None:
    """Refuse a model without tokenizer: transformers makes up one for it that knows no word, and says nothing.

    Raises:
        AssetError: no tokenizer file in ``folder``.
    """
    if (folder / "config.json").is_file() and not any(next(folder.glob(f), None) for f in TOKENIZERS):
        raise AssetError(f"{folder} has no tokenizer ({', '.join(TOKENIZERS[:3])}, ...): {SAVE}")


def check_readable(folder: Path) -> None:
    """Refuse a transformers folder whose configuration or weights cannot be read; of the weights only headers are.

    Raises:
        AssetError: a configuration that transformers does not know, no weights, or a damaged file.
    """
    if not (folder / "config.json").is_file():
        return  # adapters and GGUF files have none
    configuration(folder)
    files = [path for pattern in WEIGHTS for path in sorted(folder.glob(pattern))]
    if not files:
        raise AssetError(f"{folder} has a config.json but no weights ({', '.join(WEIGHTS)}); copy them beside it")
    from safetensors import SafetensorError, safe_open

    for path in files:
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, "np"):
                    pass
            except SafetensorError as error:
                raise AssetError(f"{path} is damaged ({error}); copy or save it again") from None


def configuration(folder: Path) -> Any:
    """The configuration of a transformers folder.

    Raises:
        AssetError: it cannot be read, or is of a type that the installed transformers does not know.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).split(". ")[0].splitlines()[0]
        raise AssetError(
            f"{folder}/config.json is no configuration of a model that transformers reads ({reason})"
        ) from None


def check_vocabulary(folder: Path) -> None:
    """Refuse a tokenizer that knows no word, or gives ids for which the model has no embedding.

    Both are silent until they are noise, or an index error in the middle of a run.

    Raises:
        AssetError: such a tokenizer, or one that cannot be read.
    """
    if not (folder / "config.json").is_file():
        return
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(": ")
        raise AssetError(f"the tokenizer in {folder} cannot be read ({reason}); {SAVE}") from None
    check_words(tokenizer, folder, getattr(configuration(folder).get_text_config(), "vocab_size", None))


def check_words(tokenizer: Any, folder: Path, size: int | None) -> None:
    """Refuse a tokenizer that knows no word, or gives ids for which a model with ``size`` embeddings has none.

    Special tokens of other modalities count for neither: no text becomes an image token.

    Raises:
        AssetError: such a tokenizer.
    """
    named = set(tokenizer.all_special_ids)
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} - named
    ids = [i for i in tokenizer.get_vocab().values() if i not in special]
    if not set(ids) - named:
        raise AssetError(f"the tokenizer in {folder} knows no word, its vocabulary is not there; {SAVE}")
    if size is not None and max(ids) >= size:
        raise AssetError(
            f"the tokenizer in {folder} has ids up to {max(ids)}, the model embeds {size} (0 to {size - 1}): {SAVE}, "
            "or enlarge the model, model.resize_token_embeddings(len(tokenizer))"
        )


def check_card(folder: Path) -> None:
    """Refuse a model card that would take forever to read: the licence is looked up in its head.

    Raises:
        ValueError: the head of README.md is no plain YAML (see :func:`core.safe_yaml.load_yaml`).
    """
    card = folder / "README.md"
    if card.is_file():
        before, *rest = card.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
        if len(rest) == 2 and not before.strip():
            load_yaml(rest[0], f"the head of {card}")


def check_architecture(source: Source, known: Container[type], wanted: str) -> None:
    """Refuse a model whose type is not in ``known`` in one line; transformers would list all types that are.

    Args:
        known: a mapping of transformers from configurations to models.
        wanted: what is needed instead, for the message.

    Raises:
        ValueError: a model of another kind, or a GGUF file.
    """
    if source.gguf is not None:
        raise ValueError(f"{source.name} is a GGUF language model; needed is {wanted}")
    config = configuration(source.path)
    if type(config) not in known:
        raise ValueError(f"{source.name} is a model of type {config.model_type}; needed is {wanted}")


def check_one_text(source: Source) -> None:
    """Refuse a sequence-to-sequence model where one text goes in and its states come out.

    Raises:
        ValueError: an encoder with a decoder.
    """
    if source.gguf is None:
        _one_text(source.name, configuration(source.path), "an encoder, or a masked or causal language model")


def _one_text(name: str, config: Any, wanted: str) -> None:
    if config.is_encoder_decoder:
        raise ValueError(f"{name} is a sequence-to-sequence model ({config.model_type}); needed is {wanted}")


def check_direction(name: str, config: Any, auto: type, wanted: str) -> None:
    """Refuse to load a model as what it is not: with a decoder, without such a head, or reading in another direction.

    An encoder that is loaded as a causal model would look at the words that it is to write.

    Args:
        auto: the class of transformers that would load it.
        wanted: what is needed instead, for the message.

    Raises:
        ValueError: such a model. A type that comes with its own code is taken as it is.
    """
    import transformers as t

    _one_text(name, config, wanted)
    known = {
        t.AutoModelForCausalLM: t.MODEL_FOR_CAUSAL_LM_MAPPING,
        t.AutoModelForMaskedLM: t.MODEL_FOR_MASKED_LM_MAPPING,
    }
    if auto not in known or not type(config).__module__.startswith("transformers."):
        return
    both_ways = type(config) in t.MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    if type(config) not in known[auto] or (auto is t.AutoModelForCausalLM and both_ways):
        raise ValueError(f"{name} is a model of type {config.model_type}; needed is {wanted}")


def check_complete(name: str, missing: Collection[str], wanted: str) -> None:
    """Refuse weights that are absent from the files: transformers draws them at random and only warns.

    Raises:
        ValueError: ``missing`` names some.
    """
    if missing:
        first, *more = sorted(missing)
        others = f" and {len(more)} more" if more else ""
        raise ValueError(f"the files of {name} lack weights ({first}{others}); needed is {wanted}")
