"""Execute a recipe with the streaming merge engine: a model folder on disk with its manifest and card."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from core.config import Config
from core.merge.recipe import write_recipe
from core.merge.static import STATIC
from tasks.merge_static import CHOICE, experts_of
from tasks.stage import Artifact, Output, stage

RECIPE, MODEL = "recipe.yaml", "model"


class MergeConfig(Config):
    """Which static method is executed."""

    method: str = Field(description="name of a static method; its scale was chosen on validation")
    seed: int = Field(0, description="of random operators")


@stage("merge", modules=["core.merge.engine", "core.merge.static"])
def merge_recipe(
    out: Output, config: MergeConfig, base: Artifact, experts: Mapping[str, Artifact], tuned: Artifact
) -> None:
    """Merge at the chosen scale, streaming, into a model that transformers opens."""
    folders = [e.folder for e in experts_of(experts)]
    scale = json.loads((tuned.folder / CHOICE).read_text())[config.method]["scale"]
    recipe = STATIC[config.method].recipe(scale, base.folder, folders) | {"seed": config.seed}
    write_recipe(out.folder / RECIPE, recipe)
    merge_anew(recipe, out.folder / MODEL, threads=1)  # an SVD of an embedding matrix a thread is too much memory


def merge_anew(recipe: Mapping[str, Any], model: Path, threads: int | None = None) -> None:
    """Merge into ``model`` without what a killed attempt left there and beside it.

    The engine would go on from there, which saves minutes of a large merge; a stage takes seconds, and nothing tells
    whether unfinished files are still as they were written.
    """
    from core.merge.engine import merge

    shutil.rmtree(model, ignore_errors=True)
    for left in model.parent.glob(f"{model.name}.part*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    merge(recipe, model, threads=threads)
