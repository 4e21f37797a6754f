"""AdaMerging: merging coefficients learnt by minimising the merged model's entropy on unlabelled inputs.

Yang et al., AdaMerging: Adaptive Model Merging for Multi-Task Learning, ICLR 2024, Eq. 4-6. No label is read. The
learnt coefficients are saved as JSON, which the operator ``adamerging`` takes; so learning needs the model and data,
merging does not.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core.progress import progress
from core.state import StateError, load_checkpoint, save_checkpoint, write_json
from core.transfer.budget import Budget

if TYPE_CHECKING:
    from torch import Tensor, nn

GRANULARITIES = ("task", "layer", "tensor")
SCHEMA = 1
CHECKPOINT_EVERY = 50

Batch = Mapping[str, "Tensor"]


@dataclass(frozen=True)
class Coefficients:
    """One coefficient for each tensor and expert: ``values[name]`` is a list in the experts' order."""

    values: dict[str, list[float]]
    entropies: list[float]

    def save(self, path: str | Path) -> None:
        """Write as JSON, atomically."""
        write_json(path, {"schema": SCHEMA, "kind": "adamerging", "coefficients": self.values})


def read_coefficients(path: str | Path) -> dict[str, list[float]]:
    """Coefficients by tensor name.

    Raises:
        ValueError: the file is not of this kind, or newer than this program.
    """
    import json

    try:
        data = json.loads(Path(path).read_text())
        kind, schema, values = data["kind"], data["schema"], data["coefficients"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no AdaMerging coefficients ({error}); learn them with {__name__}") from None
    if kind != "adamerging" or schema > SCHEMA:
        raise ValueError(f"{path} holds {kind!r} with schema {schema}; expected 'adamerging' up to {SCHEMA}")
    return values


def layer_of(name: str) -> str:
    """The layer a tensor belongs to: its name up to the first number, or ``"other"``."""
    found = re.match(r"(.*?\.\d+)\.", name)
    return found.group(1) if found else "other"


def learn_coefficients(
    model: "nn.Module",
    deltas: Sequence[Mapping[str, "Tensor"]],
    batches: Callable[[int, int], Batch],
    forward: Callable[[Callable[[Batch], "Tensor"], int, Batch], "Tensor"],
    *,
    tasks: int,
    granularity: str = "layer",
    steps: int = 300,
    learning_rate: float = 1e-3,
    start: float = 0.3,
    budget: Budget | None = None,
    checkpoint: str | Path | None = None,
) -> Coefficients:
    """Learn ``lambda`` of ``base + sum_i lambda_i,g delta_i`` by Adam on the mean entropy of the predictions.

    Args:
        model: holds the base weights; it is not changed.
        deltas: per expert, task vector by parameter name (parameters without entry stay as in the base).
        batches: ``batches(step, task)`` gives an unlabelled batch; the same call must give the same batch.
        forward: ``forward(merged, task, batch)`` gives logits ``(B, C)``; ``merged(batch)`` runs the merged model, so
            a task's own head goes around it.
        tasks: number of tasks, all of which are seen in every step.
        granularity: one coefficient per expert (``task``), per expert and layer, or per expert and tensor.
        budget: counts ``task_examples``.
        checkpoint: file for resuming after a kill with an identical continuation.
    """
    import torch
    from torch.func import functional_call

    if granularity not in GRANULARITIES:
        raise ValueError(f"granularity={granularity!r}; allowed: {', '.join(GRANULARITIES)}")
    base = {n: p.detach() for n, p in model.named_parameters() if any(n in d for d in deltas)}
    if not base:
        raise ValueError("no delta is named like a parameter of the model")
    key = {"task": lambda _: "all", "layer": layer_of, "tensor": lambda n: n}[granularity]
    groups = sorted({key(n) for n in base})
    column = {n: groups.index(key(n)) for n in base}
    stacked = {n: torch.stack([d[n] if n in d else torch.zeros_like(base[n]) for d in deltas]) for n in base}
    device = next(iter(base.values())).device
    coefficients = torch.full((len(deltas), len(groups)), start, device=device, requires_grad=True)
    adam = torch.optim.Adam([coefficients], lr=learning_rate, betas=(0.9, 0.999))
    first, entropies = _resume(checkpoint, coefficients, adam)

    def merged_parameters() -> dict[str, "Tensor"]:
        return {
            n: base[n] + torch.tensordot(coefficients[:, column[n]].to(base[n].dtype), stacked[n], dims=1) for n in base
        }

    for step in progress(range(first, steps), "adamerging", steps - first, "step"):
        parameters = merged_parameters()
        losses = []
        for task in range(tasks):
            batch = batches(step, task)
            logits = forward(lambda b, p=parameters: functional_call(model, p, (b,)), task, batch)
            losses.append(entropy(logits))
            if budget is not None:
                budget.spend(len(logits))
        loss = torch.stack(losses).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
        entropies.append(float(loss.detach()))
        if checkpoint is not None and (step + 1) % CHECKPOINT_EVERY == 0:
            _save(checkpoint, step + 1, entropies, coefficients, adam)
    learnt = coefficients.detach().cpu().numpy().astype(np.float64)
    return Coefficients({n: learnt[:, column[n]].tolist() for n in sorted(base)}, entropies)


def entropy(logits: "Tensor") -> "Tensor":
    """Mean Shannon entropy (nats) of softmax(logits) ``(B, C)``."""
    log_p = logits.float().log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1).mean()


def _save(path: str | Path, step: int, entropies: list[float], coefficients: "Tensor", adam: Any) -> None:
    state = adam.state[coefficients]
    arrays = {"coefficients": coefficients, "first": state["exp_avg"], "second": state["exp_avg_sq"]}
    arrays = {name: a.detach().cpu().numpy() for name, a in arrays.items()}
    save_checkpoint(path, {"step": step, "entropies": entropies}, kind="adamerging", schema=SCHEMA, arrays=arrays)


def _resume(path: str | Path | None, coefficients: "Tensor", adam: Any) -> tuple[int, list[float]]:
    import torch

    if path is None or not Path(path).exists():
        return 0, []
    payload, arrays, _ = load_checkpoint(path, kind="adamerging", schema=SCHEMA)
    if arrays["coefficients"].shape != tuple(coefficients.shape):
        raise StateError(f"{path} is from another set of experts or layers; remove it to start anew")
    with torch.no_grad():
        coefficients.copy_(torch.from_numpy(arrays["coefficients"]))
    adam.state[coefficients] = {
        "step": torch.tensor(float(payload["step"])),
        "exp_avg": torch.from_numpy(arrays["first"]).to(coefficients),
        "exp_avg_sq": torch.from_numpy(arrays["second"]).to(coefficients),
    }
    return payload["step"], payload["entropies"]
