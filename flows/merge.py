"""Merge experts with static operators: the first of the flows, and the example for all others."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

from pydantic import Field

from core.data.assets import find_local
from core.data.tasks import load_task
from core.merge.experts import ExpertConfig
from core.merge.static import STATIC, static_methods
from core.merge.suite import as_tasks, load_suite
from core.models.train import TrainConfig
from core.transfer.problem import Problem
from flows.forms import Form
from flows.runtime import transfer_flow
from flows.task_names import check_distinct, check_heads
from tasks.align_heads import SUFFIX, AlignConfig, align_heads
from tasks.diagnose import DiagnoseConfig, diagnose_experts
from tasks.evaluate_merges import EvaluateConfig, evaluate_merges, hits_of
from tasks.fan_out import gather
from tasks.load_data import load_data
from tasks.load_model import load_model
from tasks.merge_recipe import MergeConfig, merge_recipe
from tasks.merge_static import StaticConfig, best_on_validation, tune_static
from tasks.package_merge import PackageConfig, package_merge
from tasks.plain_encoder import as_plain_encoder
from tasks.quote_mistakes import LOG_EXAMPLES, QuoteConfig, quote_mistakes
from tasks.register_model import register_model
from tasks.report_merges import ReportConfig, report_merges
from tasks.stage import Artifact, is_planning
from tasks.take_expert import TakeExpertConfig, take_expert
from tasks.train_expert import TrainExpertConfig, train_expert


class MergeForm(Form):
    """Which experts are made and how they are merged."""

    sizes: ClassVar = {
        "smoke": {
            "methods": ("average", "ties"),
            "examples": 32,
            "epochs": 1,
            "max_length": 16,
            "validation_examples": 20,
            "test_examples": 20,
            "most_tasks": 2,
        },
        "default": {
            "methods": tuple(name for name in STATIC if name != "wudi"),  # forty seconds of the five minutes
            "epochs": 2,
            "max_length": 64,
            "most_tasks": 8,
        },
        "full": {
            "methods": tuple(STATIC),
            "examples": 2000,
            "epochs": 4,
            "max_length": 128,
            "validation_examples": 300,
            "test_examples": 100_000,
            "most_tasks": 99,
        },
    }

    # Over all tasks of the suite together, so that one of eight takes the same minutes as one of five.
    shared_out: ClassVar = {"examples": 5000, "validation_examples": 400, "test_examples": 1000}

    base: str = Field("all-minilm-l6-v2", description="encoder that all experts start from: asset, folder or hub name")
    suite: str = Field("auto", description="auto (eight with local data, else archive), eight, archive, or a YAML file")
    tasks: tuple[str, ...] = Field((), description="tasks instead of a suite: built-in names or task files")
    experts: dict[str, str] = Field(
        default_factory=dict,
        description="models fine-tuned elsewhere from the base: {task: folder or hub name}; other tasks are trained, "
        "and none but these where no task is named",
    )
    most_tasks: int | None = Field(None, ge=2, description="at most so many tasks of the suite (empty: by size)")
    methods: tuple[str, ...] | None = Field(None, description="static operators to compare (empty: by size)")
    examples: int | None = Field(
        None, ge=8, description="training examples an expert (empty: by size and number of tasks)"
    )
    epochs: int | None = Field(None, ge=1, le=50, description="training epochs an expert (empty: by size)")
    max_length: int | None = Field(None, ge=8, le=512, description="longest text in tokens (empty: by size)")
    validation_examples: int | None = Field(
        None, ge=20, description="a task, to choose scales (empty: by size and number of tasks)"
    )
    test_examples: int | None = Field(
        None, ge=20, description="a task, for the result (empty: by size and number of tasks)"
    )
    align: bool = Field(
        True, description="fit the heads to the merged encoder, on the experts' answers to unlabelled validation texts"
    )
    seed: int = Field(0, ge=0, description="draws, initialisation, batch order, random operators")
    log_examples: bool = LOG_EXAMPLES

    def resolved(self) -> Self:
        """Also what a default run shares out among its tasks: 20 to 1,000 texts each."""
        form = super().resolved()
        empty = [k for k in self.shared_out if getattr(form, k) is None]
        share = {k: min(1000, max(20, self.shared_out[k] // _count(form))) for k in empty}
        return form.model_copy(update=share)


def _count(form: MergeForm) -> int:
    """Tasks that a form names, else those of its suite, all of them."""
    return len({*form.tasks, *form.experts}) or len(_suite(form))


def _suite(form: MergeForm) -> list[str]:
    return load_suite(form.suite if form.suite != "auto" else "eight" if find_local("text") else "archive")


def as_headed_tasks(names: Sequence[str]) -> None:
    """Refuse what is no text classification, and names that no head can have.

    Raises:
        ValueError: naming the task, and what to do.
    """
    as_tasks(names)
    check_heads(names)


def task_names(form: MergeForm, check: Callable[[Sequence[str]], Any] = as_headed_tasks) -> list[str]:
    """The tasks of a run, each another one; ``check`` refuses those that its experts are not for."""
    check_distinct(form.experts)
    names = list(form.tasks)
    named = {load_task(n).name for n in names}
    names += [n for n in form.experts if load_task(n).name not in named]
    if not names:
        names = _suite(form)[: form.most_tasks]
    check(names)
    check_distinct(names)
    if len(names) < 2:
        raise ValueError(f"a merge needs at least two tasks, got {', '.join(names)}")
    return names


def check_methods(form: MergeForm, names: list[str]) -> None:
    """Refuse static operators none of which takes so many experts, before any is trained."""
    if not static_methods(form.methods, len(names)):
        named = f"methods {', '.join(form.methods)} merge two models" if form.methods else "methods is empty"
        raise ValueError(f"{named}, but there are {len(names)} tasks; name one that merges so many")


def problem(form: MergeForm) -> Problem:
    """What this merge transfers."""
    names = task_names(form)
    return Problem(
        source=f"{len(names)} experts of {form.base}, one a task{taken_from(form)}",
        target=f"one {form.base} encoder with {len(names)} heads",
        knowledge="task vectors (expert minus base)",
        domain=", ".join(names),
        objective="mean validation accuracy chooses the scale, test accuracy is reported",
        budget=f"{form.validation_examples} validation examples a task and scale (task_examples)",
    )


def taken_from(form: MergeForm) -> str:
    """Which experts were fine-tuned elsewhere, in words; empty without any."""
    return f"; fine-tuned elsewhere: {', '.join(form.experts.values())}" if form.experts else ""


def load_base(form: MergeForm) -> Artifact:
    """The base as merging reads it."""
    return as_plain_encoder(load_model(form.base))


def make_experts(form: MergeForm, names: list[str], base: Artifact) -> dict[str, Artifact]:
    """One expert of ``base`` a task."""
    given = {load_task(n).name: load_model(m) for n, m in form.experts.items()}
    train = TrainConfig(lr=1e-4, head_lr=3e-3, epochs=form.epochs, batch_size=16)
    draw = {"examples": form.examples, "max_length": form.max_length, "seed": form.seed}
    expert, started = ExpertConfig(**draw, train=train), {}
    tasks = {load_task(n).name: n for n in names}
    for task, n in sorted(tasks.items(), key=lambda t: t[0] not in given):  # one that does not fit is told at once
        data = load_data(n)
        if task in given:
            taken = TakeExpertConfig(task=n, **draw)
            started[task] = take_expert.submit(taken, model=given[task], base=base, data=data)
        else:
            started[task] = train_expert.submit(TrainExpertConfig(task=n, expert=expert), base=base, data=data)
    return gather({task: started[task] for task in tasks})


def merge_statically(form: MergeForm, base: Artifact, experts: dict[str, Artifact]) -> tuple[Artifact, dict]:
    """The scales chosen on validation, and each method's merged model."""
    methods = tuple(static_methods(form.methods, len(experts)))
    config = StaticConfig(
        methods=methods,
        validation_examples=form.validation_examples,
        max_length=form.max_length,
        seed=form.seed,
    )
    tuned = tune_static(config, base=base, experts=experts)
    return tuned, gather(
        {
            m: merge_recipe.submit(MergeConfig(method=m, seed=form.seed), base=base, experts=experts, tuned=tuned)
            for m in methods
        }
    )


