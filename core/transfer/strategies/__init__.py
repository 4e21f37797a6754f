"""Strategies: use a source as it is, adjust it, or train anew. One interface for all, whatever the modality.

A strategy is ``fit(source, target, config, seed, budget) -> Fitted``. It never changes the source, draws randomness
only from ``seed``, and counts what it spends.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from core.config import Config
from core.data.examples import Examples
from core.registry import Registry
from core.transfer.budget import Budget
from core.transfer.cost import Cost, metered
from core.transfer.nets import Prediction
from core.transfer.sources import Source
from core.transfer.target import Target

FAMILIES = ("share", "adjust", "retrain")


class StrategyConfig(Config):
    """How a strategy trains. What is None takes the strategy's own default."""

    examples: int = Field(1200, ge=1, description="training examples to pass, epochs counted, before the limits below")
    min_epochs: int = Field(3, ge=1, description="fewest passes over the training data")
    max_epochs: int = Field(15, ge=1, description="most passes over the training data")
    batch_size: int = Field(16, ge=1, description="most examples in an optimizer step")
    lr: float | None = Field(None, gt=0, description="peak learning rate; None: the strategy's own")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="optimizer")
    schedule: Literal["constant", "linear", "cosine"] = Field("linear", description="decay after warm-up")
    warmup: float = Field(0.1, ge=0, le=1, description="share of steps with rising learning rate")
    weight_decay: float = Field(0.01, ge=0, description="decoupled weight decay")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="autocast dtype")
    head: Literal["probe", "random"] = Field(
        "probe", description="where the output layer starts: linear probe or random"
    )
    rank: int = Field(8, ge=1, description="LoRA rank")
    virtual_tokens: int = Field(8, ge=1, description="length of a soft prompt or prefix")
    bottleneck: int = Field(32, ge=1, description="width of a bottleneck adapter")
    unfrozen: float = Field(
        0.34, gt=0, le=1, description="share of the layers, from the top, that freezing leaves free"
    )
    architecture: str = Field("", description="for searched: space:genotype as a search run reports it")
    max_new_tokens: int = Field(32, ge=1, description="longest generated answer")

    def epochs(self, n: int) -> int:
        """Passes over n training examples."""
        return min(max(round(self.examples / n), self.min_epochs), self.max_epochs)


@dataclass
class Fitted:
    """A fitted strategy: answers, what it cost, and the trained net where there is one."""

    strategy: str
    answer: Callable[[Examples], Prediction]
    cost: Cost
    net: Any = None
    losses: tuple[float, ...] = ()
    labels_used: bool = True

    def predict(self, examples: Examples) -> Prediction:
        return self.answer(examples)


Strategy = Callable[[Source, Target, StrategyConfig, int, Budget | None], Fitted]
STRATEGIES: Registry[Strategy] = Registry("transfer strategy", "core.transfer.strategies")


def fit(
    name: str,
    source: Source,
    target: Target,
    config: StrategyConfig | None = None,
    seed: int = 0,
    budget: Budget | None = None,
) -> Fitted:
    """Fit the strategy called ``name``; its cost is measured around the whole fit.

    Args:
        budget: notes ``train_labels`` (labels of the target that were looked at), train_steps and train_examples.

    Raises:
        ValueError: unknown strategy, a target it cannot serve, a source of another modality.
    """
    entry = STRATEGIES.entry(name)
    source.fits(target)
    target.checked()
    if target.kind not in entry.facts["kinds"]:
        raise ValueError(
            f"strategy {name!r} serves {', '.join(entry.facts['kinds'])}; target {target.name} is a {target.kind}"
        )
    if source.modality not in entry.facts.get("modalities", (source.modality,)):
        raise ValueError(f"strategy {name!r} needs a source of {', '.join(entry.facts['modalities'])}s")
    with metered() as cost:
        fitted = entry.value(source, target, config or StrategyConfig(), seed, budget)
    for part in ("trained_parameters", "total_parameters", "train_steps", "train_examples"):
        setattr(cost, part, getattr(fitted.cost, part))
    fitted.cost, fitted.strategy = cost, name
    if budget is not None and fitted.labels_used:
        budget.note("train_labels", target.counted)
    return fitted
