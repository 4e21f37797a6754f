"""The common start of all students: a structure cut from the original, warmed up once, written with its hash.

What a cut breaks is repaired before any task is learned: the cut learns the original's sentence embeddings on the
tasks' unlabelled texts (cosine, the mean embedding subtracted). Every student of the chain begins at these weights, so
their differences are task vectors of one base and can be merged.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from core.config import Config
from core.data.examples import Examples
from core.hashing import content_key, sha256_file
from core.models.train import TrainConfig
from core.nas.spaces.transformer_student import StudentShape, TransformerStudent
from core.state import write_json
from core.transfer.budget import Budget

CARD, WEIGHTS = "start.json", "model.safetensors"


class WarmUp(Config):
    """How the cut learns the original's embeddings."""

    examples: int = Field(ge=1, description="texts trained on, repetitions counted (whole steps, never fewer)")
    batch_size: int = Field(32, ge=1, description="texts in a step")
    lr: float = Field(2e-4, gt=0, description="peak learning rate (AdamW)")
    max_length: int = Field(64, ge=8, description="texts are cut after so many tokens")


@dataclass(frozen=True)
class Start:
    """A written start."""

    folder: Path
    structure: str
    original: str
    sha256: str
    tensors: dict[str, list[int]]


def load_start(folder: str | Path) -> Start:
    """The start in ``folder``.

    Raises:
        ValueError: none there, or its weights are not the ones that its card names.
    """
    path = Path(folder) / CARD
    if not path.is_file():
        raise ValueError(f"{folder} holds no cut start ({CARD} is missing); make one with core.chain.start.make_start")
    card = json.loads(path.read_text())
    found = sha256_file(Path(folder) / WEIGHTS)
    if found != card["weights_sha256"]:
        raise ValueError(f"{folder}: weights {found[:12]} are not those of {CARD} ({card['weights_sha256'][:12]})")
    return Start(Path(folder), card["structure"], card["original"], found, card["tensors"])


def make_start(
    original: Any,
    space: TransformerStudent,
    shape: StudentShape,
    texts: Sequence[Examples],
    config: WarmUp,
    folder: Path,
    *,
    seed: int,
    budget: Budget | None = None,
) -> Start:
    """Cut ``shape`` from ``original`` (a :class:`core.models.encoder.TextEncoder`), warm it up, write it to ``folder``.

    ``folder`` is then a model that ``transformers`` opens, with ``start.json`` beside the weights. A killed warm-up
    continues from its checkpoint there.

    Raises:
        ValueError: a structure of another space, or one that is no ordinary model (layers of different sizes).
    """
    from core.merge.task_vectors import read_tensors
    from core.models.cut import cut
    from core.models.encoder import TextEncoder
    from core.models.quiet import quietly

    space.check(shape)
    kept = {layer for layer in shape.layers if layer is not None}
    if len(kept) > 1 or next(iter(kept))[0] != space.heads[-1]:
        raise ValueError(f"{space.format(shape)}: a start keeps all heads and one width in all layers")
    backbone = cut(original.backbone, space.cuts(shape))
    backbone.config.intermediate_size = next(iter(kept))[1]
    digest = content_key(original.sha256, space.format(shape))
    length = min(config.max_length, original.max_length)
    student = TextEncoder(backbone, original.tokenizer, f"{original.name} cut", digest, length)
    before, after = _warm_up(original, student, texts, config, folder / "warm-up.ckpt", seed, budget)
    quietly(backbone.save_pretrained, folder)
    original.tokenizer.save_pretrained(folder)
    card = {
        "structure": space.format(shape),
        "original": original.name,
        "original_sha256": original.sha256,
        "weights_sha256": sha256_file(folder / WEIGHTS),
        "tensors": {name: list(size) for name, size in sorted(read_tensors(folder).items())},
        "parameters": sum(p.numel() for p in backbone.parameters()),
        "agreement": {"cut": before, "warmed up": after},
        "warm_up": config.model_dump(mode="json"),
    }
    write_json(folder / CARD, card)
    return load_start(folder)


def _warm_up(original, student, texts, config: WarmUp, checkpoint: Path, seed: int, budget) -> tuple[float, float]:
    """Train in place; mean cosine with the original (centred) before and after."""
    import torch

    from core.models.score import score
    from core.models.train import train

    tokens = [student.tokenize(part.texts, part.pairs) for part in texts]
    tokens = sum(tokens[1:], tokens[0])
    targets = score(original, tokens, description=f"embed {original.name}")[0]
    mean = torch.from_numpy(targets.mean(0)).to(student.device)
    goal = torch.from_numpy(targets).to(student.device) - mean

    def agreement() -> float:
        ours, theirs = score(student, tokens, description="agreement")[0] - targets.mean(0), targets - targets.mean(0)
        norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
        return float(((ours * theirs).sum(1) / np.maximum(norms, 1e-12)).mean())

    def loss(model: Any, indices: np.ndarray) -> Any:
        vectors = model(tokens.batch(indices, student.device)) - mean
        return (1 - torch.nn.functional.cosine_similarity(vectors, goal[torch.from_numpy(indices)])).mean()

    before = agreement()  # a checkpoint is read by the training, later
    per_epoch = math.ceil(len(tokens) / config.batch_size)
    steps = math.ceil(config.examples / len(tokens) * per_epoch)
    schedule = TrainConfig(lr=config.lr, steps=steps, batch_size=config.batch_size, dropout=False)
    train(
        student,
        loss,
        tokens.lengths,
        schedule,
        seed=seed,
        checkpoint=checkpoint,
        budget=budget,
        description="warm up the cut",
    )
    checkpoint.unlink(missing_ok=True)
    student.eval()
    return before, agreement()
