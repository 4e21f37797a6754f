"""Fine-tune the base on one task: an expert, its head, and the probe of the frozen base as its twin."""

from pydantic import Field

from core.config import Config
from core.data.tasks import load_task
from core.merge.experts import TASK, ExpertConfig, load_expert
from core.merge.experts import train_expert as fine_tune
from core.models.load import Source
from core.state import write_json
from tasks.costed import costed
from tasks.stage import Artifact, Output, stage


class TrainExpertConfig(Config):
    """One expert."""

    task: str = Field(description="task the expert is trained on")
    expert: ExpertConfig = Field(description="how it is fine-tuned")


@stage("train-expert", modules=["core.merge.experts"])
@costed
def train_expert(out: Output, config: TrainExpertConfig, base: Artifact, data: Artifact) -> None:
    """Fine-tune a copy of the base on a task's training examples."""
    folder = fine_tune(config.task, Source(base.name, base.folder, base.sha256), config.expert)
    out.link(folder)
    write_json(out.folder / TASK, load_task(config.task).model_dump(mode="json", by_alias=True))
    card = load_expert(folder).card
    out.budget({"train_labels": card["train_labels"], "train_examples": card["train_examples"]})
