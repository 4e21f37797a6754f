"""How good is one structure for several tasks? A short real distillation and a probe on each of them.

The labels are those that the rest of the chain looks at anyway: the few-shot training labels fit the probe, the
validation texts that later choose the merge's scale judge it. No test text is touched.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from core.data.examples import Examples
from core.hashing import code_version, content_key
from core.nas.oracles import Answer, Oracle
from core.nas.oracles.student import StudentOracle, StudentSettings
from core.nas.spaces.transformer_student import StudentShape, TransformerStudent
from core.state import Cache
from core.transfer.budget import Budget

PARTS = ("unlabelled", "labelled", "validation")


class OneTask(StudentOracle):
    """The student oracle on given texts, judged on validation only."""

    def __init__(self, original: Any, space: TransformerStudent, task: str, texts: Mapping[str, Examples], **more: Any):
        Oracle.__init__(self, None, more["seed"])
        self.settings, self.cache, self.epochs = more["settings"], more["cache"], more["settings"].epochs
        self.original, self.space, self.dataset, self.texts = original, space, task, dict(texts)
        hashes = {f"{task}.{name}": part.sha256 for name, part in texts.items()}
        self.inputs = MappingProxyType({original.name: original.sha256, **hashes})

    @property
    def examples(self) -> int:
        """Texts that one distillation trains on, epochs counted."""
        return self.settings.epochs * len(self.texts["unlabelled"])

    def _key(self, what: str) -> str:
        return content_key(super()._key(what), code_version(["core.chain.oracle"]))

    def _judge(self, encoder: Any) -> dict[str, float]:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        x = {name: encoder.embed(self.texts[name].texts, self.texts[name].pairs) for name in PARTS[1:]}
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
        probe.fit(x["labelled"], self.texts["labelled"].labels)
        return {"validation": 100.0 * float(probe.score(x["validation"], self.texts["validation"].labels))}


class SharedStructure(Oracle):
    """Mean validation accuracy of one structure over several tasks; every answer is a distillation a task.

    ``cost_seconds`` are wall seconds of all of them; ``train_examples`` are noted in the budget.

    Args:
        original: :class:`core.models.encoder.TextEncoder` that students are cut from.
        texts: task -> its ``unlabelled``, ``labelled`` and ``validation`` examples.
        cells: the structures that may be asked.

    Raises:
        ValueError: no task, or labelled texts of one class only.
    """

    name, noise, cost = "shared structure", "single run", "wall seconds of distillation and probe"
    split = "validation"

    def __init__(
        self,
        original: Any,
        space: TransformerStudent,
        texts: Mapping[str, Mapping[str, Examples]],
        cells: Sequence[StudentShape],
        settings: StudentSettings,
        *,
        seed: int = 0,
        budget: Budget | None = None,
        cache: Cache | None = None,
    ):
        super().__init__(budget, seed)
        if not texts:
            raise ValueError("a shared structure is judged on at least one task, none given")
        for task, parts in texts.items():
            if len(set(parts["labelled"].labels)) < 2:
                raise ValueError(f"labelled texts of {task} are of one class only; take more per class")
        self.space, self.cells, self.epochs = space, list(cells), settings.epochs
        shared = {"settings": settings, "seed": seed, "cache": cache or Cache()}
        self.parts = [OneTask(original, space, task, parts, **shared) for task, parts in texts.items()]
        self.dataset = ", ".join(texts)
        self.inputs = MappingProxyType({k: v for part in self.parts for k, v in part.inputs.items()})

    def pool(self) -> list[StudentShape]:
        return self.cells

    @property
    def examples(self) -> int:
        """Texts that one answer trains on."""
        return sum(part.examples for part in self.parts)

    def _answer(self, g: StudentShape) -> Answer:
        answers = {part.dataset: part._answer(g) for part in self.parts}
        self.budget.note("train_examples", self.examples)
        mean = sum(a.value for a in answers.values()) / len(answers)
        metrics = {**self.space.size_features(g), **{task: a.value for task, a in answers.items()}}
        return Answer(mean, sum(a.cost_seconds for a in answers.values()), metrics)


def task_texts(task: Any, k: int, n: float, unlabelled: int, validation: int, seed: int) -> dict[str, Examples]:
    """What the oracle needs of a task (:class:`core.data.tasks.Task`), drawn as the distillation draws it.

    Args:
        k, n: labelled examples per class, and pool size as their multiple (:func:`core.data.few_shot.few_shot`).
        unlabelled: at most so many texts of the pool.
        validation: at most so many validation examples.

    Raises:
        ValueError: no unlabelled text is left.
    """
    from core.data.few_shot import few_shot

    few = few_shot(task, k=k, n=n, seed=seed)
    if not len(few.pool):
        raise ValueError(f"task {task.name}: no unlabelled text is left with k={k}, n={n}; lower k or raise n")
    pool = few.pool.take(range(min(unlabelled, len(few.pool))))
    return {
        "unlabelled": pool,
        "labelled": few.train,
        "validation": task.splits().validation.sample(validation, seed),
    }
