"""Tiny adapters of one causal model with tied embeddings: two word-spotting tasks and one that writes two words."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import yaml

from core.data.tasks import Task, load_task
from core.merge.adapter_experts import AdapterConfig, train_adapter
from core.merge.experts import Expert, load_expert
from core.models.train import TrainConfig
from core.state import Cache
from tests import tiny_models as tiny

CONFIG = AdapterConfig(
    examples=96,
    max_words=8,
    rank=4,
    train=TrainConfig(lr=1e-2, epochs=16, batch_size=16, precision="float32", dropout=False),
)
SIGNS = {"mood": ("dull", "fun"), "part": ("plot", "actor"), "light": ("dark", "bright")}
WRITTEN = {"dark": "not bright", "bright": "very bright"}


def base_folder(folder: Path, seed: int = 0, width: int = 16) -> Path:
    lm = tiny.causal(width=width, layers=2, seed=seed)
    with torch.no_grad():  # weights of a useful size, so that adapters move what comes out
        for parameter in lm.model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(10)
    lm.model.save_pretrained(folder)
    lm.tokenizer.eos_token = "[SEP]"
    lm.tokenizer.save_pretrained(folder)
    return folder


def task(folder: Path, name: str) -> Task:
    """Which of two words is in the text: answered by a label word, or (light) written out."""
    return load_task(task_file(folder, name))


def task_file(folder: Path, name: str) -> str:
    """The file of a task, its rows beside it."""
    rng = np.random.default_rng([*map(ord, name)])
    lines = ["text,label"]
    for _ in range(240):
        words = list(rng.choice(["a", "the", "movie", "film", "music", "it", "was", "scene"], 6))
        sign = SIGNS[name][int(rng.integers(2))]
        words[int(rng.integers(6))] = sign
        lines.append(f"{' '.join(words)},{WRITTEN.get(sign, sign)}")
    path = folder / f"{name}.csv"
    path.write_text("\n".join(lines))
    content = {
        "name": name,
        "kind": "generation" if name == "light" else "single",
        "source": {"path": str(path)},
        "metric": "exact_match" if name == "light" else "accuracy",
        "causal_template": "review : {text} summary :",
        "splits": {"validation": 0.2, "test": 0.2},
    }
    if name != "light":
        content |= {"labels": list(SIGNS[name]), "label_words": [["bad", "good"], ["story", "actor"]][name == "part"]}
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(content))
    return str(file)


@dataclass
class Language:
    """Base, cache and the experts' folders."""

    base: Path
    folders: dict[str, Path]
    cache: Cache

    @cached_property
    def experts(self) -> list[Expert]:
        return [load_expert(folder) for folder in self.folders.values()]


def language(root: Path) -> Language:
    base, cache = base_folder(root / "base"), Cache(root / "cache")
    folders = {name: train_adapter(task(root, name), base, CONFIG, cache) for name in SIGNS}
    return Language(base, folders, cache)
