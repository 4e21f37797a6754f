"""What training costs or gives instead of merging: joint multi-task training and sequential fine-tuning.

Both use exactly the training examples the experts were trained on, and the experts' settings.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from core.merge.experts import Expert, ExpertConfig, fine_tune
from core.merge.objectives import EncoderObjective
from core.merge.suite import objectives, predict


@dataclass
class Trained:
    """A trained encoder scored on all tasks.

    Attributes:
        accuracy: task -> test accuracy of the final encoder.
        before: task -> test accuracy right after its own training (sequential; forgetting is ``before - accuracy``).
        labels, examples, seconds: what the training took.
    """

    accuracy: dict[str, float]
    labels: int
    examples: int
    seconds: float
    before: dict[str, float] = field(default_factory=dict)


def joint(base: Any, experts: Sequence[Expert]) -> Trained:
    """One encoder trained on the union of the experts' training data, a head a task."""
    encoder, config = _encoder(base, experts)
    data, classes = _data(encoder, experts)
    started = time.perf_counter()
    model, report = fine_tune(encoder, data, classes, config)
    seconds = time.perf_counter() - started
    tests = _tests(encoder, experts, model)
    return Trained(_accuracy(encoder, tests), _labels(data), report.examples, seconds)


def sequential(base: Any, experts: Sequence[Expert]) -> Trained:
    """One encoder fine-tuned on one task after the other; heads stay as they were after their own task."""
    encoder, config = _encoder(base, experts)
    data, classes = _data(encoder, experts)
    tests: dict[str, EncoderObjective] = {}
    before, seconds, examples = {}, 0.0, 0
    for expert in experts:
        task = expert.task
        started = time.perf_counter()
        model, report = fine_tune(encoder, {task: data[task]}, {task: classes[task]}, config)
        seconds, examples = seconds + time.perf_counter() - started, examples + report.examples
        tests |= _tests(encoder, [expert], model)
        before[task] = _accuracy(encoder, {task: tests[task]})[task]
    return Trained(_accuracy(encoder, tests), _labels(data), examples, seconds, before)


def _encoder(base: Any, experts: Sequence[Expert]) -> tuple[Any, ExpertConfig]:
    from core.models.load import load_encoder

    config = ExpertConfig(**experts[0].card["config"])
    encoder = load_encoder(base)
    encoder.max_length = min(config.max_length, encoder.max_length)
    return encoder, config


def _data(encoder: Any, experts: Sequence[Expert]) -> tuple[dict[str, Any], dict[str, int]]:
    data, classes = {}, {}
    for expert in experts:
        config = ExpertConfig(**expert.card["config"])
        drawn = expert.definition.splits().train.sample(config.examples, config.seed)
        data[expert.task] = (encoder.tokenize(drawn.texts, drawn.pairs), np.asarray(drawn.labels, dtype=np.int64))
        classes[expert.task] = int(expert.card["classes"])
    return data, classes


def _tests(encoder: Any, experts: Sequence[Expert], model: Any) -> dict[str, EncoderObjective]:
    """Test objectives with the trained heads in place of the experts'."""
    found = objectives(encoder, experts, "test")
    for task, objective in found.items():
        head = model.heads[task]
        objective.weight = head.weight.detach().float().cpu().numpy().copy()
        objective.bias = head.bias.detach().float().cpu().numpy().copy()
    return found


def _accuracy(encoder: Any, tests: dict[str, EncoderObjective]) -> dict[str, float]:
    return {task: float(p.correct.mean()) for task, p in predict(encoder, tests).items()}


def _labels(data: dict[str, Any]) -> int:
    return sum(len(labels) for _, labels in data.values())
