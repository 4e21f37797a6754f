"""An adapter that was trained elsewhere as the expert of a task: checked against the base, with an expert's card."""

import shutil
from pathlib import Path
from typing import Any

from core.hashing import sha256_file
from core.merge.adapter_experts import AdapterConfig
from core.merge.dtypes import decode
from core.merge.experts import CARD, TASK, load_expert
from core.merge.lora import CONFIG, WEIGHTS, Adapter, open_adapter, read_all
from core.merge.one_base import Descent
from core.merge.tensors import Checkpoint, FileSource, open_checkpoint
from core.models.load import Source
from core.state import write_json


def own_adapter(adapter: Source, task: Any, base: Source, max_words: int, out: Path) -> None:
    """Write an adapter as an expert of ``base`` into the folder ``out``; one that a flow made keeps its card.

    Args:
        adapter: folder of a peft LoRA adapter.
        task: :class:`core.data.tasks.Task` that it was trained on; it is asked by the task's causal template.
        base: folder of safetensors.
        max_words: texts are cut after so many words.

    Raises:
        FileNotFoundError: no peft adapter there.
        ValueError: an adapter of another kind or another base (tensors missing, of another shape, too far away), one
            that changes tied embeddings, holds NaN or changes nothing, or an expert of another task.
    """
    checkpoint = open_checkpoint(base.path)
    opened = open_adapter(adapter.path).bind(checkpoint)
    _check(opened, checkpoint, Descent(f"adapter {adapter.name}", adapter.path, base.name, base.path))
    for name in (CONFIG, WEIGHTS):
        shutil.copyfile(adapter.path / name, out / name)
    card = {"train_labels": 0, "train_examples": 0}  # spent elsewhere; nobody told how many
    if (adapter.path / CARD).is_file():
        made = load_expert(adapter.path)
        if made.task != task.name:
            raise ValueError(f"{adapter.path} is an adapter for task {made.task!r}, not for {task.name!r}")
        card = dict(made.card)
    else:
        config = AdapterConfig(max_words=max_words, rank=int(opened.config["r"]))
        card |= {"task": task.name, "config": config.model_dump(mode="json")}
    card |= {"model": adapter.name, "base": base.name, "base_sha256": base.sha256}
    write_json(out / CARD, card | {"weights_sha256": sha256_file(out / WEIGHTS)})
    write_json(out / TASK, task.model_dump(mode="json", by_alias=True))


def _check(adapter: Adapter, checkpoint: Checkpoint, descent: Descent) -> None:
    """Refuse what cannot be a fine-tuning of this base, tensor by tensor."""
    for name in adapter.names:
        info = checkpoint.tensors[name]
        start, source = read_all(info), adapter.source(name, FileSource(info))
        try:
            moved = decode(source.read(0, info.size), source.dtype).reshape(info.shape)
        finally:
            source.close()
        descent.add(name, start, moved - start)
    descent.check()
