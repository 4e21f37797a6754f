"""One transfer measured: data stages, a training sample, a strategy, its rows, and why."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from pydantic import Field

from core.config import Config
from core.data.augment import augment
from core.data.cleaning import PARTS, Change, clean
from core.data.examples import Examples, Splits
from core.data.normalise import normalise_texts
from core.data.tasks import Task, load_task
from core.evaluate.rows import Row
from core.hashing import content_key
from core.transfer.budget import Budget
from core.transfer.effect import AFTER, BEFORE
from core.transfer.energy import ENERGY, counted
from core.transfer.explain import layer_similarity, under_change
from core.transfer.nets import Prediction
from core.transfer.own_classifier import NamedTarget
from core.transfer.sources import Source
from core.transfer.strategies import Fitted, StrategyConfig, fit
from core.transfer.target import Target, TargetError

EXPLAINED = 200  # test examples whose answers are asked for again under change
METRICS_OF = {
    "classification": ("accuracy", "balanced_accuracy", "f1_macro", "mcc", "auroc", "ece", "brier", "log_loss"),
    "regression": ("mse", "mae", "r2", "pearson", "spearman"),
    "generation": ("rouge_l", "bleu", "chrf", "exact_match", "wer"),
}


class DataSteps(Config):
    """What happens to the target's data before training; each step records what it changed."""

    clean: tuple[str, ...] = Field(
        ("empty", "duplicates", "conflicting", "leaks"), description="faults removed from train and validation"
    )
    normalise: tuple[str, ...] = Field((), description="text steps: html, unicode, spaces, lower")
    augment: tuple[str, ...] = Field((), description="augmentations of the training examples")
    copies: int = Field(1, ge=1, description="changed copies of each training example, where augmented")


class Trial(Config):
    """Which measurement: strategy, size, seed, and how it trains."""

    strategy: str = Field(description="name of the strategy")
    examples: int = Field(ge=1, description="training examples")
    seed: int = Field(0, ge=0, description="draw of the sample, initialisation, batch order")
    test_examples: int | None = Field(None, ge=1, description="test examples; none takes all")
    steps: DataSteps = Field(DataSteps(), description="data stages")
    training: StrategyConfig = Field(StrategyConfig(), description="how the strategy trains")
    explain: bool = Field(False, description="also measure layers and changed input")


@dataclass
class Outcome:
    """What a trial gave: rows, the fitted strategy, whether each test example was right, and the why."""

    rows: list[Row]
    fitted: Fitted
    correct: np.ndarray | None
    why: dict[str, Any] = field(default_factory=dict)


def prepared(task_name: str, steps: DataSteps) -> tuple[Splits, tuple[Change, ...]]:
    """The task's splits after cleaning and normalisation, and what changed. (Augmentation follows the sampling.)

    Images of numbers beyond 1 are divided by the largest of the training images, in every split alike.
    """
    splits = load_task(task_name).splits()
    key = content_key(splits.sha256, steps)  # by content: a file may be written anew while a process lives
    if key not in _PREPARED:
        while len(_PREPARED) >= MOST_PREPARED:
            _PREPARED.pop(next(iter(_PREPARED)))
        _PREPARED[key] = _prepare(splits, steps)
    return _PREPARED[key]


_PREPARED: dict[str, tuple[Splits, tuple[Change, ...]]] = {}
MOST_PREPARED = 16


def _prepare(splits: Splits, steps: DataSteps) -> tuple[Splits, tuple[Change, ...]]:
    changes = []
    if steps.clean:
        splits, change = clean(splits, steps.clean)
        changes.append(change)
    if steps.normalise:
        splits, change = normalise_texts(splits, steps.normalise)
        changes.append(change)
    pixels = splits.train.arrays
    if pixels is not None and pixels.ndim == 4 and pixels.dtype != np.uint8 and pixels.max(initial=0) > 1:
        splits, change = _to_unit_range(splits, float(pixels.max()))
        changes.append(change)
    return splits, tuple(changes)


def _to_unit_range(splits: Splits, largest: float) -> tuple[Splits, Change]:
    scaled = {
        part: replace(examples, arrays=np.clip(examples.arrays / np.float32(largest), 0, 1))
        for part in PARTS
        if (examples := getattr(splits, part)).arrays is not None
    }
    new = replace(splits, **scaled)
    counts = {part: {"images": len(examples)} for part, examples in scaled.items()}
    return new, Change.between("scale images", {"divided by": largest}, splits, new, counts)


def sample(train: Examples, task: Task, n: int, seed: int) -> Examples:
    """n training examples drawn by the seed, with every class in them where n allows.

    Raises:
        TargetError: more classes than examples.
    """
    if n >= len(train):
        return train
    order = np.random.default_rng((seed, n)).permutation(len(train))
    first: list[int] = []
    if task.labels:
        if task.n_classes > n:
            raise TargetError(
                f"target {task.name} has {task.n_classes} classes but {n} training examples were asked for; "
                f"ask for at least {task.n_classes}"
            )
        labels = np.array(train.labels)[order]
        first = [int(order[np.flatnonzero(labels == c)[0]]) for c in np.unique(labels)]
    taken = set(first)
    rest = [int(i) for i in order if int(i) not in taken]
    return train.take([*first, *rest[: n - len(first)]])


