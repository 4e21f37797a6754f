"""Execute an evolved recipe file with the streaming merge engine."""

import yaml

from core.config import Config
from core.merge.engine import merge
from core.state import write_bytes
from tasks.evolve_recipes import RECIPE
from tasks.merge_recipe import MODEL
from tasks.stage import Artifact, Output, stage


class ExecuteConfig(Config):
    """Nothing to set: the recipe says it all."""


@stage("execute-recipe", modules=["core.merge.engine"])
def execute_recipe(out: Output, config: ExecuteConfig, evolved: Artifact) -> None:
    """Merge as the recipe says, into a model that transformers opens."""
    text = (evolved.folder / RECIPE).read_text()
    write_bytes(out.folder / RECIPE, text.encode())
    merge(yaml.safe_load(text), out.folder / MODEL, replace=True)
