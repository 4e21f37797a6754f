"""What evolve-merge does differently for the two kinds of base; searches, budgets and the report are the same.

encoder           experts with a head a task   aligned heads   a packaged classifier, registered
language model    LoRA adapters                no heads        a packaged language model
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from core.data.tasks import load_task
from core.merge.adapter_experts import AdapterConfig
from core.merge.language_suite import as_prompted_tasks
from core.models.train import TrainConfig
from flows.merge import MergeForm, align_config, load_base, make_experts, task_names
from tasks.align_heads import SUFFIX, align_heads
from tasks.evaluate_language import evaluate_language
from tasks.evaluate_merges import EvaluateConfig, evaluate_merges, hits_of
from tasks.fan_out import gather
from tasks.language_base import as_safetensors, is_language
from tasks.load_data import load_data
from tasks.load_model import load_model
from tasks.package_language import PackageLanguageConfig, package_language
from tasks.package_merge import PackageConfig, package_merge
from tasks.register_model import register_model
from tasks.report_evolution import ENCODERS, LANGUAGE
from tasks.stage import Artifact, is_planning
from tasks.take_adapter import TakeAdapterConfig, take_adapter
from tasks.train_adapter import TrainAdapterConfig, train_adapter

Models = dict[str, Artifact]


@dataclass(frozen=True)
class Family:
    """One kind of base.

    Attributes:
        target: what the merge of so many (``{}``) tasks is, after the base's name.
        about: what the report says of its tests.
        task_names: form -> the checked tasks of a run.
        load_base: form -> the base as merging reads it.
        make_experts: form, tasks, base -> task -> expert.
        deliver: form, base, experts, merged models, for each of them the artifact of the stage that chose its recipe,
            name of the one to package -> what evaluation found, and facts for the report.
    """

    target: str
    about: str
    task_names: Callable[[Any], list[str]]
    load_base: Callable[[Any], Artifact]
    make_experts: Callable[[Any, list[str], Artifact], Models]
    deliver: Callable[[Any, Artifact, Models, Models, Models, str], tuple[Artifact, dict[str, str]]]


def family_of(base: str) -> Family:
    """The family of a base by its name."""
    return LANGUAGE_MODEL if is_language(base) else ENCODER


def _deliver_encoder(
    form: MergeForm, base: Artifact, experts: Models, merged: Models, spent: Models, best: str
) -> tuple[Artifact, dict[str, str]]:
    aligned = {}
    if form.align:
        aligned["aligned"] = align_heads(align_config(form), experts=experts, merged=merged)
    evaluated = evaluate_merges(_test(form), base=base, experts=experts, merged=merged, spent=spent, **aligned)
    packing = PackageConfig(max_length=form.max_length, method=best)
    also = {"also": [load_model(m) for m in form.experts.values()]} if form.experts else {}
    package = package_merge(packing, base=base, experts=experts, merged=merged, **also, **aligned)
    if not is_planning():
        served = best + (SUFFIX if form.align else "")
        register_model("evolved-encoder", package, evaluated, served, hits_of(evaluated, served))
    return evaluated, {}


def _prompted_names(form: MergeForm) -> list[str]:
    if form.log_examples:
        raise ValueError(
            "log_examples quotes what a classifier answered with its probabilities; it is not there for a language "
            "model: leave it out"
        )
    return task_names(form, as_prompted_tasks)


def _load_language_model(form: MergeForm) -> Artifact:
    return as_safetensors(load_model(form.base))


def _make_adapters(form: MergeForm, names: list[str], base: Artifact) -> Models:
    given = {load_task(n).name: load_model(m, adapter=True) for n, m in form.experts.items()}
    train = TrainConfig(lr=5e-4, epochs=form.epochs, batch_size=16, dropout=False)
    adapter, started = AdapterConfig(examples=form.examples, max_words=form.max_length, seed=form.seed, train=train), {}
    tasks = {load_task(n).name: n for n in names}
    for task, n in sorted(tasks.items(), key=lambda t: t[0] not in given):  # one that does not fit is told at once
        data = load_data(n)
        if task in given:
            taken = TakeAdapterConfig(task=n, max_words=form.max_length)
            started[task] = take_adapter.submit(taken, model=given[task], base=base, data=data)
        else:
            started[task] = train_adapter.submit(TrainAdapterConfig(task=n, adapter=adapter), base=base, data=data)
    return gather({task: started[task] for task in tasks})


def _deliver_language_model(
    form: MergeForm, base: Artifact, experts: Models, merged: Models, spent: Models, best: str
) -> tuple[Artifact, dict[str, str]]:
    evaluated = evaluate_language(_test(form), base=base, experts=experts, merged=merged, spent=spent)
    packing = PackageLanguageConfig(method=best)
    also = {"also": [load_model(m, adapter=True) for m in form.experts.values()]} if form.experts else {}
    package = package_language(packing, base=base, experts=experts, merged=merged[best], **also)
    if is_planning():
        return evaluated, {}
    told = register_model("evolved-language-model", package, evaluated, best, hits_of(evaluated, best))
    return evaluated, {"merged model": f"{package.path} (transferopt predict), {told}"}


def _test(form: MergeForm) -> EvaluateConfig:
    return EvaluateConfig(test_examples=form.test_examples, max_length=form.max_length, seed=form.seed)


ENCODER = Family(
    target="encoder with {} heads",
    about=ENCODERS,
    task_names=task_names,
    load_base=load_base,
    make_experts=make_experts,
    deliver=_deliver_encoder,
)
LANGUAGE_MODEL = Family(
    target="language model that answers {} tasks",
    about=LANGUAGE,
    task_names=_prompted_names,
    load_base=_load_language_model,
    make_experts=_make_adapters,
    deliver=_deliver_language_model,
)
