"""Tiny experts of one base: three word-spotting tasks on a two-layer BERT, fine-tuned for real in a second."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from core.data.examples import Examples, Splits
from core.merge.basis import in_basis
from core.merge.candidate import InMemoryModel
from core.merge.experts import ExpertConfig, load_expert, train_expert
from core.merge.fitness import Fitness
from core.merge.objectives import EncoderObjective
from core.merge.problem import MergeProblem, own_logits
from core.merge.recipe_space import RecipeSpace, SpaceConfig
from core.merge.task_vectors import task_vectors
from core.models.load import load_encoder
from core.models.train import TrainConfig
from core.state import Cache
from tests import tiny_models as tiny

CONFIG = ExpertConfig(
    examples=96,
    max_length=16,
    train=TrainConfig(lr=5e-3, head_lr=1e-2, epochs=12, batch_size=16, precision="float32", dropout=False),
)
SIGNS = {"good": ("good", "bad"), "plot": ("plot", "actor"), "dark": ("dark", "bright")}


@dataclass(frozen=True)
class WordTask:
    """Which of two words is in the text."""

    name: str
    words: tuple[str, ...]
    kind: str = "single"
    labels: tuple[str, ...] = ("first", "second")
    metric: str = "accuracy"
    sizes: tuple[int, int, int] = field(default=(128, 60, 80))

    def splits(self, seed: int = 0) -> Splits:
        rng = np.random.default_rng([seed, *map(ord, self.name)])
        parts = []
        for n in self.sizes:
            labels = [int(v) for v in rng.integers(0, 2, n)]
            texts = []
            for label in labels:
                words = list(rng.choice(["a", "the", "movie", "film", "music", "it", "was", "scene"], 6))
                words[int(rng.integers(6))] = self.words[label]
                texts.append(" ".join(words))
            parts.append(Examples(texts, None, labels))
        return Splits(*parts)


def tasks(names=("good", "plot", "dark")) -> list[WordTask]:
    return [WordTask(n, SIGNS[n]) for n in names]


def base_folder(folder: Path, seed: int = 0) -> Path:
    encoder = tiny.encoder(width=16, layers=2, seed=seed)
    with torch.no_grad():  # weights of a useful size, so that fine-tuning moves them by a part of it
        for parameter in encoder.backbone.parameters():
            if parameter.ndim > 1:
                parameter.mul_(10)
    encoder.backbone.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    return folder


@dataclass
class World:
    """Base, experts, raw task vectors and validation objectives."""

    base: Path
    folders: dict[str, Path]
    cache: Cache

    @property
    def vectors(self):
        return task_vectors(self.base, self.folders, self.cache)

    def encoder(self):
        return load_encoder(self.base, device="cpu")

    def objectives(self, split: str = "validation") -> dict[str, EncoderObjective]:
        encoder = self.encoder()
        out = {}
        for task in tasks(tuple(self.folders)):
            examples = getattr(task.splits(), split)
            head = load_expert(self.folders[task.name]).head()
            tokens = encoder.tokenize(examples.texts)
            out[task.name] = EncoderObjective(task.name, tokens, np.array(examples.labels), *head)
        return out


def world(root: Path) -> World:
    base, cache = base_folder(root / "base"), Cache(root / "cache")
    folders = {t.name: train_expert(t, base, CONFIG, cache) for t in tasks()}
    return World(base, folders, cache)


def problem(world: World) -> MergeProblem:
    """The search problem of the world's three experts, a coefficient for every expert and layer."""
    vectors = in_basis(world.vectors, "raw", world.cache)
    space = RecipeSpace(vectors, SpaceConfig(basis="raw", granularity="layers"))
    targets = own_logits(InMemoryModel(world.encoder(), world.vectors, space.groups), world.objectives())
    model = InMemoryModel(world.encoder(), vectors, space.groups)
    fitness = Fitness(model, world.objectives(), batch=15, seed=3, targets=targets)
    return MergeProblem(fitness, space, [0, 1, 2], vectors, world.folders, world.base)
