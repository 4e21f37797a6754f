"""Fit every strategy once on a handful of examples: what a source cannot do is told before the others train."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from core.transfer.own_classifier import NamedTarget
from core.transfer.sources import Source
from core.transfer.strategies import StrategyConfig, fit
from core.transfer.target import Target

LONGEST = 4  # examples of each of two classes, or of all
ONE_EPOCH = StrategyConfig(examples=1, min_epochs=1, max_epochs=1, max_new_tokens=1)


def try_strategies(source: Source, target: Target, strategies: Sequence[str], seed: int = 0) -> None:
    """Fit each strategy on the longest examples of ``target`` and let it answer them; nothing is kept.

    Raises:
        ValueError: one of them cannot be used with this source, and why.
    """
    small = handful(target)
    for name in strategies:
        try:
            fit(name, source, small, ONE_EPOCH, seed).predict(small.train)
        except Exception as error:  # whatever peft, transformers and torch raise for a model that they know in part
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise ValueError(
                f"strategy {name} cannot be used with source {source.name}: {reason}; leave it out of strategies"
            ) from error


def handful(target: Target) -> Target:
    """The longest examples of the two largest classes, as a target of two; the longest of all where there are none."""
    rows = target.train
    order = sorted(range(len(rows)), key=lambda i: -len(rows.texts[i]) if rows.texts else 0)
    if target.kind != "classification":
        return target.with_train(rows.take(order[: 2 * LONGEST]))
    values, counts = np.unique(target.labels, return_counts=True)
    two = values[np.argsort(-counts, kind="stable")[:2]]
    chosen = [i for label in two for i in [j for j in order if target.labels[j] == label][:LONGEST]]
    labels = [int(target.labels[i] == two[1]) for i in chosen]
    small = rows.take(chosen).with_labels(labels)
    named = {"names": tuple(target.names[c] for c in two)} if isinstance(target, NamedTarget) else {}
    return replace(target, train=small, classes=2, originals=None, **named).checked()
