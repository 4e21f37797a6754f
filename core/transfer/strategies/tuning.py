"""The one fine-tuning routine behind every strategy that trains inside the body."""

from collections.abc import Callable

from torch import nn

from core.models.train import TrainConfig, train
from core.models.used_words import only_used_words
from core.transfer.budget import Budget
from core.transfer.cost import Cost
from core.transfer.modalities import seeded
from core.transfer.nets import HeadNet, LanguageNet
from core.transfer.sources import Source
from core.transfer.strategies import Fitted, StrategyConfig
from core.transfer.strategies.linear_probe import probe_weights
from core.transfer.target import Target

ALL = ("classification", "regression", "generation")
HEAD_LR = 1e-3
Prepare = Callable[[nn.Module, StrategyConfig], None]


def tune(
    source: Source,
    target: Target,
    config: StrategyConfig,
    seed: int,
    budget: Budget | None,
    prepare: Prepare,
    lr: float,
    body: nn.Module | None = None,
) -> Fitted:
    """Train a copy of the source's body with an output layer.

    Args:
        prepare: makes trainable what the strategy trains: it gets the body with every parameter frozen.
        lr: the strategy's peak learning rate where the configuration gives none.
        body: train this instead of a copy of the source's body (a new one: its head starts at random).
    """
    fresh = body is not None
    body = body if fresh else source.body()
    if target.kind == "generation":
        net: nn.Module = LanguageNet(body, config.max_new_tokens)
    else:
        start = None
        if config.head == "probe" and not fresh:
            start = probe_weights(source.features(target.train), target, seed)
        net = HeadNet.of(body, target, seed, start)
    body.requires_grad_(False)
    seeded(lambda: prepare(body, config), seed)
    body.to(next(source.original.parameters()).device)
    inputs = body.inputs(target.train)
    loss, lengths = net.loss(target, inputs)
    settings = TrainConfig(
        optimizer=config.optimizer,
        lr=config.lr or lr,
        head_lr=max(config.lr or lr, HEAD_LR),
        weight_decay=config.weight_decay,
        epochs=config.epochs(len(target.train)),
        batch_size=min(config.batch_size, max(4, len(target.train) // 4)),  # few examples: more, smaller steps
        schedule=config.schedule,
        warmup=config.warmup,
        precision=config.precision,
    )
    encoder = body.backbone if body.modality == "text" else None
    with only_used_words(encoder, inputs):
        report = train(net, loss, lengths, settings, seed=seed, budget=budget, description=f"tune {source.name}")
    return Fitted("", net.eval().predict, _cost(net, report), net, tuple(report.losses))


def _cost(net: nn.Module, report) -> Cost:
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    total = sum(p.numel() for p in net.parameters())
    return Cost(
        trained_parameters=trained,
        total_parameters=total,
        train_steps=report.steps,
        train_examples=report.examples,
    )
