"""Load a model by asset name, folder or hub name: its files become an artifact."""

import json
from pathlib import Path

from pydantic import Field

from core.config import Config
from core.data.assets import AssetError, content_hash, find_local, resolve, table
from core.models.folder import check_card, check_readable, check_tokenizer, check_vocabulary
from core.models.load import Source
from core.state import write_json
from tasks.stage import Artifact, Output, stage

ASSET = "asset.json"
ADAPTER = "adapter_config.json"  # of peft
PATH_SIGNS = ("/", ".", "~")


class ModelConfig(Config):
    """Which model, and what identifies its bytes."""

    name: str = Field(description="asset name, folder, or hub repository owner/name[@revision]")
    identity: str = Field(description="hash of the pinned archive, or of the folder's content")


def load_model(name: str, reads_text: bool = True, adapter: bool = False) -> Artifact:
    """The artifact of a model: a name as of :func:`core.data.assets.resolve`, or any path of a folder or file.

    Args:
        reads_text: the model needs a tokenizer.
        adapter: an adapter will do, which is no whole model.

    Raises:
        AssetError: nothing at the path, an adapter, or a folder whose model or tokenizer cannot work.
        ValueError: a folder with a damaged card.
    """
    path = given_path(name)
    if path is not None:
        if not path.exists():
            raise AssetError(f"{path} does not exist; give the folder or file of a model")
        if path.is_dir():
            if not adapter:
                check_whole(path)
            check_card(path)
            check_readable(path)
            if reads_text and not adapter:
                check_tokenizer(path)
                check_vocabulary(path)
        if not name.startswith(PATH_SIGNS):
            name = f"./{name}"
    return _load(ModelConfig(name=name, identity=identity(name)))


def check_whole(folder: Path) -> None:
    """Refuse an adapter where a whole model is needed: its folder names the base and holds what changed alone.

    Raises:
        AssetError: saying how one becomes a model.
    """
    if (folder / ADAPTER).is_file() and not (folder / "config.json").is_file():
        raise AssetError(
            f"{folder} is an adapter ({ADAPTER}), needed is a whole model: put it into its base with peft, "
            "model.merge_and_unload().save_pretrained(FOLDER), and save the tokenizer beside it"
        )


def given_path(name: str) -> Path | None:
    """The path that ``name`` is: written as one, or there and no name of an asset; else None."""
    path = Path(name).expanduser()
    if name.startswith(PATH_SIGNS):
        return path
    return path if name not in table() and find_local(name) is None and path.exists() else None


def identity(name: str) -> str:
    """What decides the bytes behind a name, without fetching them."""
    local = given_path(name) or find_local(name)
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
