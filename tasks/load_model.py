"""Load a model by asset name, folder or hub name: its files become an artifact."""

import json
from pathlib import Path

from pydantic import Field

from core.config import Config
from core.data.assets import content_hash, find_local, resolve, table
from core.models.load import Source
from core.state import write_json
from tasks.stage import Artifact, Output, stage

ASSET = "asset.json"


class ModelConfig(Config):
    """Which model, and what identifies its bytes."""

    name: str = Field(description="asset name, folder, or hub repository owner/name[@revision]")
    identity: str = Field(description="hash of the pinned archive, or of the folder's content")


def load_model(name: str) -> Artifact:
    """The artifact of a model (see :func:`core.data.assets.resolve` for what a name may be)."""
    return _load(ModelConfig(name=name, identity=identity(name)))


def identity(name: str) -> str:
    """What decides the bytes behind a name, without fetching them."""
    path = Path(name).expanduser()
    local = path if path.exists() else find_local(name)
    if local is not None:
        return content_hash(local)
    return table()[name].key if name in table() else name


def opened(artifact: Artifact) -> Source:
    """Where the loaders of :mod:`core.models.load` find the model, under its own name."""
    name = json.loads((artifact.folder / ASSET).read_text())["name"]
    return Source(name, artifact.folder, artifact.sha256)


@stage("load-model", modules=["core.data.assets"], retries=2)
def _load(out: Output, config: ModelConfig) -> None:
    """Find or fetch a model's files."""
    asset = resolve(config.name)
    out.link(asset.path)
    write_json(out.folder / ASSET, {"name": asset.name, "licence": asset.licence, "origin": asset.origin})
    out.facts["where"] = asset.where