def target_of(
    task_name: str,
    n: int,
    seed: int,
    steps: DataSteps,
    modality: str | None = None,
    without: Collection[str] = (),
) -> Target:
    """The sampled (and augmented) training data of a task as a target.

    Args:
        without: folded inputs that are left out before sampling (another task's test examples).

    Raises:
        TargetError: nothing is left of them.
    """
    task = load_task(task_name)
    whole = prepared(task_name, steps)[0].train
    if without:
        barred = set(without)
        whole = whole.take([i for i, key in enumerate(whole.folded()) if key not in barred])
        if not len(whole):
            raise TargetError(f"every training example of {task.name} stands in the target's test examples")
    train = sample(whole, task, n, seed)
    originals = len(train)
    if steps.augment:
        nothing = train.take([])
        train = augment(Splits(train, nothing, nothing), steps.augment, steps.copies, seed)[0].train
    return NamedTarget.of(task, train, modality, originals)


def test_of(task_name: str, steps: DataSteps, count: int | None) -> Examples:
    """The test examples, the same for all seeds."""
    test = prepared(task_name, steps)[0].test
    return test if count is None else test.sample(count, 0)


def run_trial(source: Source, task_name: str, trial: Trial, version: str = "", profile: str = "") -> Outcome:
    """Fit the trial's strategy on the source and score it on the target's test examples.

    Args:
        version: method version of the rows.
        profile: folder for a trace of the fit (torch.profiler, Chrome format); empty for none.
    """
    target = target_of(task_name, trial.examples, trial.seed, trial.steps, source.modality)
    test = test_of(task_name, trial.steps, trial.test_examples)
    budget = Budget("train_labels")
    with _profiled(profile):
        fitted = fit(trial.strategy, source, target, trial.training, trial.seed, budget)
    answers = fitted.predict(test)
    metrics = list(dict.fromkeys((target.metric, *METRICS_OF[target.kind])))
    values = answers.scores(metrics, test.labels) | _costs(fitted) | _forgetting(source, fitted)
    facts = {
        "method": trial.strategy,
        "seed": trial.seed,
        "settings": {"source": source.name, "target": target.name, "n": trial.examples},
        "budget": {k: float(v) for k, v in budget.counts.items()},
        "oracle": f"test, {len(test)} examples",
        "inputs": {"source": source.sha256, "train": target.train.sha256, "test": test.sha256},
        "version": version,
    }
    energy = counted(fitted.cost, next(source.original.parameters()).device.type)
    told = {ENERGY: facts | {"oracle": energy}}  # no answer of the test split, but of a counter or an estimate
    rows = [Row(metric=k, value=v, **told.get(k, facts)) for k, v in values.items()]
    why = {}
    if trial.explain:
        why = _why(source, fitted, test, target, answers, trial.seed) | {"labels": list(load_task(task_name).labels)}
    return Outcome(rows, fitted, _correct(answers, test, target), why)


def _correct(answers: Prediction, test: Examples, target: Target) -> np.ndarray | None:
    if target.kind != "classification":
        return None
    return np.asarray(answers.values) == np.array(test.labels)


def _costs(fitted: Fitted) -> dict[str, float]:
    c = fitted.cost
    return {
        "seconds": c.seconds,
        "trained_parameters": float(c.trained_parameters),
        "trained_share": c.trained_share,
        "peak_memory_mb": c.peak_memory_mb,
        ENERGY: c.energy_wh,
    }


def _forgetting(source: Source, fitted: Fitted) -> dict[str, float]:
    """Accuracy of the source task's own output layer on its data, before and after; empty without head or data."""
    if source.head is None or source.train is None or source.modality == "language":
        return {}
    labels = np.array(source.train.labels)
    before = float((source.probabilities(source.train).argmax(axis=1) == labels).mean())
    body = getattr(fitted.net, "body", None)
    if body is None or fitted.strategy == "scratch":
        return {BEFORE: before, AFTER: before} if body is None else {}
    after = Source(source.name, body, source.head)
    changed = after.probabilities(source.train).argmax(axis=1)
    return {BEFORE: before, AFTER: float((changed == labels).mean())}


def _why(source, fitted: Fitted, test: Examples, target: Target, answers: Prediction, seed: int) -> dict[str, Any]:
    part = test.sample(EXPLAINED)  # drawn: files are often sorted by class
    plain = answers if len(part) == len(test) else fitted.predict(part)
    changed = {"as it is": plain.scores([target.metric], part.labels).get(target.metric)}
    changed |= under_change(fitted.predict, part, source.modality, target.metric, seed)
    return {
        "layers": layer_similarity(source, fitted.net, part),
        "changed_input": changed,
        "losses": list(fitted.losses),
        "predicted": _listed(answers),
        "actual": [int(y) for y in test.labels] if answers.probabilities is not None else [],
    }


def _listed(answers: Prediction) -> Sequence[int]:
    """Predicted classes for the confusion picture; texts and numbers are not kept."""
    return [int(v) for v in answers.values] if answers.probabilities is not None else []


def _profiled(folder: str):
    from contextlib import contextmanager, nullcontext
    from pathlib import Path

    if not folder:
        return nullcontext()

    @contextmanager
    def recording():
        from torch.profiler import profile

        with profile(activities=traced(), record_shapes=False) as trace:
            yield
        Path(folder).mkdir(parents=True, exist_ok=True)
        trace.export_chrome_trace(str(Path(folder) / "trace.json"))

    return recording()


def traced() -> list[Any]:
    """What a trace records: calls on the CPU, and kernels on the GPU where there is one."""
    import torch
    from torch.profiler import ProfilerActivity

    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
