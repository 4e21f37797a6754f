"""Learn what a source table, or an earlier search, knows about architectures, as one portable file."""

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field

from core.config import Config
from core.nas.arena import Arena
from core.nas.oracles import get_oracle
from core.nas.source import LABELS, Source, learn_source
from core.nas.spaces import Genotype, get_space
from core.state import Cache, write_json
from tasks.load_table import path_in
from tasks.stage import Artifact, Output, stage

FILE, TRIALS, LABELLED = "source", "trials.json", "labels.json"
LEAST = 20  # labelled cells that a source is learned from


class OracleConfig(Config):
    """An oracle by name."""

    name: str = Field(description="registered oracle")
    settings: dict[str, Any] = Field(default_factory=dict, description="data set, seed and what else it takes")

    def open(self, **more: Any) -> Any:
        return get_oracle(self.name, **{**self.settings, **more})


class LearnConfig(Config):
    """What is learned from."""

    name: str = Field(description="how reports call the source")
    oracle: OracleConfig
    labels: int = Field(LABELS, ge=20, description="labelled cells of the source that train the predictor")
    seed: int = 0


@stage("learn-source", modules=["core.nas.source", "core.nas.oracles.nb201", "core.nas.oracles.nasbench_graph"])
def learn(out: Output, config: LearnConfig, table: Artifact | None = None) -> None:
    """Labels of a source space cost nothing on the target; they are counted as ``train_labels`` of the source.

    ``table``: the user's own table that the oracle reads; its rows stay at home, so only elites are written.
    """
    oracle = config.oracle.open(**path_in(table))
    pool = oracle.pool()
    if pool is None:
        raise ValueError(f"a source needs a table with labels; oracle {config.oracle.name!r} answers queries only")
    mean = "valid_mean" if "valid_mean" in oracle.report else None
    labels = oracle.references(mean) if mean else np.asarray(oracle.answers)
    rows = np.random.default_rng(config.seed).permutation(len(pool))[: config.labels]
    cells = [pool[i] for i in rows]
    arena = Arena(oracle.space, cells, cache=Cache())
    facts = {"oracle": oracle.describe(), "inputs": dict(oracle.inputs)}
    learned = learn_source(config.name, arena, cells, labels[rows], seed=config.seed, facts=facts)
    learned.save(out.folder / FILE)
    if table is None:
        known = zip(map(oracle.space.format, cells), labels[rows].tolist(), strict=True)
        write_json(out.folder / LABELLED, dict(known))
    out.metrics({"labels": len(rows), "best": float(labels[rows].max())})


class TrialsConfig(Config):
    """What an earlier search measured."""

    name: str = Field(description="how reports call the source")
    seed: int = 0


@stage("learn-from-search", modules=["core.nas.source"])
def learn_from_search(out: Output, config: TrialsConfig, searches: list[Artifact]) -> None:
    """The trials of earlier searches of one target teach as a table does; a cell asked twice counts with its mean."""
    learned = learn_trials(config.name, searches, config.seed)
    learned.save(out.folder / FILE)
    out.metrics({"labels": learned.facts["labels"], "best": learned.scores[0]})


def learn_trials(name: str, searches: Sequence[Artifact], seed: int) -> Source:
    """What searches of one target measured, as a source.

    Raises:
        ValueError: fewer than :data:`LEAST` different cells.
    """
    found = trials(searches)
    told = _told(searches[0])
    space = get_space(told["space"], **told.get("settings", {}))
    cells, labels = [space.parse(text) for text in found], np.array([np.mean(v) for v in found.values()])
    arena = Arena(space, cells, cache=Cache())
    return learn_source(name, arena, cells, labels, seed=seed, facts={"searches": [a.sha256 for a in searches]})


def trials(searches: Sequence[Artifact]) -> dict[str, list[float]]:
    """Cell -> its scores over all searches."""
    found: dict[str, list[float]] = defaultdict(list)
    for artifact in searches:
        for trial in _told(artifact)["trials"]:
            if trial["score"] is not None and np.isfinite(trial["score"]):
                found[trial["cell"]].append(float(trial["score"]))
    return dict(found)


def by_target(searches: Sequence[Artifact]) -> dict[str, list[Artifact]]:
    """Target (space and data) -> its searches, where they asked enough different cells to learn from."""
    found: dict[str, list[Artifact]] = defaultdict(list)
    for artifact in searches:
        found[str(artifact.rows()[0].settings["target"])].append(artifact)
    return {target: group for target, group in found.items() if len(trials(group)) >= LEAST}


def _told(artifact: Artifact) -> dict[str, Any]:
    return json.loads((artifact.folder / TRIALS).read_text())


def read_source(artifact: Artifact) -> Source:
    return Source.load(artifact.folder / FILE)


def read_labelled(artifact: Artifact) -> tuple[list[Genotype], np.ndarray]:
    """Cells of the source's space and what was measured of them ``[n]``: the elites where its stage wrote no labels."""
    path = artifact.folder / LABELLED
    learned = read_source(artifact)
    if not path.is_file():
        return list(learned.elites), np.array(learned.scores)
    known = json.loads(path.read_text())
    return [learned.home.parse(text) for text in known], np.array(list(known.values()))
