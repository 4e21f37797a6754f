"""Sub-networks of a transformer: keep some layers, attention heads and feed-forward neurons, with the trained weights.

What is kept in a layer is what weighs most: a head by the product of the norms of its value and output weights, a
feed-forward neuron by the product of the norms of its incoming and outgoing weights.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from core.models.layers import keep_listed, layer_list


@dataclass(frozen=True)
class Roles:
    """Where a layer of one model family keeps its linear maps (dotted names below the layer)."""

    query: str
    key: str
    value: str
    output: str
    rising: tuple[str, ...]  # feed-forward maps whose rows are the neurons (two where gated)
    falling: str


BERT = Roles(
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    ("intermediate.dense",),
    "output.dense",
)
LLAMA = Roles(
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj",
)
FAMILIES = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra", "camembert"), BERT),
    **dict.fromkeys(("llama", "mistral", "qwen2", "smollm3"), LLAMA),
}


@dataclass(frozen=True)
class LayerCut:
    """Layer ``index`` of the original, reduced to ``heads`` attention heads and ``neurons`` feed-forward neurons."""

    index: int
    heads: int
    neurons: int


def shape_of(config: Any) -> tuple[int, int, int, int, int]:
    """(layers, heads, key-value heads, width, feed-forward neurons) of a model configuration."""
    heads = config.num_attention_heads
    return (
        config.num_hidden_layers,
        heads,
        getattr(config, "num_key_value_heads", None) or heads,
        config.hidden_size,
        config.intermediate_size,
    )


def cut(model: nn.Module, layers: Sequence[LayerCut]) -> nn.Module:
    """A copy of ``model`` with only ``layers``; the original is unchanged.

    Heads of a grouped-query model are kept in whole groups (a key-value head with its queries).

    Raises:
        ValueError: a model family whose layers are not known here, no layer kept, layers out of order, or counts that
            the model does not have.
    """
    kind = model.config.model_type
    if kind not in FAMILIES:
        raise ValueError(f"models of type {kind!r} cannot be cut; known: {', '.join(sorted(FAMILIES))}")
    _check(model.config, layers)
    holder, name = layer_list(model)
    whole = getattr(holder, name)
    setattr(holder, name, nn.ModuleList(whole[part.index] for part in layers))
    try:
        small = copy.deepcopy(model)
    finally:
        setattr(holder, name, whole)
    keep_listed(small.config, [part.index for part in layers])
    _, heads, groups, _, neurons = shape_of(model.config)
    new_holder, _ = layer_list(small)
    with torch.no_grad():
        for position, (layer, part) in enumerate(zip(getattr(new_holder, name), layers)):
            _renumber(layer, position)
            if part.heads < heads:
                _cut_heads(layer, FAMILIES[kind], part.heads, heads, groups)
            if part.neurons < neurons:
                _cut_neurons(layer, FAMILIES[kind], part.neurons)
    return small


def _check(config: Any, layers: Sequence[LayerCut]) -> None:
    count, heads, groups, _, neurons = shape_of(config)
    indices = [part.index for part in layers]
    if not indices or indices != sorted(set(indices)) or not 0 <= indices[0] <= indices[-1] < count:
        raise ValueError(f"kept layers must be ascending numbers of 0..{count - 1}, at least one; got {indices}")
    step = heads // groups
    for part in layers:
        if not 1 <= part.heads <= heads or part.heads % step:
            raise ValueError(f"layer {part.index}: {part.heads} heads; allowed: multiples of {step} up to {heads}")
        if not 1 <= part.neurons <= neurons:
            raise ValueError(f"layer {part.index}: {part.neurons} feed-forward neurons; allowed: 1 to {neurons}")


def _cut_heads(layer: nn.Module, roles: Roles, keep: int, heads: int, groups: int) -> None:
    value, output = layer.get_submodule(roles.value), layer.get_submodule(roles.output)
    size = layer.get_submodule(roles.query).out_features // heads
    per_group = heads // groups
    strength = value.weight.view(groups, -1).norm(dim=1) * output.weight.T.reshape(groups, -1).norm(dim=1)
    kept = strength.topk(keep // per_group).indices.sort().values
    small, large = _rows(kept, size), _rows(kept, size * per_group)
    _keep_rows(layer.get_submodule(roles.query), large)
    _keep_rows(layer.get_submodule(roles.key), small)
    _keep_rows(value, small)
    _keep_columns(output, large)
    attention = layer.get_submodule(roles.query.rpartition(".")[0])
    if hasattr(attention, "num_attention_heads"):
        attention.num_attention_heads, attention.all_head_size = keep, keep * size


def _cut_neurons(layer: nn.Module, roles: Roles, keep: int) -> None:
    rising, falling = [layer.get_submodule(name) for name in roles.rising], layer.get_submodule(roles.falling)
    strength = falling.weight.norm(dim=0)
    for linear in rising:
        strength = strength * linear.weight.norm(dim=1)
    kept = strength.topk(keep).indices.sort().values
    for linear in rising:
        _keep_rows(linear, kept)
    _keep_columns(falling, kept)


def _rows(kept: torch.Tensor, size: int) -> torch.Tensor:
    return (kept[:, None] * size + torch.arange(size, device=kept.device)).flatten()


def _keep_rows(linear: nn.Linear, rows: torch.Tensor) -> None:
    linear.weight = nn.Parameter(linear.weight[rows].clone(), linear.weight.requires_grad)
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias[rows].clone(), linear.bias.requires_grad)
    linear.out_features = len(rows)


def _keep_columns(linear: nn.Linear, columns: torch.Tensor) -> None:
    linear.weight = nn.Parameter(linear.weight[:, columns].clone(), linear.weight.requires_grad)
    linear.in_features = len(columns)


def _renumber(layer: nn.Module, position: int) -> None:
    """Layers count themselves for key-value caches."""
    for module in layer.modules():
        if isinstance(getattr(module, "layer_idx", None), int):
            module.layer_idx = position
