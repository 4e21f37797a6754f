"""Train a source first: a model fine-tuned on a source data set becomes one more source, with its own output layer."""

from pydantic import Field

from core.config import Config
from core.data.tasks import load_task
from core.transfer.experiment import DataSteps, prepared, target_of
from core.transfer.sources import save_source, train_source
from core.transfer.strategies import StrategyConfig, fit
from tasks.sources import opened
from tasks.stage import Artifact, Output, stage


class TrainSourceConfig(Config):
    """Which source data set, and how much of it."""

    task: str = Field(description="source data set, a task")
    target: str = Field("", description="target task, whose test examples must not be learned from")
    examples: int = Field(1000, ge=8, description="its training examples")
    max_length: int = Field(64, ge=8, description="longest text in tokens")
    seed: int = Field(0, ge=0, description="draw, initialisation, batch order")


@stage("train-source", modules=["core.transfer.experiment", "core.transfer.strategies.full"], keep="nothing")
def train_on(out: Output, config: TrainSourceConfig, base: Artifact, data: Artifact) -> None:
    """Fine-tune a copy of the model on the source data set and keep its output layer."""
    source = opened(base, "text", config.max_length)
    foreign = prepared(config.target, DataSteps())[0].test.folded() if config.target else ()
    target = target_of(config.task, config.examples, config.seed, DataSteps(), without=foreign)
    left_out = len(set(foreign) & set(prepared(config.task, DataSteps())[0].train.folded()))
    settings = StrategyConfig(min_epochs=2, batch_size=32)
    labels = load_task(config.task).labels
    made = train_source(source, target, labels, lambda s, t: fit("full", s, t, settings, config.seed))
    made.task = config.task  # the name by which the task is found again
    save_source(made, out.folder)
    out.budget({"train_labels": len(target.train)})
    out.metrics({"left_out_as_test_of_target": left_out})
