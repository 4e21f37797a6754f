"""Several merge candidates in one forward of an accelerator: their weights stacked, the texts shared.

A mini-batch is a few hundred short texts: little work for a GPU, in many launches. Stacked, k candidates take as many
launches as one. Parameters that no expert moved (embeddings, usually) stay single.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil

from core.merge.candidate import InMemoryModel, match_name
from core.merge.fitness import Fitness
from core.merge.objectives import EncoderObjective, Scored, mixed_batches, score_encoder
from core.merge.population import PopulationFitness

MOST = 64  # candidates in one forward where nothing else is asked: more than a generation has
# What a layer holds at a time, in float32 values a token: widths of the model (the feed-forward part alone is 4,
# twice), and copies of the scores of attention heads of the narrowest kind. BERT encoders peaked at half of it.
WIDTHS, SCORES, HEAD = 32, 4, 32


def together(fitness: Fitness, most: int | None = None) -> Fitness:
    """The fitness that scores up to ``most`` candidates in one forward, within half of the memory that is free now.

    Args:
        most: None takes many where the model is on a CUDA device, else one; one is ``fitness`` itself.

    Raises:
        ValueError: a task that is not encoder classification; only those share a forward.
    """
    device = fitness.model.device
    most = most or (MOST if device.type == "cuda" else 1)
    if most == 1:
        return fitness
    for name, objective in fitness.objectives.items():
        if not isinstance(objective, EncoderObjective):
            raise ValueError(
                f"{most} candidates together: task {name!r} is a {type(objective).__name__}, only encoder "
                "classification tasks share a forward; score one candidate at a time"
            )
    return PopulationFitness.of(fitness, Batched(most, free_memory(device) // 2))


@dataclass(frozen=True)
class Batched:
    """A :class:`core.merge.population.Generation` on one device.

    Args:
        most: candidates in one forward at most.
        memory: bytes that their weights and activations may take; fewer candidates are taken where they would take
            more, but always one.
    """

    most: int
    memory: int

    def __call__(
        self, fitness: Fitness, candidates: Sequence[np.ndarray], round_: int, parts: int
    ) -> list[list[dict[str, Scored]]]:
        wanted = {t: fitness.indices(t, round_) for t in fitness.tasks}
        batches = mixed_batches(fitness.objectives, wanted, fitness.model.device)
        size = max(1, min(self.most, self.memory // candidate_bytes(fitness.model, batches)))
        answers = []
        for at in range(0, len(candidates), size):
            started = time.perf_counter()
            weights = merge_stacked(fitness.model, candidates[at : at + size])
            fitness.clock.merging += time.perf_counter() - started
            started = time.perf_counter()
            answers += [cut(s, parts) for s in score_stacked(fitness, weights, wanted, batches)]
            fitness.clock.scoring += time.perf_counter() - started
        fitness.clock.candidates += len(candidates)
        return answers


def merge_stacked(model: InMemoryModel, candidates: Sequence[np.ndarray]) -> Any:
    """Merged weights of k candidates [n, g], a tensor [k, P] in the dtype of scoring."""
    import torch

    coefficients = torch.tensor(np.array(candidates), dtype=torch.float32, device=model.device)
    out = torch.empty(len(candidates), model.vectors.size, dtype=model.dtype, device=model.device)
    for group, start, stop in model.slices:
        out[:, start:stop] = torch.addmm(model.base[start:stop], coefficients[:, :, group], model.deltas[:, start:stop])
    return out


def score_stacked(
    fitness: Fitness, weights: Any, wanted: Mapping[str, np.ndarray], batches: Sequence[Any]
) -> list[dict[str, Scored]]:
    """Per-example scores of each row of ``weights`` [k, P], from one forward a batch."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    encoder = fitness.model.model
    names = dict(encoder.named_parameters())
    stacked = {
        match_name(t.name, names): weights[:, t.start : t.stop].view(len(weights), *t.shape)
        for t in fitness.model.vectors.tensors
    }

    def embed(parameters: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
        return torch.func.functional_call(encoder, parameters, (batch,))

    # Fused attention kernels know no candidates' axis; the mathematical form is matrix products, which do.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
        run = torch.func.vmap(embed, in_dims=(0, None))
        embedded = [(rows, run(stacked, batch).float().cpu()) for rows, batch in batches]
    given = Embedded(encoder.width)
    return [
        score_encoder(given, fitness.objectives, wanted, [(rows, e[i]) for rows, e in embedded])
        for i in range(len(weights))
    ]


@dataclass(frozen=True)
class Embedded:
    """Stands where the encoder stands when its outputs are known: a batch is its embeddings [B, H]."""

    width: int

    def __call__(self, batch: Any) -> Any:
        return batch


def cut(scored: Mapping[str, Scored], parts: int) -> list[dict[str, Scored]]:
    """Scores of a whole mini-batch as those of its pieces (the cut of :meth:`Fitness.pieces`)."""
    split = {t: (np.array_split(s.correct, parts), np.array_split(s.soft, parts)) for t, s in scored.items()}
    return [{t: Scored(correct[n], soft[n]) for t, (correct, soft) in split.items()} for n in range(parts)]


def candidate_bytes(model: InMemoryModel, batches: Sequence[Any]) -> int:
    """Bytes that one candidate more takes at most: its weights, their float32 sum, a layer's values of a batch."""
    weights = model.vectors.size * (model.dtype.itemsize + 4)
    shapes = [tuple(batch["input_ids"].shape) for _, batch in batches]
    widths = max(rows * length * (WIDTHS + SCORES * length / HEAD) for rows, length in shapes)
    return int(weights + 4 * model.model.width * widths)


def free_memory(device: Any) -> int:
    """Free bytes of a CUDA device, or of this machine."""
    import torch

    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
