"""The chain: search a structure, distil a student a task from one start, merge the students into one model."""

from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field

from core.chain.start import WarmUp
from core.chain.students import check_method
from core.data.tasks import load_task
from core.distill.students import ModelConfig
from core.distill.study import StudyConfig
from core.distill.teachers import TEACHERS, teacher_of
from core.merge.static import static_methods
from core.merge.suite import as_tasks
from core.transfer.problem import Problem
from flows.forms import Form
from flows.runtime import transfer_flow
from flows.task_names import check_heads
from tasks.align_heads import SUFFIX, AlignConfig, align_heads
from tasks.build_prompts import PromptsConfig, build_prompts
from tasks.check_students import CheckConfig, check_students
from tasks.cut_start import CutConfig, cut_start
from tasks.distill_student import DistillStudentConfig, distill_student
from tasks.evaluate_merges import EvaluateConfig, evaluate_merges, hits_of
from tasks.evaluate_teachers import EvaluateTeachersConfig, evaluate_teachers
from tasks.fan_out import gather
from tasks.load_data import load_data
from tasks.load_model import load_model
from tasks.merge_recipe import MergeConfig, merge_recipe
from tasks.merge_static import StaticConfig, best_on_validation, tune_static
from tasks.package_merge import PackageConfig, package_merge
from tasks.register_model import register_model
from tasks.report_chain import ChainReportConfig, report_chain
from tasks.search_structure import Searcher, SearchStructureConfig, TextsConfig, search_structure
from tasks.stage import Artifact, is_planning
from tasks.tune_teacher import TuneConfig, tune_teacher

METHODS = ("task_arithmetic", "iso_c", "tsv_m")


class PipelineForm(Form):
    """What is searched, taught and merged."""

    sizes: ClassVar = {
        "smoke": {
            "k": 8,
            "n": 4,
            "epochs": 1,
            "queries": 2,
            "search_texts": 16,
            "warm_up": 32,
            "steps": 4,
            "max_length": 32,
            "validation_examples": 24,
            "test_examples": 40,
            "most_tasks": 2,
            "methods": ("average", "task_arithmetic"),
        },
        "default": {
            "k": 64,
            "n": 6,
            "epochs": 6,
            "queries": 8,
            "search_texts": 160,
            "warm_up": 1920,
            "steps": 60,
            "max_length": 64,
            "validation_examples": 150,
            "test_examples": 300,
            "most_tasks": 3,
            "methods": METHODS,
        },
        "full": {
            "k": 250,
            "n": 8,
            "epochs": 12,
            "queries": 24,
            "search_texts": 1000,
            "warm_up": 60_000,
            "steps": 800,
            "max_length": 128,
            "validation_examples": 1000,
            "test_examples": 100_000,
            "most_tasks": 99,
            "methods": METHODS,
        },
    }

    tasks: tuple[str, ...] = Field(
        ("rt_fresh", "rt_plot", "debate_party"), description="text classification tasks: built-in names or task files"
    )
    most_tasks: int | None = Field(None, ge=2, description="at most so many of the tasks (empty: by size)")
    base: str = Field("all-minilm-l6-v2", description="encoder that students are cut from: asset, folder or hub name")
    teacher: str = Field(
        "minilm", description="teacher of every task: minilm, smollm2, mpnet, or any asset, folder, hub repository"
    )
    keep: int = Field(3, ge=1, le=64, description="students are as large as so many layers of the base")
    searcher: Searcher = Field("predictor_onehot", description="how structures are searched")
    queries: int | None = Field(None, ge=1, le=500, description="structures distilled and judged (empty: by size)")
    search_texts: int | None = Field(None, ge=8, description="unlabelled texts a task in one query (empty: by size)")
    k: int | None = Field(None, ge=1, description="labelled examples per class (empty: by size)")
    n: float | None = Field(None, gt=0, description="unlabelled texts per labelled one (empty: by size)")
    epochs: int | None = Field(None, ge=1, le=100, description="epochs of tuning a teacher (empty: by size)")
    warm_up: int | None = Field(None, ge=1, description="texts on which the cut start is warmed up (empty: by size)")
    distillation: str = Field("vanilla_kd", description="how a student is taught: a method of the flow distill")
    steps: int | None = Field(None, ge=1, description="optimizer steps of a student (empty: by size)")
    methods: tuple[str, ...] | None = Field(None, description="static merge operators to compare (empty: by size)")
    max_length: int | None = Field(None, ge=8, le=512, description="longest text in tokens (empty: by size)")
    validation_examples: int | None = Field(
        None, ge=20, description="a task, to judge structures and to choose scales (empty: by size)"
    )
    test_examples: int | None = Field(None, ge=20, description="a task, for the result (empty: by size)")
    align: bool = Field(
        False,
        description="fit heads to the merged encoder, on the students' answers to unlabelled validation texts; off, "
        "because students of one start hardly drift apart and the merge may be better than they are",
    )
    seed: int = Field(0, ge=0, description="draws, initialisation, batch order, search")


