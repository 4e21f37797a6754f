"""Take an adapter that was trained elsewhere as the expert of a task, beside those that the flow trains itself."""

from pydantic import Field

from core.config import Config
from core.data.tasks import load_task
from core.merge.experts import load_expert
from core.merge.own_adapter import own_adapter
from tasks.costed import costed
from tasks.load_model import ADAPTER, opened
from tasks.stage import Artifact, Output, stage


class TakeAdapterConfig(Config):
    """Whose expert it is, and how its task is asked."""

    task: str = Field(description="task the adapter was trained on")
    max_words: int = Field(40, ge=1, description="texts are cut after this many words (pairs: each)")


@stage("take-adapter", modules=["core.merge.own_adapter"])
@costed
def take_adapter(out: Output, config: TakeAdapterConfig, model: Artifact, base: Artifact, data: Artifact) -> None:
    """Write the adapter as an expert of the base; one that a flow made before keeps its card.

    Raises:
        ValueError: a whole model, or an adapter of another base, of another kind, or of another task.
    """
    source = opened(model)
    if not (model.folder / ADAPTER).is_file():
        raise ValueError(
            f"{source.name} is no adapter ({ADAPTER} is missing): experts of a language model are LoRA adapters; make "
            "one of a fine-tuned model with core.merge.lora_extract.extract_lora(base, model, out)"
        )
    own_adapter(source, load_task(config.task), opened(base), config.max_words, out.folder)
    card = load_expert(out.folder).card
    out.budget({"train_labels": card["train_labels"], "train_examples": card["train_examples"]})
