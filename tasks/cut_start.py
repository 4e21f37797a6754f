"""Cut a structure out of the base and warm it up: the weights that every student of an arm starts from."""

import json
from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from core.chain.oracle import task_texts
from core.chain.start import WarmUp, make_start
from core.chain.structures import widths_space
from core.config import Config
from core.data.tasks import load_task
from core.state import write_json
from core.transfer.budget import Budget
from tasks.costed import costed
from tasks.load_model import ASSET, opened
from tasks.search_structure import TextsConfig, read_structure
from tasks.stage import Artifact, Output, stage

EVERYTHING = 10**9


class CutConfig(Config):
    """Which structure, and how its start is warmed up."""

    texts: TextsConfig
    structure: Literal["searched", "first layers"] = Field(description="what the search kept, or the first layers")
    warm_up: WarmUp = Field(
        description="the first layers train on the search's texts on top, so that budgets are equal"
    )


@stage("cut-start", modules=["core.chain.start", "core.chain.structures"])
@costed
def cut_start(
    out: Output, config: CutConfig, base: Artifact, prompts: Mapping[str, Artifact], search: Artifact
) -> None:
    """Write the start as a model folder; its facts carry structure and hash."""
    from core.models.load import load_encoder

    t, found, warm = config.texts, read_structure(search.folder), config.warm_up
    if config.structure == "first layers":
        spent = int(search.facts()["budget"]["train_examples"])
        warm = warm.model_copy(update={"examples": warm.examples + spent})
    original = load_encoder(opened(base))
    space = widths_space(original.backbone.config)
    shape = space.parse(found["structure" if config.structure == "searched" else "first"])
    parts = [
        task_texts(load_task(name), t.k, t.n, EVERYTHING, t.validation_examples, t.seed)["unlabelled"]
        for name in t.tasks
    ]
    budget = Budget("train_steps")
    start = make_start(original, space, shape, parts, warm, out.folder, seed=t.seed, budget=budget)
    asset = json.loads((base.folder / ASSET).read_text())
    write_json(out.folder / ASSET, {**asset, "name": f"{asset['name']} cut to {start.structure}"})
    out.facts |= {"structure": start.structure, "start_sha256": start.sha256, "original": base.sha256}
    card = json.loads((out.folder / "start.json").read_text())
    out.metrics({f"agreement/{k}": v for k, v in card["agreement"].items()} | {"parameters": card["parameters"]})
    out.budget(budget.counts)
