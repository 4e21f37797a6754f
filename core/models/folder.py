"""What a model's folder tells before its weights are read: its architecture, whether it has a tokenizer."""

from collections.abc import Collection, Container
from pathlib import Path

from core.data.assets import AssetError
from core.models.load import Source
from core.safe_yaml import load_yaml

TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.*", "*.model", "*.gguf")


def check_tokenizer(folder: Path) -> None:
    """Refuse a model without tokenizer: transformers makes up one for it that knows no word, and says nothing.

    Raises:
        AssetError: no tokenizer file in ``folder``.
    """
    if (folder / "config.json").is_file() and not any(next(folder.glob(f), None) for f in TOKENIZERS):
        raise AssetError(
            f"{folder} has no tokenizer ({', '.join(TOKENIZERS[:3])}, ...): save the one that the model was trained "
            "with beside it, tokenizer.save_pretrained(folder)"
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
    from transformers import AutoConfig

    if source.gguf is not None:
        raise ValueError(f"{source.name} is a GGUF language model; needed is {wanted}")
    config = AutoConfig.from_pretrained(source.path)
    if type(config) not in known:
        raise ValueError(f"{source.name} is a model of type {config.model_type}; needed is {wanted}")


def check_complete(name: str, missing: Collection[str], wanted: str) -> None:
    """Refuse weights that are absent from the files: transformers draws them at random and only warns.

    Raises:
        ValueError: ``missing`` names some.
    """
    if missing:
        first, *more = sorted(missing)
        others = f" and {len(more)} more" if more else ""
        raise ValueError(f"the files of {name} lack weights ({first}{others}); needed is {wanted}")
