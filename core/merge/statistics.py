"""Statistics of a model on data, for the operators that merge by them: Gram matrices (RegMean), Fisher diagonals.

Collect once per expert, on its own task's inputs (no labels are read), and save next to it::

    statistics = gram_matrices(model, batches)          # or fisher_diagonal(model, batches)
    statistics.save(folder / "gram.safetensors")

The file (safetensors, one entry per weight, named like the weight) is what the operators' parameter ``statistics``
takes. Reading needs no torch.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core.state import atomic_path

if TYPE_CHECKING:
    from torch import Tensor, nn

KINDS = {
    "gram": "X'X / rows of every linear layer's inputs: (inputs, inputs)",
    "fisher": "mean squared gradient of the log-likelihood: the weight's shape",
}
SCHEMA = 1

Batch = Mapping[str, "Tensor"]
Forward = Callable[["nn.Module", Batch], "Tensor"]


@dataclass(frozen=True)
class Statistics:
    """Arrays by weight name, and how many examples they come from."""

    kind: str
    tensors: dict[str, np.ndarray]
    examples: int

    @property
    def norm(self) -> float:
        """Euclidean norm of all arrays together."""
        return float(np.sqrt(sum(np.square(a, dtype=np.float64).sum() for a in self.tensors.values())))

    def save(self, path: str | Path) -> None:
        """Write as float32 safetensors, atomically."""
        from safetensors.numpy import save_file

        facts = {"kind": self.kind, "examples": str(self.examples), "norm": repr(self.norm), "schema": str(SCHEMA)}
        arrays = {name: np.ascontiguousarray(a, dtype=np.float32) for name, a in self.tensors.items()}
        with atomic_path(path) as temporary:
            save_file(arrays, temporary, facts)


def check_statistics(path: str | Path, kind: str) -> None:
    """Raise unless ``path`` holds statistics of ``kind`` (only its header is read).

    Raises:
        ValueError: no such file, not written by this module, of another kind, or newer than this program.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            facts = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"statistics {str(path)!r} cannot be read ({error}); collect them with {_how(kind)}") from None
    if facts.get("kind") != kind:
        raise ValueError(f"{path} holds {facts.get('kind')!r} statistics, expected {kind!r}; use {_how(kind)}")
    if int(facts.get("schema", SCHEMA)) > SCHEMA:
        raise ValueError(f"{path} has schema {facts['schema']}, this program reads up to {SCHEMA}; update transferopt")


def check_coverage(tensors: Iterable[tuple[Sequence[str], Sequence[Mapping[str, Any]]]]) -> None:
    """Raise where a statistics file has an entry for none of its tensors: all would be the plain average.

    Args:
        tensors: of each, its name in every model and that model's parameters, ``statistics`` among them.

    Raises:
        ValueError: naming the file, an entry of it and a tensor.
    """
    from safetensors import safe_open

    wanted: dict[str, set[str]] = {}
    for in_models, models in tensors:
        for name, parameters in zip(in_models, models, strict=True):
            wanted.setdefault(parameters["statistics"], set()).add(name)
    for path, names in wanted.items():
        with safe_open(path, "numpy") as file:
            entries = set(file.keys())
        if entries.isdisjoint(names):
            raise ValueError(
                f"statistics {path!r} are of {min(entries, default='nothing')!r} and others, the merge is of "
                f"{min(names)!r} and others: no name is in both; collect them on a model of the class that saved these"
            )


def read_statistic(path: str | Path, name: str) -> np.ndarray | None:
    """The array saved for weight ``name`` as float64, or None when there is none."""
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        return file.get_tensor(name).astype(np.float64) if name in file.keys() else None  # noqa: SIM118


def read_norm(path: str | Path) -> float:
    """Euclidean norm of all arrays of a statistics file together."""
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        return float(file.metadata()["norm"])


