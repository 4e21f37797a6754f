"""The one training loop: any module, any loss, resumable in the middle of an epoch with an identical continuation.

Order and dropout come from the seed and the step number alone, so a run continued from a checkpoint takes the same
steps as one that was never stopped, and the global RNG is as it was before.
"""

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn

from core.config import Config
from core.models.score import autocast, resolve_dtype
from core.progress import track
from core.state import load_checkpoint, save_checkpoint
from core.transfer.budget import Budget

KIND, SCHEMA = "training", 1
Loss = Callable[[nn.Module, np.ndarray], torch.Tensor]


class TrainConfig(Config):
    """How long and how to train."""

    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="optimizer")
    lr: float = Field(1e-4, gt=0, description="peak learning rate")
    head_lr: float | None = Field(None, gt=0, description="learning rate of parameters under 'head'; None: lr")
    weight_decay: float = Field(0.01, ge=0, description="decoupled weight decay (not on biases and norms)")
    epochs: int | None = Field(None, ge=1, description="passes over the examples; give this or steps")
    steps: int | None = Field(None, ge=1, description="optimizer steps; give this or epochs")
    batch_size: int = Field(32, ge=1, description="examples in one optimizer step")
    accumulate: int = Field(1, ge=1, description="parts in which a batch is computed (gradient accumulation)")
    schedule: Literal["constant", "linear", "cosine"] = Field("linear", description="decay after warm-up")
    warmup: float = Field(0.1, ge=0, le=1, description="share of the steps with rising learning rate")
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="autocast dtype")
    dropout: bool = Field(True, description="train with the model's dropout")
    checkpoint_s: float = Field(60.0, ge=0, description="seconds between checkpoints, where a path is given")

    @model_validator(mode="after")
    def _one_length(self) -> "TrainConfig":
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"give exactly one of epochs and steps, got epochs={self.epochs}, steps={self.steps}")
        return self


class TrainingDiverged(ValueError):
    """Loss or gradient stopped being finite; the model holds the state after the last good step."""


class EpochHook(Protocol):
    """Called after each epoch; True stops the training. Its state is part of the checkpoint."""

    def __call__(self, epoch: int) -> bool: ...

    def state_dict(self) -> tuple[Any, dict[str, np.ndarray]]: ...

    def load_state_dict(self, payload: Any, arrays: dict[str, np.ndarray]) -> None: ...


@dataclass
class TrainReport:
    """What a training took: steps done, loss of every step, examples seen, seconds."""

    steps: int = 0
    losses: list[float] = field(default_factory=list)
    examples: int = 0
    seconds: float = 0.0


