"""Serving a language model with label words: its last layer computes only the position of the answer.

What a layer does to other positions is read by the layers above it, and above the last one there are none: only the
answer's state reaches the label words. Attention still looks at every token; its output projection and the feed-forward
part, 84 % of the weights of a Llama layer of SmolLM2's shape, are applied at one position instead of all. A student of
8 layers so saves a tenth of its work, a teacher of 30 a thirty-fifth.
"""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from core.models.layers import layer_list
from core.models.prompt import PromptedEncoder, PromptedLM

# What reads and writes each position on its own, as families of transformers name it.
ATTENTION = ("self_attn", "attn", "attention", "self_attention")
WITHIN_ATTENTION = ("o_proj", "out_proj", "c_proj", "dense")
WITHIN_LAYER = ("mlp", "feed_forward", "ffn")
_answer: ContextVar[tuple[torch.Tensor, int] | None] = ContextVar("answer", default=None)


def answer_only(model: PromptedLM | PromptedEncoder) -> PromptedLM | PromptedEncoder:
    """``model`` itself, from now on without the work of its last layer that no answer needs.

    Logits and the states at the answer stay what they were, but for rounding. A family whose parts have other names is
    served as before, and so is a sentence encoder, whose answer is made of every position.
    """
    if not isinstance(model, PromptedLM):
        return model
    try:
        holder, name = layer_list(model.model)
    except ValueError:  # no list of layers: they share their weights (ALBERT), and none is the last alone
        return model
    if not (parts := position_wise(getattr(holder, name)[-1])):
        return model
    whole = model.forward

    def forward(batch: dict[str, torch.Tensor], hidden: bool = False):
        token = _answer.set((model._position(batch), batch["input_ids"].shape[1]))
        try:
            return whole(batch, hidden)
        finally:
            _answer.reset(token)

    model.forward = forward
    for part in parts:
        part.forward = _at_answer(part.forward)
    return model


def position_wise(layer: nn.Module) -> list[nn.Module]:
    """The parts of a layer that may be applied at one position alone."""
    attention = [child for name, child in layer.named_children() if name in ATTENTION]
    within = [c for a in attention for name, c in a.named_children() if name in WITHIN_ATTENTION]
    return within + [child for name, child in layer.named_children() if name in WITHIN_LAYER]


def _at_answer(whole: Callable[[torch.Tensor], Any]) -> Callable[[torch.Tensor], Any]:
    """``whole``, of states [B, L, ...], at the answer of each row; zeros elsewhere."""

    def forward(states: torch.Tensor, *others: Any, **named: Any) -> Any:
        answer = _answer.get()
        if answer is None or others or named or states.ndim != 3 or states.shape[1] == 1:  # the answer is all there is
            return whole(states, *others, **named)
        position, length = answer
        rows = torch.arange(len(states), device=states.device)
        position = position.to(states.device) + states.shape[1] - length  # a sharded model's last layer is elsewhere
        found = whole(states[rows, position].unsqueeze(1))
        if not isinstance(found, torch.Tensor) or found.ndim != 3:
            return whole(states)
        spread = found.new_zeros(*states.shape[:2], found.shape[-1])
        spread[rows, position] = found[:, 0]
        return spread

    return forward