def align_config(form: MergeForm) -> AlignConfig:
    """How heads are aligned: on the texts that chose the scales."""
    return AlignConfig(examples=form.validation_examples, max_length=form.max_length, seed=form.seed)


def quoted(form: MergeForm, names: list[str], model: str, evaluated: Artifact) -> dict[str, Artifact]:
    """The mistakes of a merged model for the report, where they are asked for."""
    if not form.log_examples:
        return {}
    config = QuoteConfig(tasks=tuple(names), models=(model,), test_examples=form.test_examples, seed=form.seed)
    return {"quoted": quote_mistakes(config, evaluated={"test": evaluated})}


@transfer_flow(
    "merge",
    level="system",
    parameters=MergeForm,
    problem=problem,
    title="Fine-tune experts of one base and merge them with static operators",
    headline=("accuracy", "normalised"),
)
def merge(form: MergeForm) -> Artifact:
    names = task_names(form)
    check_methods(form, names)
    base = load_base(form)
    experts = make_experts(form, names, base)
    tuned, merged = merge_statically(form, base, experts)
    aligned = (
        {"aligned": align_heads(align_config(form), experts=experts, merged=merged, tuned=tuned)} if form.align else {}
    )
    test = EvaluateConfig(test_examples=form.test_examples, max_length=form.max_length, seed=form.seed)
    spent = dict.fromkeys(merged, tuned)
    evaluated = evaluate_merges(test, base=base, experts=experts, merged=merged, spent=spent, **aligned)
    packing = PackageConfig(max_length=form.max_length)
    also = {"also": [load_model(m) for m in form.experts.values()]} if form.experts else {}
    package = package_merge(packing, tuned=tuned, base=base, experts=experts, merged=merged, **also, **aligned)
    best = "" if is_planning() else best_on_validation(tuned) + (SUFFIX if form.align else "")
    if not is_planning():
        register_model("merged-encoder", package, evaluated, best, hits_of(evaluated, best))
    facts = {"base": form.base, "tasks": ", ".join(names), "seed": str(form.seed), "size": form.size}
    facts |= {f"expert of {task}": model for task, model in form.experts.items()}
    config = ReportConfig(title=f"Static merges of {len(names)} experts", facts=facts)
    diagnosed = diagnose_experts(DiagnoseConfig(), base=base, experts=experts)
    stages = {"evaluated": evaluated, "tuned": tuned, "diagnosed": diagnosed, "experts": experts, **aligned}
    return report_merges(config, **stages, **quoted(form, names, best, evaluated))
