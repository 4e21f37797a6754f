"""The parts of a transformer of any family: its layers, what comes behind them, its sizes."""

import copy
from collections.abc import Sequence
from typing import Any

PER_LAYER = ("layer_types", "no_rope_layers")  # lists of a configuration with an entry a layer
NORMS = ("norm", "final_norm", "final_layer_norm", "final_layernorm", "ln_f", "layernorm")  # behind the last layer


def layer_list(model: Any) -> tuple[Any, str]:
    """The module that holds the transformer layers and the attribute's name (``encoder, "layer"``).

    Raises:
        ValueError: no ModuleList has as many entries as ``config.num_hidden_layers``.
    """
    from torch import nn

    count = model.config.num_hidden_layers
    found = [
        (sum(p.numel() for p in child.parameters()), module, name)
        for module in model.modules()
        for name, child in module.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == count
    ]
    if not found:
        raise ValueError(f"{type(model).__name__} has no list of {count} layers; it cannot be cut to its first layers")
    # A speech model may have as many convolutions as transformer layers: the transformer's are the heavy ones.
    _, module, name = max(found, key=lambda entry: entry[0])
    return module, name


def first_layers(model: Any, count: int) -> Any:
    """A copy of ``model`` with its first ``count`` layers; norm, pooling and head stay.

    Raises:
        ValueError: ``count`` is not between 1 and the number of layers.
    """
    total = model.config.num_hidden_layers
    if not 1 <= count <= total:
        raise ValueError(f"layers={count}: the model has {total}; give 1 to {total}")
    holder, name = layer_list(model)
    layers = getattr(holder, name)
    setattr(holder, name, layers[:count])
    try:
        smaller = copy.deepcopy(model)
    finally:
        setattr(holder, name, layers)
    keep_listed(smaller.config, range(count))
    return smaller


def keep_listed(config: Any, kept: Sequence[int]) -> None:
    """Tell a configuration which layers are left: their number, and what it lists of each (``layer_types``, ...)."""
    count = config.num_hidden_layers
    for name in PER_LAYER:
        listed = getattr(config, name, None)
        if isinstance(listed, (list, tuple)) and len(listed) == count:
            setattr(config, name, [listed[i] for i in kept])
    config.num_hidden_layers = len(kept)


def behind_layers(holder: Any) -> list[Any]:
    """The modules behind the last layer in ``holder`` (see :func:`layer_list`): a norm, a projection."""
    from torch import nn

    found = [getattr(holder, name, None) for name in (*NORMS, "project_out")]
    return [module for module in found if isinstance(module, nn.Module)]


def layer_states(model: Any, states: Sequence[Any]) -> list[Any]:
    """The states [..., H] of all layers, of the last one's width: narrower by OPT's projection, where it has one."""
    width = states[-1].shape[-1]
    if all(s.shape[-1] == width for s in states):
        return list(states)
    project = next(module for name, module in model.named_modules() if name.endswith("project_out"))
    return [s if s.shape[-1] == width else project(s) for s in states]


def longest_input(model: Any) -> int:
    """How many tokens a model has positions for; 512 where its configuration sets no limit.

    A position table with a padding row (RoBERTa and what is built like it) begins behind that row.
    """
    from torch import nn

    length = int(getattr(model.config.get_text_config(), "max_position_embeddings", 512))
    length = length if length > 0 else 512  # XLNet writes -1
    for name, table in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(table, nn.Embedding) and table.padding_idx is not None:
            length = min(length, table.num_embeddings - table.padding_idx - 1)
    return length


def output_width(model: Any) -> int:
    """Length of a last hidden state: ``hidden_size``, or what a projection behind the layers makes of it (OPT)."""
    config = model.config.get_text_config()
    return int(getattr(config, "word_embed_proj_dim", None) or config.hidden_size)
