"""Train an adapter of a causal language model on one task: an expert of a few megabytes."""

import warnings

from pydantic import Field

from core.config import Config
from core.data.tasks import load_task
from core.merge.adapter_experts import AdapterConfig
from core.merge.adapter_experts import train_adapter as adapt
from core.merge.experts import TASK, load_expert
from core.state import write_json
from tasks.costed import costed
from tasks.load_model import opened
from tasks.stage import Artifact, Output, stage

# peft reads it of every transformers model; it tells the user nothing
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


class TrainAdapterConfig(Config):
    """One expert."""

    task: str = Field(description="task the adapter is trained on")
    adapter: AdapterConfig = Field(description="how it is trained")


@stage("train-adapter", modules=["core.merge.adapter_experts"])
@costed
def train_adapter(out: Output, config: TrainAdapterConfig, base: Artifact, data: Artifact) -> None:
    """Train a LoRA adapter of the base on a task's prompts and answers."""
    folder = adapt(config.task, opened(base), config.adapter)
    out.link(folder)
    write_json(out.folder / TASK, load_task(config.task).model_dump(mode="json", by_alias=True))
    card = load_expert(folder).card
    out.budget({"train_labels": card["train_labels"], "train_examples": card["train_examples"]})