def task_names(form: PipelineForm) -> list[str]:
    """The tasks a form asks for.

    Raises:
        ValueError: fewer than two, one twice, two files of one name, or no text classification.
    """
    names = list(form.tasks)[: form.most_tasks]
    if len(names) < 2:
        raise ValueError(f"the chain merges students of at least two tasks, got {names}")
    as_tasks(names)
    check_heads(names)
    return names


def problem(form: PipelineForm) -> Problem:
    """What this chain transfers."""
    names = task_names(form)
    return Problem(
        source=f"{form.teacher}, tuned on {form.k} examples a class, one teacher a task",
        target=f"one sub-network of {form.base} as large as {form.keep} layers, with {len(names)} heads",
        knowledge="answers of the teachers; weights of the base; task vectors of the students",
        domain=", ".join(names),
        objective="mean validation accuracy chooses structure and scale, test accuracy is reported",
        budget=f"{form.queries} structures (queries), {form.k} labels a class, {form.steps} train_steps a student",
    )


def studies_of(form: PipelineForm, names: list[str]) -> dict[str, StudyConfig]:
    """Task name -> its few-shot problem.

    Raises:
        ValueError: unknown distillation or merge operator.
    """
    check_method(form.distillation)
    static_methods(form.methods, len(names))
    teacher = TEACHERS.get(form.teacher) or teacher_of(form.teacher)
    schedule = teacher.train.model_copy(update={"epochs": form.epochs, "steps": None})
    shared = {
        "k": form.k,
        "n": form.n,
        "seed": form.seed,
        "teacher": teacher.model_copy(update={"train": schedule}),
        "student": ModelConfig(asset=form.base),
        "steps": form.steps,
    }
    return {load_task(n).name: StudyConfig(task=n, **shared) for n in names}


@dataclass(frozen=True)
class Arm:
    """What was made of one structure: students and merges by name, and the stages that the report reads."""

    students: dict[str, Artifact]
    merged: dict[str, Artifact]
    parts: dict[str, Artifact]


def run_arm(
    form: PipelineForm, cut: CutConfig, studies: dict[str, StudyConfig], given: dict, tuned: dict[str, Artifact]
) -> Arm:
    """Start, students and merges of one structure, scored on test."""
    start = cut_start(cut, **given)
    length = form.max_length
    taught = {
        name: distill_student.submit(
            DistillStudentConfig(study=study, method=form.distillation, max_length=length),
            start=start,
            prompts=given["prompts"][name],
            tuned=tuned[name],
        )
        for name, study in studies.items()
    }
    students = gather(taught)
    checked = check_students(CheckConfig(), start=start, students=students)
    names = tuple(static_methods(form.methods, len(students)))
    static = StaticConfig(
        methods=names, validation_examples=form.validation_examples, max_length=length, seed=form.seed
    )
    scales = tune_static(static, base=start, experts=students)
    merging = {
        m: merge_recipe.submit(MergeConfig(method=m, seed=form.seed), base=start, experts=students, tuned=scales)
        for m in names
    }
    merged = gather(merging)
    fitting = AlignConfig(examples=form.validation_examples, max_length=length, seed=form.seed)
    aligned = {"aligned": align_heads(fitting, experts=students, merged=merged, tuned=scales)} if form.align else {}
    test = EvaluateConfig(test_examples=form.test_examples, max_length=length, seed=form.seed)
    spent = dict.fromkeys(merged, scales)
    evaluated = evaluate_merges(test, base=start, experts=students, merged=merged, spent=spent, **aligned)
    parts = {"start": start, "checked": checked, "scales": scales, "evaluated": evaluated, **aligned}
    return Arm(students, merged, parts)


