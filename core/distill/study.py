"""One few-shot problem: a task, a seed, a teacher, a student; every method of the table on the same splits.

What is expensive is kept: the tuned teacher's weights, its signals, and each method's answers, all under the hash of
what made them. A method whose inputs are cached trains the student and nothing else.
"""

import operator
from dataclasses import dataclass, field
from functools import cached_property, reduce
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from core.config import Config
from core.data.examples import Examples
from core.data.few_shot import FewShot, few_shot, lmbff
from core.data.tasks import load_task
from core.distill import students
from core.distill.distiller import DistillConfig, distill
from core.distill.gate import GateConfig, HeadRoom, head_room, teacher_weights
from core.distill.interface import LossSpec, needed
from core.distill.methods import METHODS, Method
from core.distill.prompts import task_prompt
from core.distill.signals import Signals, cached_signals
from core.distill.students import ModelConfig
from core.distill.teachers import (
    MPNET,
    TeacherConfig,
    build,
    pretrained_identity,
    split_shown,
    tuned_identity,
    tuned_teacher,
)
from core.distill.transfer_set import TransferSet, transfer_set
from core.hashing import code_version, content_key
from core.models.load import shape
from core.models.prompt import Demonstration, content_free_logits, log_softmax, pool_bias
from core.models.train import TrainConfig
from core.registry import nearest
from core.state import Cache
from core.transfer.budget import Budget

MODULES = ("core.distill.study",)


class StudyConfig(Config):
    """What is distilled from what, on what."""

    task: str = Field(description="built-in task or path of a task file")
    k: int = Field(16, ge=1, description="labelled examples per class")
    n: float = Field(10.0, ge=0, description="unlabelled pool, as a multiple of the labelled examples")
    seed: int = Field(13, description="draws the splits and seeds the training")
    splits: Literal["drawn", "lmbff"] = Field("drawn", description="few-shot files: drawn here, or LM-BFF's own")
    teacher: TeacherConfig = Field(MPNET, description="teacher and its tuning")
    more_teachers: tuple[TeacherConfig, ...] = Field(
        (), description="further teachers, weighted by their evidence on dev"
    )
    student: ModelConfig = Field(students.MINILM, description="student")
    fine_tuning: TrainConfig = Field(students.FINE_TUNING, description="schedule of the fine-tuned baselines")
    gate: GateConfig = Field(GateConfig(), description="head-room check")
    steps: int | None = Field(None, ge=1, description="steps of every distillation; None: the method's own")
    test_rows: int | None = Field(None, ge=1, description="score only so many test rows; None: the full test set")


@dataclass(frozen=True)
class Answers:
    """Logits [n, C] on each part, and what they cost."""

    test: np.ndarray
    dev: np.ndarray
    pool: np.ndarray
    budget: dict[str, float] = field(default_factory=dict)
    facts: dict[str, float] = field(default_factory=dict)


