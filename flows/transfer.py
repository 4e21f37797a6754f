"""When and how to transfer: rank sources, use, adjust or retrain, and report what it gained."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from core.data.assets import declared, find_local, state
from core.data.augment import IMAGE, TEXT
from core.data.check import metric_problem
from core.data.cleaning import FAULTS
from core.data.normalise import TEXT_STEPS
from core.data.tasks import Task, load_task
from core.evaluate.metrics import METRICS
from core.hashing import content_key
from core.registry import nearest
from core.transfer.experiment import DataSteps, prepared
from core.transfer.history import default_history, other_experiences
from core.transfer.problem import Problem
from core.transfer.scores import SCORES
from core.transfer.strategies import STRATEGIES, StrategyConfig
from core.transfer.target import kind_of
from flows.forms import Form
from flows.runtime import transfer_flow
from tasks.adapt import KEPT, AdaptConfig, adapt
from tasks.fan_out import gather
from tasks.load_data import load_data
from tasks.load_model import load_model
from tasks.quote_mistakes import LOG_EXAMPLES, QuoteConfig, quote_mistakes
from tasks.rank_sources import RankConfig, rank
from tasks.report_transfer import ReportTransferConfig, report_transfer
from tasks.sources import modality_of
from tasks.stage import Artifact, is_planning
from tasks.train_source import TrainSourceConfig, train_on

RETRAIN, PROBE = "scratch", "linear_probe"
TEXT_SOURCE = "all-minilm-l6-v2"


class TransferForm(Form):
    """What is transferred to which target, and by which strategies."""

    sizes: ClassVar = {
        "smoke": {"examples": 24, "seeds": 1, "test_examples": 40, "passes": 48, "curve": 1},
        "default": {"examples": 200, "seeds": 3, "test_examples": 300, "passes": 480, "curve": 1},
        "full": {"examples": 1000, "seeds": 5, "test_examples": 2000, "passes": 2000, "curve": 5},
    }

    sources: tuple[str, ...] = Field((TEXT_SOURCE,), description="source models: asset, folder or hub name")
    source_tasks: tuple[str, ...] = Field((), description="source data sets: the first model, trained first on each")
    target: str = Field("auto", description="target task; auto: trec with local data, else rt_plot from an archive")
    strategies: tuple[str, ...] = Field(("share", "full", RETRAIN), description="strategies to compare")
    examples: int | None = Field(None, ge=4, description="training examples of the target (empty: by size)")
    curve: int | None = Field(None, ge=1, le=8, description="sizes of the data-efficiency curve (empty: by size)")
    seeds: int | None = Field(None, ge=1, description="seeds: samples, initialisation, batch order (empty: by size)")
    test_examples: int | None = Field(None, ge=20, description="test examples (empty: by size)")
    passes: int | None = Field(None, ge=1, description="training examples to pass, epochs counted (empty: by size)")
    score: str = Field("logme", description="transferability score that ranks sources")
    budget_s: float | None = Field(None, gt=0, description="largest predicted seconds of the recommended strategy")
    clean: tuple[str, ...] = Field(DataSteps().clean, description="faults to remove from train and validation")
    normalise: tuple[str, ...] = Field((), description="text normalisation: html, unicode, spaces, lower")
    augment: tuple[str, ...] = Field((), description="augmentation of the training examples, e.g. word_drop, synonym")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="optimizer")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="learning-rate decay after warm-up")
    warmup: float = Field(0.1, ge=0, le=1, description="share of steps with rising learning rate")
    architecture: str = Field("", description="for searched: space:genotype as a search run reports it")
    max_length: int = Field(64, ge=8, le=512, description="longest text in tokens")
    keep_model: bool = Field(False, description="keep the trained models (full, freeze, scratch on text)")
    profile: bool = Field(False, description="write a trace of each strategy's first fit")
    seed: int = Field(0, ge=0, description="first seed")
    log_examples: bool = LOG_EXAMPLES


def target_task(form: TransferForm) -> str:
    """The target, ``auto`` resolved."""
    return form.target if form.target != "auto" else "trec" if find_local("text") else "rt_plot"


def problem(form: TransferForm) -> Problem:
    """What this transfer is."""
    task = load_task(target_task(form))
    return Problem(
        source=", ".join([*form.sources, *(f"{form.sources[0]} trained on {t}" for t in form.source_tasks)]),
        target=f"a model for {task.name} from {form.examples} examples",
        knowledge="representations (share), weights (adjust), architecture alone (retrain)",
        domain=task.name,
        objective=f"test {task.metric}; strategy and source are chosen on training data alone",
        budget=f"{form.examples} train_labels, at most {form.passes} train_examples a run",
    )


def examples_there(form: TransferForm, target: str, steps: DataSteps) -> int:
    """How many training examples a run gets: those asked for, at most all that the data stages leave."""
    asset = load_task(target).source.asset
    if is_planning() and asset and state(declared(asset)) not in ("cached", "local"):
        return form.examples  # a plan fetches nothing
    return min(form.examples, len(prepared(target, steps)[0].train))


def curve_sizes(most: int, count: int) -> tuple[int, ...]:
    """``count`` sizes up to ``most``, each half of the next."""
    return tuple(sorted({min(most, max(8, most // 2**k)) for k in range(count)}))


def baseline(strategies: Sequence[str]) -> str:
    """What gains are measured against: training without transfer, else the linear probe, else the first strategy."""
    return next((s for s in (RETRAIN, PROBE) if s in strategies), strategies[0])


@transfer_flow(
    "transfer",
    level="transfer",
    parameters=TransferForm,
    problem=problem,
    title="Share, adjust or retrain: rank sources, compare strategies, report what the transfer gained",
)
def transfer(form: TransferForm) -> Artifact:
    _check_arms(form)
    target = target_task(form)
    task = load_task(target)
    _check_names(form, task)
    modality, data = modality_of(target), load_data(target)
    _check_modality(form, task, target, modality)
    steps = DataSteps(clean=form.clean, normalise=form.normalise, augment=form.augment)
    examples = examples_there(form, target, steps)
    sizes = curve_sizes(examples, form.curve)
    if min(sizes) < task.n_classes:
        raise ValueError(
            f"examples={examples} with curve={form.curve} begin at {min(sizes)} training examples, target {target} has "
            f"{task.n_classes} classes; give more examples or a shorter curve"
        )
    models = _models(form, reads_text=modality in ("text", "language"))
    trained = _trained(form, target, models)
    sources = models | trained
    seeds = tuple(range(form.seed, form.seed + form.seeds))
    history = default_history()
    training = StrategyConfig(
        examples=form.passes,
        min_epochs=2,
        optimizer=form.optimizer,
        schedule=form.schedule,
        warmup=form.warmup,
        architecture=form.architecture,
    )
    ranking = rank(
        RankConfig(
            target=target,
            modality=modality,
            examples=examples,
            seed=form.seed,
            steps=steps,
            score=form.score,
            strategies=form.strategies,
            training=training,
            budget_s=form.budget_s,
            max_length=form.max_length,
            history=str(history),
            history_sha256=_known(history, task, examples, modality),
        ),
        sources=sources,
        data=data,
    )
    started = {
        f"{name} / {strategy}": adapt.submit(
            AdaptConfig(
                strategy=strategy,
                source=name,
                target=target,
                modality=modality,
                sizes=sizes,
                seeds=seeds,
                test_examples=form.test_examples,
                steps=steps,
                training=training,
                max_length=form.max_length,
                keep_model=form.keep_model and strategy in KEPT,
                keep_answers=form.log_examples,
                profile=form.profile,
            ),
            source=source,
            data=data,
        )
        for name, source in sources.items()
        for strategy in form.strategies
    }
    runs = gather(started)
    without = baseline(form.strategies)
    told = f"{examples} examples" + (f" (all; {form.examples} asked for)" if examples < form.examples else "")
    facts = {"sources": ", ".join(sources), "target": f"{task.name}, {told}", "size": form.size}
    config = ReportTransferConfig(
        target=task.name,
        metric=task.metric,
        kind=kind_of(task),
        modality=modality,
        without=without,
        examples=examples,
        history=str(history),
        facts=facts,
    )
    also = _quoted(form, target, runs) | ({"trained": trained} if trained else {})
    return report_transfer(config, ranking=ranking, runs=runs, **also)


def _check_arms(form: TransferForm) -> None:
    """Refuse a comparison without models or without two strategies.

    Raises:
        ValueError: naming what is missing.
    """
    if not form.sources:
        raise ValueError("sources is empty; give at least one model: an asset, a folder or a hub name")
    for name in form.strategies:
        STRATEGIES.entry(name)
    if len(form.strategies) < 2 or len(set(form.strategies)) < len(form.strategies):
        raise ValueError(
            f"strategies are {', '.join(form.strategies) or 'none'}; give at least two different ones, one of them "
            "without transfer (scratch) or the linear probe"
        )


def _check_modality(form: TransferForm, task: Task, target: str, modality: str) -> None:
    """Refuse a target that the sources, or the quoting of texts, cannot read.

    Raises:
        ValueError: naming what does not fit.
    """
    if form.source_tasks and modality != "text":
        raise ValueError(
            f"source_tasks train text classifiers, target {target} is of modality {modality}; leave them out"
        )
    for name in form.source_tasks:
        source = load_task(name)
        if source.key == task.key:
            raise ValueError(f"source task {name} is the target itself; name another data set")
        if not source.labels:
            raise ValueError(f"source task {name} has no classes to train a source on; name a classification task")
    if form.log_examples and (modality != "text" or not task.labels):
        raise ValueError(f"log_examples quotes texts with class labels; target {target} has none")
    if modality == "table":
        raise ValueError(f"target {target} is a table; tables have no ready source model: use core.transfer in Python")
    if modality == "image" and TEXT_SOURCE in form.sources:
        raise ValueError(f"target {target} has images, {TEXT_SOURCE} reads texts; give an image model with sources")


def _check_names(form: TransferForm, task: Task) -> None:
    """Refuse unknown names before any work.

    Raises:
        ValueError: naming the nearest right one.
    """
    SCORES.entry(form.score)
    METRICS.entry(task.metric)
    if unfit := metric_problem(task):
        raise ValueError(f"target {task.name}: {unfit}")
    for name in form.clean:
        if name not in FAULTS:
            raise ValueError(f"unknown fault {name!r} in clean{nearest(name, FAULTS)} Allowed: {', '.join(FAULTS)}")
    for name in form.normalise:
        TEXT_STEPS.entry(name)
    for name in form.augment:
        (IMAGE if task.kind == "image" else TEXT).entry(name)


def _quoted(form: TransferForm, target: str, runs: dict[str, Artifact]) -> dict[str, Artifact]:
    """The mistakes of every strategy for the report, where they are asked for."""
    if not form.log_examples:
        return {}
    config = QuoteConfig(tasks=(target,), test_examples=form.test_examples, normalise=form.normalise)
    return {"quoted": quote_mistakes(config, evaluated=runs)}


def _known(history: Path, task: Task, examples: int, modality: str) -> str:
    """Hash of the experiences that the advice may rest on: a run does not change its own key by being recorded."""
    found = other_experiences(history, task.name, examples, kind_of(task), modality)
    return content_key([e.row().key() for e in found])


def _models(form: TransferForm, reads_text: bool) -> dict[str, Artifact]:
    """Name in the report -> artifact of each source model."""
    models = {Path(name).name if Path(name).exists() else name: load_model(name, reads_text) for name in form.sources}
    if len(models) < len(form.sources):
        raise ValueError(f"two sources have the same name: {', '.join(form.sources)}")
    return models


def _trained(form: TransferForm, target: str, models: dict[str, Artifact]) -> dict[str, Artifact]:
    """The first model trained on each source data set."""
    first = next(iter(models.values()))
    started = {
        f"{form.sources[0]} + {task}": train_on.submit(
            TrainSourceConfig(task=task, target=target, max_length=form.max_length, seed=form.seed),
            base=first,
            data=load_data(task),
        )
        for task in form.source_tasks
    }
    return gather(started)
