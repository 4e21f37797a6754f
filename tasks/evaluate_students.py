"""Score teachers and students on the test set: accuracy, F1, calibration, texts a second."""

import json
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field

from core.config import Config
from core.distill.export import load_student
from core.distill.methods import METHODS
from core.distill.students import answers
from core.distill.study import Study, StudyConfig
from core.evaluate.metrics import score
from core.evaluate.rows import Row
from core.hashing import code_version
from core.models.answer_only import answer_only
from core.state import MANIFEST
from tasks.cache_signals import TEACHERS
from tasks.hits import Hits
from tasks.quote_mistakes import keep_answers
from tasks.stage import Artifact, Output, stage

MODULES = ["core.distill.study", "core.distill.export", "core.evaluate.metrics"]
CORRECT = "correct.npz"
METRICS = ("accuracy", "f1_macro", "ece", "brier")


class EvaluateConfig(Config):
    """What is scored, and how much is timed."""

    study: StudyConfig = Field(description="task, sizes, seed, teacher, student")
    timed_texts: int = Field(
        64, ge=8, description="texts on which serving speed is measured, teacher and student alike"
    )


@stage("evaluate-students", modules=MODULES)
def evaluate_students(
    out: Output,
    config: EvaluateConfig,
    signals: Artifact,
    students: Mapping[str, Artifact],
    tuned: Artifact | None = None,
) -> None:
    """Every student is loaded from its exported folder, as a user would. ``tuned``: what tuning the teacher took."""
    study = Study(config.study)
    test, labels = study.few.test, np.asarray(study.few.test.labels)
    rows: list[Row] = []
    correct: dict[str, np.ndarray] = {}
    answered: dict[tuple[str, str], np.ndarray] = {}

    def add(method: str, probabilities: np.ndarray, budget: dict[str, float], speed: float | None = None) -> None:
        correct[method] = probabilities.argmax(1) == labels
        answered[method, study.task.name] = probabilities
        values: dict[str, float | None] = {m: score(m, labels, probabilities=probabilities) for m in METRICS}
        if speed is not None:
            values["texts_per_second"] = speed
        rows.extend(_row(config, study, method, m, v, budget) for m, v in values.items())

    with np.load(signals.folder / TEACHERS) as stored:
        for name in stored.files:
            spent = {"train_labels": float(len(study.few.train))} if "tuned" in name else _seen(study)
            if "tuned" in name and tuned is not None:
                spent = _budget(tuned) | spent
            add(name, np.exp(stored[name]), spent)
    texts = test.take(range(min(config.timed_texts, len(test))))
    speed = _speed(answer_only(study.teacher("tuned")), texts)
    rows.append(_row(config, study, "teacher tuned", "texts_per_second", speed, {}))
    for name, artifact in students.items():
        model = load_student(artifact.folder)
        probabilities = model.probabilities(test.texts, test.pairs)
        add(name, probabilities, _budget(artifact) | asked(name, len(study.few.dev)), _speed(model.model, texts))
    out.rows(rows)
    np.savez(out.folder / CORRECT, **correct)
    keep_answers(out.folder, answered)
    out.metrics({f"accuracy/{name}": float(hits.mean()) for name, hits in correct.items()})


def hits_of(evaluated: Artifact, method: str) -> dict[str, Hits]:
    """Task -> which of its test examples ``method`` answered rightly."""
    row = next(r for r in evaluated.rows() if r.method == method)
    with np.load(evaluated.folder / CORRECT) as stored:
        return {row.settings["task"]: Hits(row.inputs["test"], stored[method].astype(bool))}


def _seen(study: Study) -> dict[str, float]:
    """The labels in the examples that every prompt of the teacher shows; none where it shows none."""
    return {"train_labels": float(len(study.shown))} if study.shown else {}


def _row(config: EvaluateConfig, study: Study, method: str, metric: str, value: float | None, budget: dict) -> Row:
    settings = {"task": study.task.name, "k": config.study.k, "n": config.study.n, "pool": len(study.few.pool)}
    return Row(
        method=method,
        metric=metric,
        value=value,
        seed=config.study.seed,
        settings=settings,
        budget=budget,
        oracle="test",
        inputs=study.inputs,
        version=code_version(MODULES),
    )


def _speed(model: Any, texts: Any) -> float:
    """Texts a second, the better of two passes."""
    best = 0.0
    for _ in range(2):
        start = time.perf_counter()
        answers(model, texts)
        best = max(best, len(texts) / (time.perf_counter() - start))
    return best


def asked(method: str, dev: int) -> dict[str, float]:
    """The labels of ``dev`` rows that a method behind the gate is chosen by, beside those that it trains on."""
    return {"dev_labels": float(dev)} if METHODS[method].gate else {}


def _budget(artifact: Artifact) -> dict[str, float]:
    return json.loads((artifact.folder / MANIFEST).read_text())["facts"].get("budget", {})
