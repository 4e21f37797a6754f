"""Search one student structure for several tasks, among those of equal size; every query is a real distillation."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from core.chain.oracle import SharedStructure, task_texts
from core.chain.structures import equal_size, weights, widths_space
from core.config import Config
from core.data.tasks import load_task
from core.evaluate.rows import Row
from core.hashing import code_version, content_key
from core.nas.arena import Arena
from core.nas.oracles.student import StudentSettings
from core.nas.search import incumbent, search_architectures
from core.nas.searchers import Knowledge, get_searcher
from core.state import Cache, write_json
from core.transfer.budget import Budget
from tasks.costed import costed
from tasks.load_model import opened
from tasks.stage import Artifact, Output, stage

MODULES = ["core.chain.oracle", "core.chain.structures", "core.nas.search", "core.nas.searchers.guided",
           "core.nas.searchers.generic", "core.nas.searchers.local_search"]  # fmt: skip
FOUND = "structure.json"
DESIGN = 4  # random structures before the predictor speaks
Searcher = Literal["predictor_onehot", "random", "rea", "local_search"]  # those that tell kept layers apart


class TextsConfig(Config):
    """Which texts of which tasks."""

    tasks: tuple[str, ...] = Field(description="built-in names or task files")
    k: int = Field(ge=1, description="labelled examples per class")
    n: float = Field(gt=0, description="unlabelled pool, as a multiple of the labelled examples")
    validation_examples: int = Field(ge=10, description="validation examples a task")
    max_length: int = Field(ge=8, description="longest text in tokens")
    seed: int = Field(0, description="draws")


class SearchStructureConfig(Config):
    """What is searched, and how long."""

    texts: TextsConfig
    keep: int = Field(ge=1, description="structures are of the size of the first so many layers")
    queries: int = Field(ge=1, description="structures that are distilled and judged")
    unlabelled: int = Field(ge=8, description="texts a task in one query")
    searcher: Searcher = Field("predictor_onehot", description="registered searcher that needs no source")


@stage("search-structure", modules=MODULES)
@costed
def search_structure(
    out: Output, config: SearchStructureConfig, base: Artifact, prompts: Mapping[str, Artifact]
) -> None:
    """Write the structure that is kept, every structure asked, and what all that took."""
    from core.models.load import load_encoder

    t = config.texts
    original = load_encoder(opened(base))
    original.max_length = min(t.max_length, original.max_length)
    space = widths_space(original.backbone.config)
    cells = equal_size(space, config.keep)
    texts = {
        load_task(name).name: task_texts(load_task(name), t.k, t.n, config.unlabelled, t.validation_examples, t.seed)
        for name in t.tasks
    }
    settings = StudentSettings(epochs=1, max_length=t.max_length, lr=2e-4)
    budget = Budget("queries", min(config.queries, len(cells)))
    oracle = SharedStructure(original, space, texts, cells, settings, seed=t.seed, budget=budget)
    arena = Arena(space, cells, cache=Cache())
    given = {"initial": DESIGN} if config.searcher == "predictor_onehot" else {}
    searcher = get_searcher(config.searcher, arena, t.seed, Knowledge(noisy=True, runs=oracle.runs), **given)
    searcher.inject(cells[:1])  # the first layers are a candidate like any other, and asked first
    checkpoint = out.folder / "search.ckpt"
    result = search_architectures(oracle, searcher, checkpoint=checkpoint, key=content_key(config))
    checkpoint.unlink(missing_ok=True)
    kept = incumbent(searcher, result)
    trials = [
        {"structure": space.format(c.candidate), "score": c.score, "weights": weights(space, c.candidate)}
        for c in result.trials
    ]
    found = {"structure": space.format(kept), "first": space.format(cells[0]), "pool": len(cells), "trials": trials}
    write_json(out.folder / FOUND, found)
    out.rows(_rows(config, oracle, trials))
    out.curve("validation", [(i + 1, trial["score"]) for i, trial in enumerate(trials)])
    out.metrics({"pool": len(cells), "best": max(trial["score"] for trial in trials)})
    out.budget(oracle.budget.counts)


def _rows(config: SearchStructureConfig, oracle: SharedStructure, trials: list[dict]) -> list[Row]:
    """One row a query."""
    shared = {"oracle": oracle.describe(), "inputs": dict(oracle.inputs), "version": code_version(MODULES)}
    return [
        Row(
            method=config.searcher,
            metric="validation",
            value=trial["score"],
            seed=config.texts.seed,
            settings={"query": i, "structure": trial["structure"]},
            budget={"queries": i, "train_examples": i * oracle.examples},
            **shared,
        )
        for i, trial in enumerate(trials, 1)
    ]


def read_structure(folder: Path) -> dict:
    """What :func:`search_structure` found."""
    return json.loads((folder / FOUND).read_text())
