"""Choose a recipe of the Pareto front by a preference over tasks."""

import json

from pydantic import Field

from core.config import Config
from core.merge.front import Front
from core.merge.recipe import write_recipe
from tasks.evolve_recipes import CHOICES, FRONT, RECIPE
from tasks.stage import Artifact, Output, stage


class ChooseConfig(Config):
    """What matters to whoever uses the model."""

    preference: dict[str, float] = Field(description="weights of tasks; tasks that are not named weigh 1")


@stage("choose-recipe", modules=["core.merge.front"])
def choose_recipe(out: Output, config: ChooseConfig, evolved: Artifact) -> None:
    """Write the front's recipe of the largest weighted validation score; nothing is searched or scored again."""
    front = Front.load(evolved.folder / FRONT)
    chosen = front.pick(config.preference)
    write_recipe(out.folder / RECIPE, json.loads((evolved.folder / CHOICES).read_text())[chosen])
    out.metrics({f"validation/{t}": float(s) for t, s in zip(front.tasks, front.scores[chosen], strict=True)})
