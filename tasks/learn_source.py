"""Learn what a source table knows about architectures, as one portable file."""

from typing import Any

import numpy as np
from pydantic import Field

from core.config import Config
from core.nas.arena import Arena
from core.nas.oracles import get_oracle
from core.nas.source import LABELS, Source, learn_source
from core.state import Cache
from tasks.stage import Artifact, Output, stage

FILE = "source"


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
def learn(out: Output, config: LearnConfig) -> None:
    """Labels of a source space cost nothing on the target; they are counted as ``train_labels`` of the source."""
    oracle = config.oracle.open()
    pool = oracle.pool()
    if pool is None:
        raise ValueError(f"a source needs a table with labels; oracle {config.oracle.name!r} answers queries only")
    known = "valid_mean" if "valid_mean" in oracle.report else None
    labels = oracle.references(known) if known else np.asarray(oracle.answers)
    rows = np.random.default_rng(config.seed).permutation(len(pool))[: config.labels]
    cells = [pool[i] for i in rows]
    arena = Arena(oracle.space, cells, cache=Cache())
    facts = {"oracle": oracle.describe(), "inputs": dict(oracle.inputs)}
    learned = learn_source(config.name, arena, cells, labels[rows], seed=config.seed, facts=facts)
    learned.save(out.folder / FILE)
    out.metrics({"labels": len(rows), "best": float(labels[rows].max())})


def read_source(artifact: Artifact) -> Source:
    return Source.load(artifact.folder / FILE)
