"""A causal language model as base: how one is told, and its weights as merging reads them (safetensors in a folder)."""

from pathlib import Path

from core.config import Config
from core.data.assets import AssetError, asset_cache, find_local, resolve, state, table
from core.models.gguf import dequantised
from core.models.load import Source, kind_of, load_causal
from core.models.quiet import quietly
from tasks.load_model import ASSET, given_path, opened
from tasks.stage import Artifact, Output, is_planning, stage


def is_language(name: str) -> bool:
    """Whether a base is a causal language model, by the architecture its configuration names.

    Args:
        name: as for :func:`tasks.load_model.load_model`. What cannot be read is none: whoever loads it says why. A plan
            fetches nothing; an asset that is not here is told by its files (GGUF holds language models).
    """
    path = given_path(name) or find_local(name)
    if path is None and name in table() and state(table()[name]) != "cached":
        return any(member.endswith(".gguf") for member in table()[name].members)
    if path is None and name not in table() and is_planning() and not _fetched(name):
        return False
    try:
        return speaks(path or resolve(name).path)
    except (AssetError, OSError, ValueError, KeyError):
        return False


def speaks(model: Path) -> bool:
    """Whether the model in a folder (or GGUF file) is a causal language model."""
    source = Source(model.name, model, "")
    return source.gguf is not None or kind_of(source) == "causal"


def as_safetensors(base: Artifact) -> Artifact:
    """``base`` itself where its weights are safetensors already, or where it is not here yet (in a plan)."""
    if base.planned or any(base.folder.glob("*.safetensors")):
        return base
    return plain_language_model(PlainLanguageConfig(), base=base)


class PlainLanguageConfig(Config):
    """Nothing to choose."""


@stage("plain-language-model", modules=["core.models.load"])
def plain_language_model(out: Output, config: PlainLanguageConfig, base: Artifact) -> None:
    """Write a language model as safetensors: a GGUF file dequantised (float16), other weights in float32."""
    source = opened(base)
    if source.gguf is not None:
        out.link(dequantised(source))
    else:
        lm = load_causal(source, device="cpu")
        quietly(lm.model.save_pretrained, out.folder)
        lm.tokenizer.save_pretrained(out.folder)
    for path in (base.folder / name for name in (ASSET, "README.md")):
        if path.is_file():
            (out.folder / path.name).write_bytes(path.read_bytes())


def _fetched(name: str) -> bool:
    """Whether a hub repository lies in the cache."""
    repository, _, revision = name.partition("@")
    return asset_cache().find(f"hub--{repository.replace('/', '--')}", revision or "main") is not None
