"""Quote the test examples that a model gets most confidently wrong: the only stage that hands texts on.

It runs where a flow's ``log_examples`` is set and nowhere else. Evaluation keeps class probabilities, which are no
texts; the texts are read from the task again.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from safetensors.numpy import load_file, save_file

from core.config import Config
from core.data.examples import Examples
from core.data.normalise import normalise_texts
from core.data.tasks import load_task
from core.evaluate.mistakes import most_confident
from core.state import write_bytes, write_json
from core.transfer.report import Section, Table, render
from tasks.stage import Artifact, Output, stage

ANSWERS, MISTAKES = "answers.safetensors", "mistakes.json"
LOG_EXAMPLES: Any = Field(
    False,
    description="quote texts: the test examples that the model gets most confidently wrong go to MLflow and the report",
)
TEXT = "Quoted because log_examples was set. The most confident first; the same test examples as in the accuracies."


class QuoteConfig(Config):
    """Whose mistakes, on which test examples; the draw must be that of the evaluation."""

    tasks: tuple[str, ...] = Field(description="tasks, by name or file")
    models: tuple[str, ...] = Field((), description="models of the evaluation; none given means all")
    test_examples: int | None = Field(None, description="test examples a task; none takes all")
    seed: int = Field(0, description="draw of the test examples")
    normalise: tuple[str, ...] = Field((), description="text normalisation before the model reads them")
    most: int = Field(10, ge=1, description="quoted examples of a model on a task")


def keep_answers(folder: Path, probabilities: Mapping[tuple[str, str], np.ndarray]) -> None:
    """Keep what an evaluation answered: (model, task) -> class probabilities [n, C]."""
    save_file({f"{m}/{t}": np.ascontiguousarray(p) for (m, t), p in probabilities.items()}, folder / ANSWERS)


@stage("quote-mistakes", modules=["core.evaluate.mistakes", "core.transfer.report"])
def quote_mistakes(out: Output, config: QuoteConfig, evaluated: Mapping[str, Artifact]) -> None:
    """Write the quoted examples as JSON and as a page of their own."""
    answers: dict[str, np.ndarray] = {}
    for artifact in evaluated.values():
        answers |= load_file(artifact.folder / ANSWERS)
    quoted = []
    for name in config.tasks:
        task, examples = load_task(name), _test(config, name)
        for key, probabilities in sorted(answers.items()):
            model, _, of = key.rpartition("/")
            if of == task.name and (not config.models or model in config.models):
                found = most_confident(examples, probabilities, task.labels, config.most)
                quoted += [{"model": model, "task": task.name, **asdict(m)} for m in found]
    write_json(out.folder / MISTAKES, quoted)
    write_bytes(out.folder / "mistakes.html", render("Mistakes", {"quoted": len(quoted)}, [_section(quoted)]).encode())
    out.metrics({"quoted": len(quoted)})


def sections(quoted: Artifact | None) -> list[Section]:
    """What a report adds: the quoted examples, nothing where they were not asked for."""
    return [] if quoted is None else [_section(json.loads((quoted.folder / MISTAKES).read_text()))]


def _section(quoted: list[dict[str, Any]]) -> Section:
    columns = ["model", "task", "text", "label", "predicted", "probability"]
    return Section("Mistakes", TEXT, [Table(columns, [[q[c] for c in columns] for q in quoted])])


def _test(config: QuoteConfig, name: str) -> Examples:
    splits = load_task(name).splits()
    if config.normalise:
        splits = normalise_texts(splits, config.normalise)[0]
    test = splits.test
    return test if config.test_examples is None else test.sample(config.test_examples, config.seed)
