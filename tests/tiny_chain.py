"""A tiny BERT on disk and two word-spotting tasks in files: everything that a chain needs, in a second or two."""

from pathlib import Path

import numpy as np
import torch

from core.chain.start import Start, WarmUp, make_start
from core.chain.structures import widths_space
from core.data.tasks import load_task
from core.distill.students import ModelConfig
from core.distill.study import StudyConfig
from core.distill.teachers import TeacherConfig
from core.models.load import load_encoder
from core.models.train import TrainConfig
from tests import tiny_models as tiny

SIGNS = {"mood": ("bad", "good"), "light": ("dark", "bright")}
FILLERS = ("a", "the", "movie", "film", "music", "it", "was", "scene", "story", "actor", "plot")
TUNING = TrainConfig(lr=3e-3, epochs=6, batch_size=8, precision="float32", dropout=False)


def base_folder(folder: Path, seed: int = 0) -> Path:
    """A BERT of three layers whose weights are large enough for its layers to matter."""
    encoder = tiny.encoder(seed=seed)
    with torch.no_grad():
        for weight in encoder.backbone.encoder.parameters():
            weight.mul_(10 if weight.ndim == 2 else 1)
    encoder.backbone.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    return folder


def task_files(folder: Path, rows: int = 400) -> dict[str, str]:
    """Task name -> its file: which of two words is in the text."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    for name, signs in SIGNS.items():
        rng = np.random.default_rng([7, *map(ord, name)])
        lines = ["text,label"]
        for _ in range(rows):
            label = int(rng.integers(2))
            words = list(rng.choice(FILLERS, 7))
            words[int(rng.integers(7))] = signs[label]
            lines.append(f"{' '.join(words)},{signs[label]}")
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
        path = folder / f"{name}.yaml"
        path.write_text(
            f"version: 1\nkind: single\nsource: {{path: {name}.csv}}\nlabels: [{', '.join(signs)}]\n"
            "metric: accuracy\nsplits: {validation: 0.2, test: 0.2}\n"
        )
        made[name] = str(path)
    return made


def classifier(base: Path, task: str, folder: Path) -> Path:
    """A sequence classifier of transformers, all of it fine-tuned from the base on the task's training texts."""
    from transformers import BertForSequenceClassification

    tokenizer, train = load_encoder(base, device="cpu").tokenizer, load_task(task).splits().train
    torch.manual_seed(0)
    model = BertForSequenceClassification.from_pretrained(base).train(False)  # without dropout
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(60):
        rows = np.random.default_rng(step).integers(len(train), size=32)
        given = tokenizer([train.texts[i] for i in rows], padding=True, return_tensors="pt")
        model(**given, labels=torch.tensor([train.labels[i] for i in rows])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def studies(base: Path, files: dict[str, str], steps: int = 12) -> dict[str, StudyConfig]:
    """Task name -> its few-shot problem, the base itself as teacher."""
    teacher = TeacherConfig(asset=str(base), train=TUNING)
    shared = {"k": 8, "n": 6, "seed": 0, "teacher": teacher, "student": ModelConfig(asset=str(base)), "steps": steps}
    return {name: StudyConfig(task=path, **shared) for name, path in files.items()}


def start(base: Path, files: dict[str, str], shape: str, folder: Path, seed: int = 0, examples: int = 64) -> Start:
    """A start cut from the base and warmed up on the tasks' training texts."""
    original = load_encoder(base, device="cpu")
    space = widths_space(original.backbone.config)
    texts = [load_task(path).splits().train for path in files.values()]
    folder.mkdir(parents=True)
    warm = WarmUp(examples=examples, batch_size=16, lr=1e-3, max_length=16)
    return make_start(original, space, space.parse(shape), texts, warm, folder, seed=seed)