class Study:
    """See the module; ``cache`` keeps teachers, signals and answers."""

    def __init__(self, config: StudyConfig, cache: Cache | None = None):
        self.config, self.cache = config, cache or Cache()
        self.task = load_task(config.task)
        self.prompt = task_prompt(self.task)
        self._loaded: dict[str, Any] = {}

    @cached_property
    def few(self) -> FewShot:
        """The splits (refuses a class that the draw misses)."""
        draw = lmbff if self.config.splits == "lmbff" else few_shot
        few = draw(self.task, k=self.config.k, n=self.config.n, seed=self.config.seed)
        if self.config.test_rows is None:
            return few
        return FewShot(**(vars(few) | {"test": few.test.sample(self.config.test_rows, seed=0)}))

    @property
    def inputs(self) -> dict[str, str]:
        """Hashes of the splits, for rows."""
        return dict(self.few.sha256)

    @property
    def classes(self) -> int:
        return len(self.task.labels)

    # -- teacher ---------------------------------------------------------------------------------------------------

    def teacher(self, which: str, budget: Budget | None = None) -> Any:
        """The ``"tuned"`` or ``"pretrained"`` teacher as a model; tuned once, then from the cache."""
        if which not in self._loaded:
            self._loaded.clear()  # one at a time
            if which == "pretrained":
                self._loaded[which] = build(self.config.teacher, self.prompt, shown=self.shown)
            else:
                few, seed = self.few, self.config.seed
                where = (self.cache, self.config.teacher, self.prompt)
                self._loaded[which] = tuned_teacher(*where, few.train, few.dev, seed, budget)
        return self._loaded[which]

    @property
    def shown(self) -> list[Demonstration]:
        """The labelled examples that every prompt of the teacher before tuning shows."""
        return split_shown(self.few.train, self.config.teacher.demonstrations)[0]

    def identity(self, which: str) -> str:
        """Hash of a teacher, known without it."""
        if which == "pretrained":
            return pretrained_identity(self.config.teacher, self.prompt, self.shown)
        few = self.few
        return tuned_identity(self.config.teacher, self.prompt, few.train.sha256, few.dev.sha256, self.config.seed)

    def signals(
        self, which: str, texts: list[str], pairs: list[str] | None, layers=(), answers: bool = False
    ) -> Signals:
        """Cached signals of texts; the teacher is only built when they are missing.

        What is asked for often (the last layer) and what rarely (all layers) are two entries, whatever a loss reads,
        so that methods share them. With several teachers the tuned logits are the mean of their log-probabilities,
        weighted by their evidence; states and filled answers are those of the first.
        """
        last = self.teacher_shape[1]
        kept = (last,) if set(layers) <= {last} else tuple(range(last + 1))

        def make() -> Any:
            return self.teacher(which)

        own = cached_signals(self.cache, self.identity(which), make, texts, pairs, layers=kept, answers=answers)
        if which == "pretrained" or not self.config.more_teachers:
            return own
        weights = self.teacher_weights()
        if not weights.any():
            return own
        others = [s.signals("tuned", texts, pairs) for s in self.members()[1:]]
        mixed = sum(w * log_softmax(s.logits) for w, s in zip(weights, [own, *others], strict=True))
        return Signals(mixed.astype(np.float16), own.hidden, own.layers, own.answers)

    def members(self) -> list["Study"]:
        """One study a teacher, on the same splits."""
        alone = [self.config.teacher, *self.config.more_teachers]
        return [self._with(teacher=t, more_teachers=()) for t in alone]

    def teacher_weights(self) -> np.ndarray:
        """Weights of the teachers by their head-room on dev rows; all zero when none is heard."""
        return teacher_weights([s.head_room() for s in self.members()])

    def _with(self, few: FewShot | None = None, **changes: Any) -> "Study":
        other = Study(self.config.model_copy(update=changes), self.cache)
        other.few = few or self.few
        return other

    def teacher_answers(self, which: str = "tuned", calibration: str = "raw") -> Answers:
        """The teacher's logits on test, dev and pool.

        Args:
            calibration: ``raw``; ``content_free`` (less the answer to prompts without content); ``pool`` (biased so
                that the mean answer over the pool is uniform, which assumes balanced classes).

        Raises:
            ValueError: unknown calibration.
        """
        parts = {p: getattr(self.few, p) for p in ("test", "dev", "pool")}
        logits = {
            p: np.asarray(self.signals(which, e.texts, e.pairs).logits, dtype=np.float32) for p, e in parts.items()
        }
        if calibration == "content_free":
            shift = self._content_free(which)
        elif calibration == "pool":
            shift = pool_bias(logits["pool"])
        elif calibration == "raw":
            shift = np.zeros(self.classes)
        else:
            allowed = ("raw", "content_free", "pool")
            raise ValueError(f"unknown calibration {calibration!r}{nearest(calibration, allowed)} Allowed: {allowed}")
        return Answers(**{p: z - shift for p, z in logits.items()})

    def _content_free(self, which: str) -> np.ndarray:
        key = content_key("content-free", self.identity(which))

        def build_it(folder: Path) -> dict[str, Any]:
            np.save(folder / "logits.npy", content_free_logits(self.teacher(which)))
            return {}

        return np.load(self.cache.compute("signals", key, build_it) / "logits.npy")

    # -- students --------------------------------------------------------------------------------------------------

    def student(self) -> Any:
        """A fresh student behind the prompt."""
        return build(self.config.student, self.prompt)

    def key(self, method: str, spec: Method) -> str:
        """Hash of everything that decides a method's answers."""
        teacher = [s.identity("tuned") for s in self.members()] if spec.distill is not None else []
        config = self.config.model_dump(mode="json", exclude={"teacher", "more_teachers"})
        student = pretrained_identity(self.config.student, self.prompt)
        inputs = [self.inputs, list(self.few.pool_gold)] if spec.kind == "gold" else self.inputs
        return content_key(method, spec, config, teacher, student, inputs, code_version(MODULES))

    def run(self, method: str, spec: Method | None = None) -> Answers:
        """The answers of a student made by ``method``, from the cache when it was run before.

        Args:
            spec: a method of one's own; by default the one called ``method``.

        Raises:
            ValueError: unknown method, or one that does not fit the student's kind.
        """
        spec = spec or method_named(method)

        def build_it(folder: Path) -> dict[str, Any]:
            model, budget, facts = self.train(method, spec, folder)
            parts = {p: self._answers(model, getattr(self.few, p)) for p in ("test", "dev", "pool")}
            np.savez(folder / "answers.npz", **parts)
            return {"budget": budget.counts, "facts": facts}

        return _read_answers(self.cache.compute("students", self.key(method, spec), build_it))

    def _answers(self, model: Any, part: Examples) -> np.ndarray:
        """Logits [n, C], also of no text at all (a study without pool)."""
        return students.answers(model, part) if len(part) else np.zeros((0, len(self.prompt.words)), dtype=np.float32)

    def train(self, method: str, spec: Method | None = None, folder: Path | None = None) -> tuple[Any, Budget, dict]:
        """The student itself, the budget it took and what the gate found.

        Args:
            folder: where the training keeps its checkpoint (and continues from it).
        """
        spec, budget = self._stepped(spec or method_named(method)), Budget("train_steps")
        if spec.kind in ("probe", "random_head", "setfit") and self.config.student.kind != "encoder":
            raise ValueError(f"method {method!r} needs a sentence encoder as student; choose label_words")
        checkpoint = None if folder is None else folder / "student.ckpt"
        if spec.kind in ("distill", "gold", "self_training"):
            model, facts = self._distil(spec, budget, checkpoint)
        else:
            model, facts = self._alone(spec, budget), {}
        if checkpoint is not None:
            checkpoint.unlink(missing_ok=True)
        return model.eval(), budget, facts

    def _stepped(self, spec: Method) -> Method:
        """The method with the study's number of steps, where both have one (``paper`` counts epochs)."""
        if self.config.steps is None or spec.distill is None or spec.distill.train.steps is None:
            return spec
        train = spec.distill.train.model_copy(update={"steps": self.config.steps})
        return spec.model_copy(update={"distill": spec.distill.model_copy(update={"train": train})})

    def _alone(self, spec: Method, budget: Budget) -> Any:
        seed, train, model = self.config.seed, self.few.train, self.student()
        if spec.kind == "probe":
            students.linear_probe(model, train, budget)
        elif spec.kind == "setfit":
            students.setfit(model, train, seed, budget=budget)
        else:
            if spec.kind == "random_head":
                students.random_head(model, seed)
            students.fine_tune(model, train, seed, self.config.fine_tuning, budget)
        return model

    def _distil(self, spec: Method, budget: Budget, checkpoint: Path | None) -> tuple[Any, dict[str, float]]:
        if spec.kind == "self_training":
            return self._self_train(spec, budget), {}
        config, few, facts, signals = spec.distill, self.few, {}, {}
        none = few.pool.take([])
        if spec.gate:
            room = self.head_room()
            facts = {k: float(v) for k, v in vars(room).items()}
            if not room.heard:
                return self._alone(method_named("label_words"), budget), facts
            config = weighted(config, room.weight)
        student = self.student()
        if spec.kind == "gold":
            data = transfer_set(joined(few.train, few.pool.with_labels(list(few.pool_gold))), none)
        else:
            pool = few.pool if config.unlabelled else none
            data = self._transfer_set(spec, config, pool)
            signals = self._teaching(config, student.depth, data)
            self._loaded.clear()
        distill(student, data, config, seed=self.config.seed, checkpoint=checkpoint, budget=budget, **signals)
        if "train_labels" not in budget.counts:  # read by nobody but the teacher
            read = len(few.train) if signals.get("tuned") is not None else len(self.shown)
            budget.note("train_labels", read) if read else None
        if spec.gate:
            kept = self.taught_better(student)
            keep = kept.posterior > self.config.gate.keep_above
            facts |= {f"taught.{k}": float(v) for k, v in (vars(kept) | {"kept": keep}).items()}
            if not keep:
                again = Budget("train_steps")  # the labels are those that the taught student has read
                alone = self._alone(method_named("label_words"), again)
                for unit in ("train_steps", "train_examples"):
                    budget.note(unit, again.counts.get(unit, 0))
                return alone, facts
        return student, facts

    def cache_signals(self, method: str, spec: Method | None = None) -> None:
        """Compute the signals that a method will read, so that training it needs no teacher."""
        spec = self._stepped(spec or method_named(method))
        if spec.distill is None or spec.kind != "distill":
            return
        pool = self.few.pool if spec.distill.unlabelled else self.few.pool.take([])
        data = self._transfer_set(spec, spec.distill, pool)
        depth = self.config.student.layers or shape(self.config.student.asset)[1]
        self._teaching(spec.distill, depth, data)

    def _transfer_set(self, spec: Method, config: DistillConfig, pool: Examples) -> TransferSet:
        """What a method learns from; no phrase of the pool is a text of dev or test."""
        few, phrases = self.few, config.phrases
        train, held_out = few.train if spec.labels else None, {*few.dev.folded(), *few.test.folded()}
        if phrases is not None and config.train.steps is not None and len(pool):
            # More of them than the student can read once would keep it from the texts themselves.
            room = config.train.steps * config.train.batch_size - len(few.train) - len(pool)
            phrases = phrases.model_copy(update={"per_text": min(phrases.per_text, max(room, 0) / len(pool))})
        return transfer_set(train, pool, phrases, self.config.seed, held_out)

    def _teaching(self, config: DistillConfig, depth: int, data: TransferSet) -> dict[str, Any]:
        """The signals that an objective reads, and the teacher's sizes."""
        width, teacher_depth = self.teacher_shape
        wanted = needed(config.losses, depth, teacher_depth)
        signals = {
            which: reduce(
                operator.add,
                [self.signals(which, *part, sorted(want["layers"]), want["answers"]) for part in data.parts()],
            )
            for which, want in wanted.items()
        }
        return signals | {"teacher_width": width, "teacher_depth": teacher_depth}

    @cached_property
    def teacher_shape(self) -> tuple[int, int]:
        """Width and depth of the teacher, from its configuration file."""
        width, depth = shape(self.config.teacher.asset)
        return width, self.config.teacher.layers or depth

    def _self_train(self, spec: Method, budget: Budget) -> Any:
        """Rounds of distilling the student's own answers on the pool into a fresh student."""
        data = transfer_set(self.few.train, self.few.pool)
        teacher, later = self.student(), Budget("train_steps")
        students.fine_tune(teacher, self.few.train, self.config.seed, self.config.fine_tuning, budget)
        for _ in range(spec.rounds):
            logits = students.answers(teacher, Examples(data.texts, data.pairs, data.labels.tolist()))
            own = Signals(logits, np.zeros((len(data), 0, teacher.width), dtype=np.float16), ())
            student = self.student()
            distill(student, data, spec.distill, seed=self.config.seed, tuned=own, teacher_width=1, budget=later)
            teacher = student
        for unit in ("train_steps", "train_examples"):  # the labels are the same ones
            budget.note(unit, later.counts.get(unit, 0))
        return teacher

    # -- gate ------------------------------------------------------------------------------------------------------

    def head_room(self) -> HeadRoom:
        """Tuned teacher against the label-word student on held-out labelled rows and pool texts, never on test."""
        teacher, student, labels = self.held_out_answers()
        pools = [a.pool.argmax(1) for a in (self.teacher_answers("tuned"), self.run("label_words"))]
        return head_room(teacher, student, labels, *pools, self.config.gate)

    def taught_better(self, taught: Any) -> HeadRoom:
        """A taught student against the label-word student on dev rows, which neither has learned from."""
        alone, few = self.run("label_words"), self.few
        dev, pool = (students.answers(taught, part).argmax(1) for part in (few.dev, few.pool))
        others = (alone.dev.argmax(1), alone.pool.argmax(1))
        return head_room(dev, others[0], few.dev.labels, pool, others[1], self.config.gate)

    def held_out_answers(self) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Answers of teacher and student on dev and the labels; cross-fitted also on train, tuned on dev."""
        few, sides = self.few, [self]
        if self.config.gate.cross_fit:
            swapped = FewShot(**(vars(few) | {"train": few.dev, "dev": few.train}))
            gate = self.config.gate.model_copy(update={"cross_fit": False})
            sides.append(self._with(swapped, gate=gate))
        answers = [[model.dev.argmax(1) for model in (s.teacher_answers("tuned"), s.run("label_words"))] for s in sides]
        teacher, student = (np.concatenate(side) for side in zip(*answers, strict=True))
        return teacher, student, [label for s in sides for label in s.few.dev.labels]


def weighted(config: DistillConfig, weight: float) -> DistillConfig:
    """The objective with its teacher terms scaled by ``weight``."""

    def scaled(spec: LossSpec) -> LossSpec:
        return spec if spec.name == "task_ce" else spec.model_copy(update={"weight": spec.weight * weight})

    return config.model_copy(update={"losses": tuple(scaled(s) for s in config.losses)})


def joined(a: Examples, b: Examples) -> Examples:
    """Both sets of examples, in order."""
    pairs = None if a.pairs is None else [*a.pairs, *b.pairs]
    return Examples([*a.texts, *b.texts], pairs, [*a.labels, *b.labels])


def method_named(name: str) -> Method:
    """The method called ``name``.

    Raises:
        ValueError: unknown; the nearest one is given.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}{nearest(name, METHODS)} Allowed: {', '.join(METHODS)}")
    return METHODS[name]


def _read_answers(folder: Path) -> Answers:
    import json

    from core.state import MANIFEST

    facts = json.loads((folder / MANIFEST).read_text())["facts"]
    with np.load(folder / "answers.npz") as stored:
        parts = {p: stored[p] for p in ("test", "dev", "pool")}
    return Answers(**parts, budget=facts["budget"], facts=facts["facts"])
