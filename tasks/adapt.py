"""Fit one strategy from one source on the target, over seeds and sizes."""

import json
from pathlib import Path

import numpy as np
from pydantic import Field

from core.config import Config
from core.data.tasks import load_task
from core.evaluate.rows import Row
from core.hashing import code_version
from core.progress import progress
from core.state import write_json
from core.transfer.experiment import DataSteps, Trial, run_trial, test_of
from core.transfer.sources import Source, save_source
from core.transfer.strategies import Fitted, StrategyConfig
from tasks.quote_mistakes import keep_answers
from tasks.sources import opened
from tasks.stage import Artifact, Output, stage

MODULES = ["core.transfer.experiment", "core.transfer.strategies.full", "core.transfer.strategies.peft_methods",
           "core.transfer.strategies.adapter", "core.transfer.strategies.share", "core.transfer.strategies.scratch",
           "core.transfer.strategies.linear_probe", "core.transfer.strategies.own_classifier"]  # fmt: skip
CORRECT, WHY, MODEL = "correct.npz", "why.json", "model"
KEPT = ("full", "freeze", "scratch")  # whole text encoders; what peft and adapters train lives inside the source


class AdaptConfig(Config):
    """One strategy, measured."""

    strategy: str = Field(description="name of the strategy")
    source: str = Field(description="name of the source in the report")
    target: str = Field(description="target task")
    modality: str = Field(description="what the source reads")
    sizes: tuple[int, ...] = Field(description="training sizes; the last is the one reported in detail")
    seeds: tuple[int, ...] = Field(description="seeds of sample and training")
    test_examples: int | None = Field(description="test examples; none takes all")
    steps: DataSteps = Field(description="data stages")
    training: StrategyConfig = Field(description="how the strategy trains")
    max_length: int = Field(description="longest text in tokens")
    keep_model: bool = Field(False, description="keep the trained model of the last size and first seed")
    keep_answers: bool = Field(False, description="keep test answers of the last size and first seed")
    profile: bool = Field(False, description="write a trace of the first fit")


@stage("adapt", modules=MODULES)
def adapt(out: Output, config: AdaptConfig, source: Artifact, data: Artifact) -> None:
    """Run every size and seed; write rows, which test examples were right, and why."""
    template = load_task(config.target).causal_template
    opened_ = opened(source, config.modality, config.max_length, template)
    opened_.name = config.source
    version = code_version(MODULES)
    rows: list[Row] = []
    correct: dict[str, np.ndarray] = {}
    cells = [(n, seed) for n in config.sizes for seed in config.seeds]
    for n, seed in progress(cells, f"{config.strategy} from {config.source}", unit="run"):
        last = n == config.sizes[-1]
        trial = Trial(
            strategy=config.strategy,
            examples=n,
            seed=seed,
            test_examples=config.test_examples,
            steps=config.steps,
            training=config.training,
            explain=last and seed == config.seeds[0],
        )
        trace = str(out.folder / "trace") if config.profile and (n, seed) == cells[0] else ""
        outcome = run_trial(opened_, config.target, trial, version, trace)
        rows += outcome.rows
        if outcome.correct is not None and last:
            correct[str(seed)] = outcome.correct
        if config.keep_model and trial.explain:
            keep(out.folder / MODEL, outcome.fitted, config, opened_)
        if config.keep_answers and trial.explain:
            answers = outcome.fitted.predict(test_of(config.target, config.steps, config.test_examples))
            name = f"{config.strategy} from {config.source}"
            keep_answers(out.folder, {(name, load_task(config.target).name): answers.probabilities})
        if outcome.why:
            write_json(out.folder / WHY, outcome.why)
            out.curve("loss", list(enumerate(outcome.why["losses"])))
    out.rows(rows)
    np.savez(out.folder / CORRECT, **correct)
    spent: dict[str, float] = {}
    for r in {json.dumps(r.settings, sort_keys=True) + str(r.seed): r for r in rows}.values():
        for unit, amount in r.budget.items():
            spent[unit] = spent.get(unit, 0) + amount
    out.budget(spent)


def keep(folder: Path, fitted: Fitted, config: AdaptConfig, source: Source) -> None:
    """Write the trained encoder with its output layer; ``core.transfer.sources.open_source(folder)`` reads it again.

    Raises:
        ValueError: a strategy or modality whose model is no whole text encoder with an output layer.
    """
    if config.modality != "text" or fitted.strategy not in KEPT or getattr(fitted.net, "head", None) is None:
        raise ValueError(
            f"keep_model writes text encoders trained by {', '.join(KEPT)}, not {config.modality} by {fitted.strategy}"
        )
    task = load_task(config.target)
    save_source(
        Source(f"{source.name} + {task.name}", fitted.net.body, fitted.net.head, task.labels, config.target), folder
    )
