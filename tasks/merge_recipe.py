"""Execute a recipe with the streaming merge engine: a model folder on disk with its manifest and card."""

import json
from collections.abc import Mapping

from pydantic import Field

from core.config import Config
from core.merge.engine import merge
from core.merge.recipe import write_recipe
from core.merge.static import STATIC
from tasks.merge_static import CHOICE, are_adapters, experts_of
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
    found = experts_of(experts)
    below = f"{base.folder}+" if are_adapters(found) else ""  # an adapter is named with the base it belongs to
    folders = [f"{below}{e.folder}" for e in found]
    scale = json.loads((tuned.folder / CHOICE).read_text())[config.method]["scale"]
    recipe = STATIC[config.method].recipe(scale, base.folder, folders) | {"seed": config.seed}
    write_recipe(out.folder / RECIPE, recipe)
    # one thread: an SVD of an embedding matrix in each is too much memory; a killed attempt's finished model has no
    # other witness than its own manifest, so it is read whole before it counts
    merge(recipe, out.folder / MODEL, threads=1, replace=True)