def train(
    model: nn.Module,
    loss: Loss,
    lengths: Sequence[int] | int,
    config: TrainConfig,
    *,
    seed: int,
    checkpoint: str | Path | None = None,
    budget: Budget | None = None,
    after_epoch: EpochHook | None = None,
    groups: Sequence[dict[str, Any]] | None = None,
    description: str = "train",
) -> TrainReport:
    """Train ``model`` in place on examples ``0 .. n-1``.

    Args:
        loss: ``loss(model, indices) -> mean loss over these examples`` (a scalar with gradient).
        lengths: length of each example (batches are made of similar ones), or their number.
        checkpoint: file to resume from and to write to; removed by the caller when no longer needed.
        budget: notes train_steps and train_examples, those before a resume included.
        groups: optimizer parameter groups; None makes them from the configuration.

    Raises:
        TrainingDiverged: the loss or the gradient is not finite. The model keeps its last good state.
        ValueError: no examples, no trainable parameter, or a checkpoint of another run.
    """
    lengths = np.zeros(lengths, dtype=np.int64) if isinstance(lengths, int) else np.asarray(lengths)
    if len(lengths) == 0:
        raise ValueError("no examples to train on")
    run = _Run(model, loss, lengths, config, seed, groups)
    if checkpoint is not None and Path(checkpoint).exists():
        run.load(checkpoint, after_epoch)
    start = saved = time.perf_counter()
    modes = [(m, m.training) for m in model.modules()]
    model.train(config.dropout)
    try:
        with track(description, run.total, "step") as bar:
            bar.advance(run.step)
            while run.step < run.total and not run.stopped:
                run.advance()
                bar.advance()
                if after_epoch is not None and run.step % run.per_epoch == 0:
                    run.stopped = bool(after_epoch(run.step // run.per_epoch))
                    model.train(config.dropout)
                if checkpoint is not None and time.perf_counter() - saved >= config.checkpoint_s:
                    run.save(checkpoint, after_epoch)
                    saved = time.perf_counter()
        if checkpoint is not None:
            run.save(checkpoint, after_epoch)
    finally:
        for module, mode in modes:
            module.training = mode
    run.report.seconds += time.perf_counter() - start
    if budget is not None:
        budget.note("train_steps", run.step)
        budget.note("train_examples", run.report.examples)
    return run.report


class _Run:
    """State of one training: everything a checkpoint holds."""

    def __init__(self, model, loss, lengths, config, seed, groups):
        self.model, self.loss, self.lengths, self.config, self.seed = model, loss, lengths, config, seed
        self.per_epoch = math.ceil(len(lengths) / config.batch_size)
        self.total = config.steps or config.epochs * self.per_epoch
        self.step, self.stopped, self.report = 0, False, TrainReport()
        self._epoch, self._batches = -1, []
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise ValueError("the model has no trainable parameter; unfreeze some")
        self.device = next(iter(self.parameters.values())).device
        self.accelerator = _accelerator()
        self.optimizer = _optimizer(groups or _groups(self.parameters, config), config)
        self.base_lr = [g["lr"] for g in self.optimizer.param_groups]
        half = resolve_dtype(config.precision, self.device.type) == "float16"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=half)

    def advance(self) -> None:
        """One optimizer step."""
        indices = self._batch()
        factor = learning_rate_factor(self.step, self.total, self.config)
        for group, lr in zip(self.optimizer.param_groups, self.base_lr, strict=True):
            group["lr"] = lr * factor
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed((self.seed * 1_000_003 + self.step) % 2**63)
            value = self._backward(indices)
        self._check(value, indices, "loss")
        self.scaler.unscale_(self.optimizer)
        norm = float(nn.utils.clip_grad_norm_(list(self.parameters.values()), self.config.clip))
        if not self.scaler.is_enabled():  # with float16 the scaler itself skips such a step and halves its scale
            self._check(norm, indices, "gradient norm")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.report.steps = self.step
        self.report.losses.append(value)
        self.report.examples += len(indices)

    def _backward(self, indices: np.ndarray) -> float:
        """Gradient of the mean loss over ``indices``; several processes each take a share and sum up."""
        mine = indices
        if self.accelerator is not None:
            mine = indices[self.accelerator.process_index :: self.accelerator.num_processes]
        total = 0.0
        for part in np.array_split(mine, min(self.config.accumulate, len(mine))) if len(mine) else ():
            with autocast(self.device, self.config.precision):
                value = self.loss(self.model, part) * (len(part) / len(indices))
            total += float(value.detach())
            if math.isfinite(total):
                self.scaler.scale(value).backward()
        return total if self.accelerator is None else self._summed(total)

    def _summed(self, value: float) -> float:
        """Loss and gradients summed over processes. Not by DistributedDataParallel: a loss may call any module."""
        for parameter in self.parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad = self.accelerator.reduce(parameter.grad, reduction="sum")
        return float(self.accelerator.reduce(torch.tensor(value, device=self.device), reduction="sum"))

    def _check(self, value: float, indices: np.ndarray, what: str) -> None:
        if not math.isfinite(value):
            self.optimizer.zero_grad(set_to_none=True)
            raise TrainingDiverged(
                f"{what} is {value} at step {self.step + 1} of {self.total} (epoch {self.step // self.per_epoch + 1}, "
                f"examples {indices[:8].tolist()}...); the model holds the state after step {self.step}. "
                f"Try a lower learning rate (now {self.config.lr:g}) or precision='float32'"
            )

    def _batch(self) -> np.ndarray:
        epoch, position = divmod(self.step, self.per_epoch)
        if epoch != self._epoch:
            self._batches = epoch_batches(self.lengths, self.config.batch_size, (self.seed, epoch))
            self._epoch = epoch
        return self._batches[position]

    def save(self, path: str | Path, hook: EpochHook | None) -> None:
        extra, extra_arrays = hook.state_dict() if hook is not None else (None, {})
        state = self.optimizer.state_dict()
        arrays = {f"model/{n}": p.detach().float().cpu().numpy() for n, p in self.parameters.items()}
        scalars: dict[str, dict[str, float]] = {}
        for index, slots in state["state"].items():
            for name, value in slots.items():
                if torch.is_tensor(value) and value.ndim:
                    arrays[f"optimizer/{index}/{name}"] = value.detach().float().cpu().numpy()
                elif value is not None:
                    scalars.setdefault(str(index), {})[name] = float(value)
        arrays |= {f"hook/{n}": a for n, a in extra_arrays.items()}
        payload = {
            "identity": self._identity(),
            "step": self.step,
            "stopped": self.stopped,
            "report": vars(self.report),
            "scalars": scalars,
            "scaler": self.scaler.state_dict(),
            "hook": extra,
        }
        save_checkpoint(path, payload, kind=KIND, schema=SCHEMA, arrays=arrays)

    def load(self, path: str | Path, hook: EpochHook | None) -> None:
        payload, arrays, _ = load_checkpoint(path, kind=KIND, schema=SCHEMA)
        if payload["identity"] != self._identity():
            raise ValueError(
                f"{path} belongs to another training ({payload['identity']}), this one is {self._identity()}; "
                "remove it or give another path"
            )
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(torch.from_numpy(arrays[f"model/{name}"]))
        state = self.optimizer.state_dict()
        slots: dict[int, dict[str, Any]] = {}
        for index, values in payload["scalars"].items():
            slots.setdefault(int(index), {}).update({k: torch.tensor(v) for k, v in values.items()})
        for name, array in arrays.items():
            if name.startswith("optimizer/"):
                _, index, slot = name.split("/")
                slots.setdefault(int(index), {})[slot] = torch.from_numpy(array)
        state["state"] = slots
        self.optimizer.load_state_dict(state)
        self.scaler.load_state_dict(payload["scaler"])
        self.step, self.stopped = payload["step"], payload["stopped"]
        self.report = TrainReport(**payload["report"])
        if hook is not None:
            hook.load_state_dict(
                payload["hook"], {n.removeprefix("hook/"): a for n, a in arrays.items() if n.startswith("hook/")}
            )

    def _identity(self) -> dict[str, Any]:
        names = ("precision", "checkpoint_s", "accumulate")
        return {
            "seed": self.seed,
            "examples": len(self.lengths),
            "config": self.config.model_dump(mode="json", exclude=set(names)),
        }


def epoch_batches(lengths: np.ndarray, batch_size: int, seed: tuple[int, ...]) -> list[np.ndarray]:
    """Shuffled batches of an epoch: chunks of 16 batches are sorted by length, then all batches are shuffled."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(lengths))
    chunk = 16 * batch_size
    batches = []
    for start in range(0, len(order), chunk):
        part = order[start : start + chunk]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def learning_rate_factor(step: int, total: int, config: TrainConfig) -> float:
    """Factor on the peak learning rate at ``step``: linear warm-up, then the schedule's decay to zero."""
    warm = round(config.warmup * total)
    if step < warm:
        return (step + 1) / (warm + 1)
    if config.schedule == "constant":
        return 1.0
    done = (step - warm) / max(1, total - warm)
    return 1.0 - done if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


def _groups(parameters: dict[str, nn.Parameter], config: TrainConfig) -> list[dict[str, Any]]:
    """Groups by (in the head or not) x (decayed or not)."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        in_head = any(part.startswith("head") for part in name.split("."))
        groups.setdefault((in_head, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": params,
            "lr": (config.head_lr or config.lr) if in_head else config.lr,
            "weight_decay": config.weight_decay if decay else 0.0,
        }
        for (in_head, decay), params in groups.items()
    ]


def _optimizer(groups: Sequence[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        return torch.optim.SGD(list(groups), lr=config.lr, momentum=0.9)
    # one pass over parameters and moments: on a processor three to eight times faster than a kernel an operation
    fused = next(iter(groups[0]["params"])).device.type in ("cpu", "cuda")
    return torch.optim.AdamW(list(groups), lr=config.lr, weight_decay=config.weight_decay, fused=fused)


def _accelerator():
    """Accelerate's front end when this process is one of several (``accelerate launch``), else None."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    from accelerate import Accelerator

    return Accelerator()