@transfer_flow(
    "pipeline",
    level="operation",
    parameters=PipelineForm,
    problem=problem,
    title="Search a student, distil one a task from the same start, merge them into one multi-task model",
    headline=("accuracy", "of_teacher", "difference", "p"),
)
def pipeline(form: PipelineForm) -> Artifact:
    names = task_names(form)
    studies = studies_of(form, names)
    base, teacher = load_model(form.base), load_model(next(iter(studies.values())).teacher.asset)
    prompts = {n: build_prompts(PromptsConfig(study=s), data=load_data(s.task)) for n, s in studies.items()}
    texts = TextsConfig(
        tasks=tuple(names),
        k=form.k,
        n=form.n,
        validation_examples=form.validation_examples,
        max_length=form.max_length,
        seed=form.seed,
    )
    wanted = SearchStructureConfig(
        texts=texts, keep=form.keep, queries=form.queries, unlabelled=form.search_texts, searcher=form.searcher
    )
    search = search_structure(wanted, base=base, prompts=prompts)
    tuned = gather(
        {n: tune_teacher.submit(TuneConfig(study=s), prompts=prompts[n], teacher=teacher) for n, s in studies.items()}
    )
    given = {"base": base, "prompts": prompts, "search": search}
    warm = WarmUp(examples=form.warm_up, max_length=form.max_length)
    arms = {
        label: run_arm(form, CutConfig(texts=texts, structure=label, warm_up=warm), studies, given, tuned)
        for label in ("searched", "first layers")
    }
    scored = EvaluateTeachersConfig(studies=studies, test_examples=form.test_examples, seed=form.seed)
    teachers = evaluate_teachers(scored, tuned=tuned)
    package_best(form, arms["searched"], teacher)
    facts = {"base": form.base, "teacher": form.teacher, "tasks": ", ".join(names), "size": form.size,
             "seed": str(form.seed), "as large as": f"{form.keep} layers"}  # fmt: skip
    labels = form.validation_examples * len(names)
    title = f"One student of {len(names)} teachers: searched, distilled, merged"
    return report_chain(
        ChainReportConfig(title=title, facts=facts, validation_labels=labels, seed=form.seed),
        arms={label: arm.parts for label, arm in arms.items()},
        students={label: arm.students for label, arm in arms.items()},
        tuned=tuned,
        search=search,
        teachers=teachers,
        teacher=teacher,
        base=base,
    )


def package_best(form: PipelineForm, arm: Arm, teacher: Artifact) -> None:
    """Package the merge of the searched structure that was best on validation, and hand it to the registry."""
    scales = arm.parts["scales"]
    aligned = {"aligned": arm.parts["aligned"]} if form.align else {}
    package = package_merge(
        PackageConfig(max_length=form.max_length),
        tuned=scales,
        base=arm.parts["start"],
        experts=arm.students,
        merged=arm.merged,
        also=[teacher],
        **aligned,
    )
    if not is_planning():
        best = best_on_validation(scales) + (SUFFIX if form.align else "")
        evaluated = arm.parts["evaluated"]
        register_model("pipeline-student", package, evaluated, best, hits_of(evaluated, best))