def gram_matrices(
    model: "nn.Module", batches: Iterable[Batch], forward: Forward | None = None, part: "nn.Module | None" = None
) -> Statistics:
    """``X'X / rows`` of the inputs of every linear layer (Jin et al., RegMean, ICLR 2023, Sec. 3).

    Args:
        batches: model inputs; rows whose ``attention_mask`` is 0 are not counted.
        forward: ``forward(model, batch)``; default ``model(**batch)``.
        part: the module whose layers are counted and relative to which they are named (default: the model).
    """
    import torch

    from core.models.score import evaluating

    sums: dict[str, Tensor] = {}
    rows: dict[str, int] = {}
    mask: list[Tensor | None] = [None]

    def hook(name: str):
        def add(_module: Any, inputs: tuple) -> None:
            x = inputs[0].detach()
            real = mask[0] is not None and x.ndim == mask[0].ndim + 1 and x.shape[:-1] == mask[0].shape
            x = (x[mask[0].bool()] if real else x.reshape(-1, x.shape[-1])).float()
            with torch.autocast(x.device.type, enabled=False):
                sums[name] = sums.get(name, 0) + (x.T @ x).double()
            rows[name] = rows.get(name, 0) + len(x)

        return add

    hooks = [m.register_forward_pre_hook(hook(n)) for n, m in _linear_layers(part or model).items()]
    examples = 0
    try:
        with torch.no_grad(), evaluating(model):
            for batch in batches:
                mask[0] = batch.get("attention_mask")
                (forward or _call)(model, batch)
                examples += len(next(iter(batch.values())))
    finally:
        for handle in hooks:
            handle.remove()
    return Statistics("gram", {f"{n}.weight": (s / rows[n]).cpu().numpy() for n, s in sums.items()}, examples)


def fisher_diagonal(
    model: "nn.Module",
    batches: Iterable[Batch],
    forward: Forward | None = None,
    part: "nn.Module | None" = None,
    draws: int = 0,
    seed: int = 0,
) -> Statistics:
    """Diagonal of the Fisher information of every parameter (Matena & Raffel, NeurIPS 2022, Eq. 4).

    ``mean_x E_{y ~ p(y|x)} [(d log p(y|x) / d w)^2]`` under the model's own predictions, exactly (``draws = 0``: one
    backward pass for each class and example) or from ``draws`` sampled classes per example (many classes).

    Args:
        forward: gives the logits ``(B, C)``; default ``model(**batch).logits``.
        part: the module whose parameters are counted and relative to which they are named (default: the model).
    """
    import torch

    from core.models.score import evaluating

    weights = {n: p for n, p in (part or model).named_parameters() if p.is_floating_point()}
    sums = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in weights.items()}
    generator = torch.Generator().manual_seed(seed)
    frozen = {n: p.requires_grad for n, p in weights.items()}
    examples = 0
    try:
        for p in weights.values():
            p.requires_grad_(True)
        with evaluating(model):
            for batch in batches:
                for i in range(len(next(iter(batch.values())))):
                    example = {k: v[i : i + 1] for k, v in batch.items()}
                    logits = (forward or _logits)(model, example)
                    _add_squared_gradients(logits[0].float().log_softmax(-1), weights, sums, draws, generator)
                    examples += 1
    finally:
        for n, p in weights.items():
            p.requires_grad_(frozen[n])
    if not examples:
        raise ValueError("no batch was given; a Fisher diagonal needs examples")
    return Statistics("fisher", {n: (s / examples).cpu().numpy() for n, s in sums.items()}, examples)


def _add_squared_gradients(log_p, weights: Mapping[str, Any], sums: Mapping[str, Any], draws: int, generator) -> None:
    import torch

    p = log_p.detach().exp()
    if draws:
        chosen = torch.multinomial(p.cpu(), draws, replacement=True, generator=generator).tolist()
        shares = [(y, 1 / draws) for y in chosen]
    else:
        shares = list(enumerate(p.tolist()))
    for position, (y, share) in enumerate(shares):
        keep = position + 1 < len(shares)
        gradients = torch.autograd.grad(log_p[y], list(weights.values()), retain_graph=keep, allow_unused=True)
        for name, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                sums[name] += share * gradient.double() ** 2


def _linear_layers(module: "nn.Module") -> dict[str, "nn.Module"]:
    """Linear layers by name. (GPT-2's Conv1D stores its weight transposed and is left out: it is averaged.)"""
    from torch import nn

    return {name: m for name, m in module.named_modules() if isinstance(m, nn.Linear)}


def _call(model: "nn.Module", batch: Batch) -> Any:
    return model(**batch)


def _logits(model: "nn.Module", batch: Batch) -> "Tensor":
    return model(**batch).logits


def _how(kind: str) -> str:
    return {"gram": "core.merge.statistics.gram_matrices", "fisher": "core.merge.statistics.fisher_diagonal"}[kind]
