"""A suite of tasks with an expert each: what every merged model is scored on, and how scores become rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from core.data.tasks import Task, load_task
from core.evaluate.rows import Row
from core.merge.experts import Expert
from core.merge.objectives import EncoderObjective, mixed_batches

SUITES = Path(__file__).parents[1] / "data" / "suites"


def load_suite(name: str | Path) -> list[str]:
    """Task names of a suite: a built-in one (``archive``, ``eight``) or a YAML file with the key ``tasks``.

    Raises:
        ValueError: unknown suite, or a file that lists no tasks.
    """
    path = Path(name) if str(name).endswith((".yaml", ".yml")) else SUITES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in SUITES.glob("*.yaml")))
        raise ValueError(f"unknown suite {name!r}; known: {known}; or give a YAML file with the key 'tasks'")
    try:
        found = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"suite {path} is no YAML: {error}") from None
    tasks = found.get("tasks") if isinstance(found, dict) else None
    if not isinstance(tasks, list) or not tasks or not all(isinstance(t, str) for t in tasks):
        raise ValueError(
            f"suite {path} must list tasks (names or files) under the key 'tasks', like: tasks: [cr, subj]"
        )
    return tasks


def objectives(
    encoder: Any, experts: Sequence[Expert], split: str, limit: int | None = None, seed: int = 0, probe: bool = False
) -> dict[str, EncoderObjective]:
    """Each expert's task with its head (or the frozen base's probe) on a split.

    Args:
        split: ``validation`` or ``test``.
        limit: at most so many examples a task, drawn with ``seed``; None takes all.
    """
    found = {}
    for expert in experts:
        examples = getattr(expert.definition.splits(), split)
        if limit is not None:
            examples = examples.sample(limit, seed)
        weight, bias = expert.head(probe=probe)
        tokens = encoder.tokenize(examples.texts, examples.pairs)
        found[expert.task] = EncoderObjective(expert.task, tokens, np.asarray(examples.labels), weight, bias)
    return found


@dataclass(frozen=True)
class Predictions:
    """Class probabilities and labels of a task under one model."""

    probabilities: np.ndarray
    labels: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        return self.probabilities.argmax(axis=1) == self.labels


def predict(encoder: Any, tasks: Mapping[str, EncoderObjective]) -> dict[str, Predictions]:
    """Probabilities [n, C] of every example of every task, in one pass of the shared encoder.

    The dtype is the fastest that the hardware has (bfloat16 products, float32 weights and sums).
    """
    from scipy.special import softmax

    from core.models.encoder import embed_batches
    from core.models.score import autocast

    names = sorted(tasks)
    wanted = {n: np.arange(tasks[n].size) for n in names}
    with autocast(encoder.device):
        batches = mixed_batches(tasks, wanted, encoder.device)
        pooled = embed_batches(encoder, batches, sum(tasks[n].size for n in names))
    found, at = {}, 0
    for name in names:
        task = tasks[name]
        logits = pooled[at : at + task.size] @ task.weight.T + task.bias
        found[name] = Predictions(softmax(logits, axis=1), task.labels)
        at += task.size
    return found


def rows_of(method: str, found: Mapping[str, Predictions], individual: Mapping[str, float], **facts: Any) -> list[Row]:
    """Rows of one method: per task accuracy, macro F1, ECE and accuracy relative to the individual expert, and means.

    Args:
        individual: task -> test accuracy of its own expert (the ceiling that normalises).
        facts: further fields of the rows (budget, inputs, seed, version ...).
    """
    from core.evaluate.metrics import score

    rows, normalised = [], {}
    for task, p in found.items():
        answers = p.probabilities.argmax(axis=1)
        values = {
            "accuracy": float(p.correct.mean()),
            "f1_macro": score("f1_macro", p.labels, answers),
            "ece": score("ece", p.labels, answers, p.probabilities),
        }
        normalised[task] = 100 * values["accuracy"] / individual[task]
        values["normalised"] = normalised[task]
        rows += [Row(method=method, metric=m, value=v, settings={"task": task}, **facts) for m, v in values.items()]
    means = {
        "accuracy": float(np.mean([p.correct.mean() for p in found.values()])),
        "normalised": float(np.mean(list(normalised.values()))),
    }
    rows += [Row(method=method, metric=m, value=v, settings={"task": "mean"}, **facts) for m, v in means.items()]
    return rows


def as_tasks(names: Sequence[str]) -> list[Task]:
    """Loaded classification tasks.

    Raises:
        ValueError: one of them is not a text classification task, or a name occurs twice.
    """
    if len(set(names)) != len(names):
        raise ValueError(f"a task occurs twice in {list(names)}")
    loaded = [load_task(n) for n in names]
    for task in loaded:
        if task.kind not in ("single", "pair"):
            raise ValueError(
                f"task {task.name!r} is of kind {task.kind!r}; experts are trained on single or pair tasks"
            )
    return loaded
