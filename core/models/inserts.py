"""What peft has to be told of a model: where its linear maps are, how wide virtual tokens must be, and their room."""

from typing import Any

from torch import nn

from core.models.layers import longest_input

SHORTEST_TEXT = 8  # tokens that virtual ones must leave


def is_transposed(module: nn.Module) -> bool:
    """Whether a linear map keeps its weight as [in, out]: GPT-2's Conv1D, which is no convolution and no nn.Linear."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def linear_maps(model: nn.Module) -> list[str]:
    """Names of the linear maps in a model, the output layer left out."""
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    linear = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) or is_transposed(m)]
    return [n for n, m in linear if m is not output and n.rsplit(".", 1)[-1] not in ("lm_head", "classifier", "pooler")]


def has_transposed(model: nn.Module) -> bool:
    """Whether some linear map is one of :func:`is_transposed` (peft's ``fan_in_fan_out``)."""
    return any(is_transposed(m) for m in model.modules())


def token_sizes(model: Any) -> dict[str, int]:
    """peft's sizes of virtual tokens in front of the input: they are as wide as word embeddings, not as layers."""
    return {
        "token_dim": model.get_input_embeddings().embedding_dim,
        "num_layers": model.config.num_hidden_layers,
        "num_attention_heads": model.config.num_attention_heads,
    }


def room_for_text(model: Any, length: int, tokens: int) -> int:
    """``length`` cut so that ``tokens`` virtual ones and a text fit the positions that the model has.

    Raises:
        ValueError: there would be no room for a text.
    """
    room = longest_input(model) - tokens
    if room < SHORTEST_TEXT:
        raise ValueError(
            f"{tokens} virtual tokens leave no room for a text: the model reads {room + tokens} tokens, "
            f"of which a text needs {SHORTEST_TEXT}; give at most {max(0, room + tokens - SHORTEST_TEXT)}"
        )
    return min(length, room)
