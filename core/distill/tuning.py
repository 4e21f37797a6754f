"""Tuning the objective once, on development tasks outside every table, by the ask-tell search of all levels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from core.distill.distiller import SCHEDULE, DistillConfig
from core.distill.interface import LossSpec
from core.distill.methods import Method
from core.distill.study import Study
from core.distill.transfer_set import PhraseConfig
from core.evaluate.metrics import score
from core.evolve.loop import Evaluation, SearchResult, search
from core.evolve.optimizers import OPTIMIZERS
from core.evolve.space import Box
from core.transfer.budget import Budget

NAMES = ("temperature", "embedding weight", "infonce weight", "phrases per text", "log10 lr", "labelled repeat")
LOWER, UPPER = (1.0, 0.0, 0.0, 0.0, -4.5, 1.0), (4.0, 5.0, 1.0, 6.0, -3.0, 8.0)
START = (2.0, 2.0, 0.0, 3.0, -3.7, 1.0)


def objective(x: Sequence[float], steps: int | None = None) -> DistillConfig:
    """The objective and schedule that a point of the search space stands for (order: :data:`NAMES`)."""
    temperature, embedding, contrast, phrases, log_lr, repeat = (float(v) for v in x)
    losses = [LossSpec(name="task_ce"), LossSpec(name="kd_tuned", temperature=temperature)]
    if embedding >= 0.1:
        losses.append(LossSpec(name="embedding", weight=embedding))
    if contrast >= 0.02:
        losses.append(LossSpec(name="infonce", weight=contrast))
    train = SCHEDULE.model_copy(update={"lr": 10**log_lr, "steps": steps or SCHEDULE.steps})
    cut = PhraseConfig(per_text=phrases) if phrases >= 0.1 else None
    return DistillConfig(losses=tuple(losses), phrases=cut, labelled_repeat=round(repeat), train=train)


def tune_objective(
    studies: Sequence[Study], evaluations: int, optimizer: str = "cma", seed: int = 0, checkpoint: Path | None = None
) -> tuple[SearchResult, Budget]:
    """Search for the point of highest mean test accuracy over development studies.

    Args:
        studies: few-shot problems on development tasks; their test sets are no result anywhere else.
        evaluations: points tried; each trains one student a study.

    Returns:
        The trials (score, one part a study), and the budget spent: evaluations and training steps.
    """
    budget = Budget("evaluations", evaluations)

    def evaluate(points: list[np.ndarray]) -> list[Evaluation]:
        answers = []
        for x in points:
            spec = Method(summary="candidate", distill=objective(x))
            runs = [study.run("candidate", spec) for study in studies]
            budget.note("train_steps", sum(r.budget.get("train_steps", 0) for r in runs))
            parts = tuple(accuracy(s, r.test) for s, r in zip(studies, runs, strict=True))
            answers.append(Evaluation(float(np.mean(parts)), parts=parts))
        return answers

    space = Box(LOWER, UPPER, start=START)
    found = search(
        OPTIMIZERS.get(optimizer)(space, seed=seed),
        evaluate,
        budget,
        checkpoint=checkpoint,
        key=f"{optimizer} {seed} {evaluations}",
        description="tune the objective",
    )
    return found, budget


def accuracy(study: Study, logits: np.ndarray) -> float:
    """Test accuracy of answers."""
    return float(score("accuracy", study.few.test.labels, logits.argmax(1)))
