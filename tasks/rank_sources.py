"""Rank the sources and recommend a strategy, before any fine-tuning."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from pydantic import Field

from core.config import Config
from core.data.cleaning import FAULTS, PARTS, find_faults
from core.data.examples import Splits
from core.data.tasks import load_task
from core.evaluate.rows import Row
from core.hashing import code_version
from core.state import write_json
from core.transfer.experiment import DataSteps, prepared, target_of
from core.transfer.history import other_experiences
from core.transfer.recommend import Recommender, needs_head, rank_sources, similarity_rule
from core.transfer.situation import describe
from core.transfer.sources import Source
from core.transfer.strategies import StrategyConfig
from core.transfer.target import Target, kind_of
from tasks.sources import opened
from tasks.stage import Artifact, Output, stage
from tasks.try_strategies import try_strategies

MODULES = ["core.transfer.recommend", "core.transfer.situation", "core.transfer.experiment", "core.transfer.history"]
RANKING, CHANGES, FOUND = "ranking.json", "changes.json", "faults.json"


class RankConfig(Config):
    """On which target, by which score, from which history."""

    target: str = Field(description="target task")
    modality: str = Field(description="what the sources read")
    examples: int = Field(description="training examples of the target")
    seed: int = Field(description="draw of the training examples")
    steps: DataSteps = Field(description="data stages")
    score: str = Field(description="transferability score that ranks")
    strategies: tuple[str, ...] = Field(description="strategies to choose from")
    training: StrategyConfig = Field(StrategyConfig(), description="how they will train, for the forecast of seconds")
    budget_s: float | None = Field(None, description="largest predicted seconds of a strategy")
    max_length: int = Field(description="longest text in tokens")
    history: str = Field(description="file of past transfers")
    history_sha256: str = Field(description="hash of what it says of other targets and sizes")


def check_score(score: str, sources: Mapping[str, Source]) -> None:
    """Refuse a score that no source can have, before any fine-tuning.

    Raises:
        ValueError: it needs a source's own classes, and none has an output layer.
    """
    if needs_head(score) and not any(source.labels for source in sources.values()):
        raise ValueError(
            f"score {score!r} compares the classes of a source with the target's; none of {', '.join(sources)} has an "
            "output layer of its own: give a classifier, name source data sets in source_tasks, or take logme"
        )


@stage("rank-sources", modules=MODULES)
def rank(out: Output, config: RankConfig, sources: Mapping[str, Artifact], data: Artifact) -> None:
    """Clean the data, measure every source's situation, rank sources by the score, forecast strategies."""
    task = load_task(config.target)
    cleaned, changes = prepared(config.target, config.steps)
    target = target_of(config.target, config.examples, config.seed, config.steps, config.modality)
    open_ = {k: opened(a, config.modality, config.max_length, task.causal_template) for k, a in sources.items()}
    check_score(config.score, open_)
    for key, source in open_.items():
        source.name = key
        try_strategies(source, target, config.strategies, config.seed)
    keys = {id(s): k for k, s in open_.items()}
    ranked = [(keys[id(s)], value) for s, value in rank_sources(list(open_.values()), target, config.score)]
    known = other_experiences(Path(config.history), task.name, config.examples, kind_of(task), config.modality)
    recommender = Recommender().fit(known)
    passes = len(target.train) * config.training.epochs(len(target.train))
    found, rows = {}, []
    for key, source in open_.items():
        situation = describe(source, target, task.labels, config.seed) | {"tokens": tokens_of(source, target)}
        advice = recommender.recommend(situation, config.strategies, config.budget_s, passes)
        found[key] = {"situation": situation, "advice": asdict(advice), "rule": similarity_rule(situation)}
        facts = {"settings": {"source": key, "target": task.name, "n": config.examples}, "seed": config.seed}
        facts |= {"inputs": {"source": source.sha256, "train": target.train.sha256}, "version": code_version(MODULES)}
        rows += [Row(method="before", metric=name, value=value, **facts) for name, value in situation.items()]
        rows.append(Row(method="recommender", metric="confidence", value=advice.confidence, **facts))
    write_json(out.folder / RANKING, {"score": config.score, "ranked": ranked, "sources": found})
    write_json(out.folder / CHANGES, [asdict(c) for c in changes])
    write_json(out.folder / FOUND, faults_of(task.splits(), cleaned))
    out.rows(rows)


def tokens_of(source: Source, target: Target) -> float:
    """Mean length of the training examples as the source reads them: what a pass over one costs grows with it."""
    return float(np.mean(source.original.inputs(target.train).lengths))


def faults_of(splits: Splits, cleaned: Splits) -> dict[str, dict[str, dict[str, int]]]:
    """Every fault of every part, whether it was to be removed or not: ``{part: {fault: {"found", "left"}}}``.

    Args:
        splits: the data as they came.
        cleaned: what the data stages made of them.
    """
    found, left = find_faults(splits), find_faults(cleaned)
    return {p: {f: {"found": len(found[p][f]), "left": len(left[p][f])} for f in FAULTS} for p in PARTS}
