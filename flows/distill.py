"""Distil a prompt-tuned teacher into a small student from a few labels and unlabelled texts."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

from pydantic import Field

from core.data.tasks import load_task
from core.distill.gate import GateConfig
from core.distill.methods import METHODS
from core.distill.students import STUDENTS, student_of
from core.distill.study import StudyConfig
from core.distill.teachers import TEACHERS, ModelConfig, TeacherConfig, teacher_of
from core.models.folder import check_one_text
from core.models.load import locate
from core.registry import nearest
from core.transfer.problem import Problem
from flows.forms import Form
from flows.runtime import transfer_flow
from tasks.build_prompts import PromptsConfig, build_prompts
from tasks.cache_signals import SignalsConfig, cache_signals
from tasks.distill import DistilConfig, distill
from tasks.evaluate_students import EvaluateConfig, evaluate_students, hits_of
from tasks.fan_out import gather
from tasks.load_data import load_data
from tasks.load_model import load_model
from tasks.quote_mistakes import LOG_EXAMPLES, QuoteConfig, quote_mistakes
from tasks.register_model import register_model
from tasks.report_students import BASELINE, ReportConfig, report_students
from tasks.stage import Artifact, is_planning
from tasks.tune_teacher import TuneConfig, tune_teacher

M = TypeVar("M", bound=ModelConfig)
READ_AS = {"encoder": "a sentence encoder", "masked": "a masked language model", "causal": "a causal language model"}


class DistillForm(Form):
    """Which teacher teaches which student, on what."""

    sizes: ClassVar = {
        "smoke": {
            "teacher": "minilm",
            "student": "minilm3",
            "k": 4,
            "n": 2,
            "steps": 4,
            "epochs": 1,
            "test_rows": 24,
            "methods": ("label_words", "prompt_distiller"),
        },
        "default": {
            "teacher": "smollm2",
            "student": "minilm",
            "k": 16,
            "n": 10,
            "steps": 60,
            "epochs": 5,
            "test_rows": 300,
            "methods": ("label_words", "vanilla_kd", "prompt_distiller"),
        },
        "full": {
            "teacher": "mpnet",
            "student": "minilm",
            "k": 16,
            "n": 100,
            "steps": 480,
            "epochs": 12,
            "test_rows": 1_000_000,
            "methods": tuple(m for m in METHODS if m != "paper"),
        },
    }

    task: str = Field("mr_reviews", description="built-in classification task or path of a task file")
    teacher: str | None = Field(
        None, description="smollm2, minilm, mpnet (405 MB), or any asset, folder, hub repository (empty: by size)"
    )
    student: str | None = Field(
        None, description="minilm, minilm3, smollm2-8 or -6 (first layers), or any asset, folder (empty: by size)"
    )
    splits: Literal["drawn", "lmbff"] = Field("drawn", description="draw the few, or take LM-BFF's published files")
    tuning: Literal["full", "lora", "prompt"] = Field("full", description="what of the teacher is trained")
    demonstrations: int = Field(0, ge=0, description="examples of each class that a language-model teacher is shown")
    cross_fit: bool = Field(False, description="the gate also tunes on dev and looks at train (twice the tuning)")
    methods: tuple[str, ...] | None = Field(None, description="methods of the table (empty: by size)")
    k: int | None = Field(None, ge=1, description="labelled examples per class (empty: by size)")
    n: float | None = Field(None, gt=0, description="unlabelled texts per labelled one (empty: by size)")
    steps: int | None = Field(None, ge=1, description="optimizer steps of a distillation (empty: by size)")
    epochs: int | None = Field(None, ge=1, description="epochs of tuning the teacher (empty: by size)")
    test_rows: int | None = Field(None, ge=8, description="test rows scored (empty: by size)")
    seed: int = Field(13, ge=0, description="draws the splits and seeds the training")
    log_examples: bool = LOG_EXAMPLES


def asset_of(name: str, known: Mapping[str, ModelConfig]) -> str:
    """The asset, folder or repository behind the name of a teacher or student."""
    return known[name].asset if name in known else name


def readable(model: M) -> M:
    """``model``, where one text goes into it.

    Raises:
        ValueError: a sequence-to-sequence model.
    """
    check_one_text(locate(model.asset))
    return model


def study_of(form: DistillForm) -> StudyConfig:
    """The few-shot problem of a form.

    Raises:
        ValueError: demonstrations for a sentence encoder.
    """
    teacher = TEACHERS.get(form.teacher) or readable(teacher_of(form.teacher))
    if form.demonstrations and teacher.kind == "encoder":
        raise ValueError(
            f"demonstrations={form.demonstrations}: teacher {form.teacher} is a sentence encoder and reads one text; "
            "leave them out, or give a language model"
        )
    schedule = teacher.train.model_copy(update={"epochs": form.epochs, "steps": None})
    return StudyConfig(
        task=form.task,
        k=form.k,
        n=form.n,
        seed=form.seed,
        splits=form.splits,
        teacher=TeacherConfig(
            **teacher.model_dump() | {"train": schedule, "tuning": form.tuning, "demonstrations": form.demonstrations}
        ),
        student=STUDENTS.get(form.student) or readable(student_of(form.student)),
        gate=GateConfig(cross_fit=form.cross_fit),
        test_rows=form.test_rows,
        steps=form.steps,
    )


def method_names(form: DistillForm) -> list[str]:
    """The methods asked for, the baseline first.

    Raises:
        ValueError: an unknown method.
    """
    for name in form.methods:
        if name not in METHODS:
            raise ValueError(f"unknown method {name!r}{nearest(name, METHODS)} Allowed: {', '.join(METHODS)}")
    return list(dict.fromkeys([BASELINE, *form.methods]))


def problem(form: DistillForm) -> Problem:
    """What this distillation transfers.

    Raises:
        ValueError: a task of another kind.
    """
    kind = load_task(form.task).kind
    if kind not in ("single", "pair"):
        raise ValueError(f"task {form.task!r} is of kind {kind!r}; distillation is for texts with class labels")
    return Problem(
        source=f"{form.teacher}, prompted and tuned on {form.k} examples a class",
        target=f"{form.student} as a classifier",
        knowledge="answers and representations of the teacher on labelled and unlabelled texts",
        domain=form.task,
        objective="test accuracy; the gate decides on dev rows",
        budget=f"{form.k} labels a class to train and as many to decide, {form.steps} train_steps",
    )


@transfer_flow(
    "distill",
    level="content",
    parameters=DistillForm,
    problem=problem,
    title="Distil a prompt-tuned teacher into a small student from a few labels",
)
def distill_flow(form: DistillForm) -> Artifact:
    problem(form)  # a plan has not asked it yet
    methods, data = method_names(form), load_data(form.task)
    teacher, student = load_model(asset_of(form.teacher, TEACHERS)), load_model(asset_of(form.student, STUDENTS))
    study = study_of(form)
    prompts = build_prompts(PromptsConfig(study=study, methods=tuple(methods)), data=data)
    tuned = tune_teacher(TuneConfig(study=study), prompts=prompts, teacher=teacher)
    wanted = SignalsConfig(study=study, methods=tuple(methods), zero_shot=form.size != "smoke")
    signals = cache_signals(wanted, prompts=prompts, tuned=tuned, student=student)
    students = gather(
        {m: distill.submit(DistilConfig(study=study, method=m), signals=signals, student=student) for m in methods}
    )
    evaluated = evaluate_students(EvaluateConfig(study=study), signals=signals, students=students, tuned=tuned)
    best = "prompt_distiller" if "prompt_distiller" in students else methods[-1]
    served = METHODS[best].kind != "gold"  # a ceiling has read labels that nobody has
    model = {}
    if not is_planning() and served:
        name, hits = f"distilled-{Path(form.task).stem}", hits_of(evaluated, best)
        model = {"model": register_model(name, students[best], evaluated, best, hits)}
    models = {"teacher": study.teacher, "student": study.student}
    facts = {role: f"{m.asset}, {READ_AS[m.kind]}" for role, m in models.items()}
    facts |= {"task": form.task, "seed": str(form.seed), **model}
    quoted = {}
    if form.log_examples:
        wanted = QuoteConfig(tasks=(form.task,), models=(best,), test_examples=form.test_rows)
        quoted = {"quoted": quote_mistakes(wanted, evaluated={"test": evaluated})}
    config = ReportConfig(title=f"Distillation on {form.task}", method=best, facts=facts)
    made = {"signals": signals, "students": students, "tuned": tuned, "prompts": prompts}
    return report_students(config, evaluated=evaluated, **made, **quoted)
