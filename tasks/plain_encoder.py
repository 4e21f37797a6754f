"""A base as merging reads it: the encoder alone, under its own names, in float32, in one file.

Many checkpoints carry a head (``bert.encoder...`` beside ``cls...``), lie in several files or in bfloat16. An expert is
saved as an encoder; beside such a base it would have other tensors than its base.
"""

from collections.abc import Collection
from pathlib import Path

from core.config import Config
from core.merge.experts import WHOLE
from core.merge.tensors import read_header
from core.models.load import load_encoder
from core.models.quiet import quietly
from tasks.load_model import ASSET, opened
from tasks.stage import Artifact, Output, stage

WEIGHTS = "model.safetensors"


class PlainConfig(Config):
    """Nothing to choose."""


def as_plain_encoder(base: Artifact) -> Artifact:
    """``base`` itself where it is plain already, or is not here yet (in a plan)."""
    return base if base.planned or is_plain(base.folder) else plain_encoder(PlainConfig(), base=base)


def is_plain(folder: Path) -> bool:
    """Whether the weights are one float32 file with the names of the encoder; read from headers alone."""
    path = folder / WEIGHTS
    if not path.is_file():
        return False
    found = read_header(path)
    floats = {t.dtype for t in found.values() if "F" in t.dtype}
    return floats == {"F32"} and encoder_names(folder) <= found.keys()


def encoder_names(folder: Path) -> Collection[str]:
    """Names of the encoder's parameters without its pooler, from the configuration alone."""
    import torch
    from transformers import AutoConfig, AutoModel

    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.from_pretrained(folder))
    return {name for name, _ in model.named_parameters() if "pooler" not in name}


@stage("plain-encoder", modules=["core.models.load"])
def plain_encoder(out: Output, config: PlainConfig, base: Artifact) -> None:
    """Write the encoder of a checkpoint under its own names, in float32, in one file."""
    encoder = load_encoder(opened(base))
    quietly(encoder.backbone.save_pretrained, out.folder, max_shard_size=WHOLE)
    encoder.tokenizer.save_pretrained(out.folder)
    kept = (ASSET, "sentence_bert_config.json", "README.md")
    for path in (base.folder / name for name in kept):
        if path.is_file():
            (out.folder / path.name).write_bytes(path.read_bytes())
