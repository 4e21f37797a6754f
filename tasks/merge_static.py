"""Static merges: choose each operator's scale on validation, in memory."""

import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from pydantic import Field

from core.config import Config
from core.merge.adapter_vectors import adapter_vectors
from core.merge.candidate import InMemoryModel
from core.merge.experts import Expert, check_tasks, load_expert
from core.merge.language import in_memory, language_objectives
from core.merge.language_suite import answered
from core.merge.objectives import EncoderObjective, score_encoder
from core.merge.static import static_deltas, static_methods, tune
from core.merge.suite import objectives
from core.merge.task_vectors import TaskVectors, task_vectors
from core.models.load import load_causal, load_encoder
from core.models.score import resolve_dtype
from core.state import write_json
from core.transfer.budget import Budget
from tasks.costed import costed
from tasks.load_model import ADAPTER, opened
from tasks.stage import Artifact, Output, stage

CHOICE = "choice.json"


class StaticConfig(Config):
    """Which operators are tried, and on how much validation data."""

    methods: tuple[str, ...] = Field(description="names of static methods")
    validation_examples: int = Field(200, ge=20, description="validation examples a task for choosing the scale")
    max_length: int = Field(64, ge=8, description="longest text in tokens")
    seed: int = Field(0, description="draw of validation examples, random operators")


def experts_of(artifacts: Mapping[str, Artifact]) -> list[Expert]:
    """Experts in the order of their task names, checked to be of one base and of different tasks."""
    found = [load_expert(artifacts[name].folder) for name in sorted(artifacts)]
    check_tasks(found)
    return found


def vectors_of(base: Artifact, experts: list[Expert]) -> TaskVectors:
    """The experts' task vectors."""
    folders = {e.task: e.folder for e in experts}
    return (adapter_vectors if are_adapters(experts) else task_vectors)(base.folder, folders)


def are_adapters(experts: Sequence[Expert]) -> bool:
    """Whether the experts are adapters of a language model, and no encoders with heads."""
    return all((e.folder / ADAPTER).is_file() for e in experts)


Hits = Mapping[str, np.ndarray]  # task -> hit (1) or miss (0) of each validation example


@stage("tune-static-merges", modules=["core.merge.static", "core.merge.suite", "core.merge.language_suite"])
@costed
def tune_static(out: Output, config: StaticConfig, base: Artifact, experts: Mapping[str, Artifact]) -> None:
    """Merge with every operator at several scales and choose each one's scale on validation data."""
    found = experts_of(experts)
    methods = static_methods(config.methods, len(found))
    components = static_deltas(vectors_of(base, found), methods, config.seed)
    judge = (_language if are_adapters(found) else _encoder)(base, found, components, config)
    budget = Budget("task_examples")
    tuned = tune(components, methods, lambda c: _mean(judge(c), budget))
    for name, t in tuned.items():
        out.curve(f"validation/{name}", [(round(1000 * scale), value) for scale, value in t.curve])
    write_json(out.folder / CHOICE, {n: {"scale": t.scale, "curve": list(t.curve)} for n, t in tuned.items()})
    out.metrics({f"scale/{n}": t.scale for n, t in tuned.items()})
    out.budget(budget.counts)


def best_on_validation(tuned: Artifact) -> str:
    """The method whose best scale scored highest on validation; the first among equals."""
    choice = json.loads((tuned.folder / CHOICE).read_text())
    return max(choice, key=lambda name: max(value for _, value in choice[name]["curve"]))


def _encoder(
    base: Artifact, experts: list[Expert], components: TaskVectors, config: StaticConfig
) -> Callable[[np.ndarray], Hits]:
    """Coefficients of the components -> hits of an encoder with the experts' heads."""
    encoder = load_encoder(base.folder)
    encoder.max_length = min(config.max_length, encoder.max_length)
    tasks = objectives(encoder, experts, "validation", config.validation_examples, config.seed)
    model = InMemoryModel(encoder, components, [0] * len(components.tensors), _dtype(encoder.device.type))
    return lambda coefficients: _heads_right(model.write(coefficients), tasks)


def _language(
    base: Artifact, experts: list[Expert], components: TaskVectors, config: StaticConfig
) -> Callable[[np.ndarray], Hits]:
    """Coefficients of the components -> hits of a language model."""
    lm = load_causal(opened(base))
    tasks = language_objectives(experts, lm.tokenizer, "validation", config.validation_examples, config.seed)
    dtype = _dtype(next(lm.model.parameters()).device.type)
    model = in_memory(lm.model, components, [0] * len(components.tensors), dtype)
    return lambda coefficients: answered(model.write(coefficients), tasks)


def _dtype(device: str):
    import torch

    return getattr(torch, resolve_dtype("auto", device))


def _heads_right(encoder, tasks: Mapping[str, EncoderObjective]) -> Hits:
    wanted = {name: np.arange(task.size) for name, task in tasks.items()}
    return {name: scored.correct for name, scored in score_encoder(encoder, tasks, wanted).items()}


def _mean(hits: Hits, budget: Budget) -> float:
    """Mean validation accuracy over the tasks."""
    budget.spend(sum(len(h) for h in hits.values()))
    return float(np.mean([h.mean() for h in hits.values()]))
