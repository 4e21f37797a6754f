"""Align heads: fit every task's head to answer on a merged encoder as its expert answers on its own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from safetensors.numpy import load_file, save_file

from core.config import Config
from core.merge.align import Head, align, embed
from core.merge.objectives import EncoderObjective
from core.merge.suite import objectives
from core.models.load import load_encoder
from core.models.score import autocast
from core.progress import progress
from tasks.costed import costed
from tasks.merge_static import best_on_validation, experts_of
from tasks.stage import Artifact, Output, stage

HEADS, SUFFIX = "heads.safetensors", " with aligned heads"


class AlignConfig(Config):
    """On how many texts."""

    examples: int = Field(200, ge=20, description="unlabelled texts a task, drawn from its validation data")
    max_length: int = Field(64, ge=8, description="longest text in tokens")
    seed: int = Field(0, description="draw of the texts")


@stage("align-heads", modules=["core.merge.align", "core.merge.suite"])
@costed
def align_heads(
    out: Output,
    config: AlignConfig,
    experts: Mapping[str, Artifact],
    merged: Mapping[str, Artifact],
    tuned: Artifact | None = None,
) -> None:
    """Write the aligned heads of merged models; of the static merge that was best on validation where scales are given.

    Labels are not read. The budget counts each text that an expert or a merged model reads.
    """
    found = experts_of(experts)
    chosen = [best_on_validation(tuned)] if tuned is not None else list(merged)
    tasks: dict[str, EncoderObjective] = {}
    targets, own = {}, {e.task: Head(*e.head()) for e in found}
    for expert in progress(found, "read by experts", unit="expert"):
        encoder = _opened(expert.folder, config)
        tasks |= objectives(encoder, [expert], "validation", config.examples, config.seed)
        targets[expert.task] = own[expert.task].logits(_embed(encoder, {expert.task: tasks[expert.task]})[expert.task])
    read = float(sum(t.size for t in tasks.values()))
    kept: dict[str, np.ndarray] = {}
    for name in progress(chosen, "align heads", unit="model"):
        encoder = _opened(model_folder(merged[name]), config)
        for task, x in _embed(encoder, tasks).items():
            aligned = align(x, targets[task], own[task], config.seed)
            kept |= {f"{name}/{task}/weight": aligned.head.weight, f"{name}/{task}/bias": aligned.head.bias}
            out.metrics({f"strength/{name}/{task}": aligned.strength})
    save_file(kept, out.folder / HEADS)
    out.budget({"unlabelled_texts": read * (1 + len(chosen))})


def aligned_heads(artifact: Artifact) -> dict[str, dict[str, Head]]:
    """Model -> task -> its aligned head."""
    tensors, found = load_file(artifact.folder / HEADS), {}
    for key in tensors:
        name, task, part = key.rsplit("/", 2)
        if part == "weight":
            found.setdefault(name, {})[task] = Head(tensors[key], tensors[f"{name}/{task}/bias"])
    return found


def texts_read(artifact: Artifact) -> dict[str, float]:
    """What the aligned heads of one model took: each text read by its expert and by the model."""
    models = 1 + len(aligned_heads(artifact))
    return {unit: 2 * amount / models for unit, amount in artifact.facts()["budget"].items()}


def model_folder(artifact: Artifact) -> Path:
    """Where the encoder of a merge or an expert lies."""
    inner = artifact.folder / "model"
    return inner if inner.is_dir() else artifact.folder


def _opened(folder: Path, config: AlignConfig) -> Any:
    encoder = load_encoder(folder)
    encoder.max_length = min(config.max_length, encoder.max_length)
    return encoder


def _embed(encoder: Any, tasks: Mapping[str, EncoderObjective]) -> dict[str, np.ndarray]:
    with autocast(encoder.device):
        return embed(encoder, tasks)
