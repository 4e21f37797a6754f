"""The language-model head of a model of any family, apart from its body."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def body_and_head(model: Any) -> tuple[nn.Module, Callable[[torch.Tensor], torch.Tensor]]:
    """The transformer body of a transformers model, and what makes logits [..., V] of the body's last states [..., H].

    The head is the output layer itself where nothing else comes after the body. Where more does (a head in several
    parts; logits that are scaled or bounded), it is the model's own forward, given the states.

    Raises:
        ValueError: the model has no head, or does not put it on the last states of its body.
    """
    body, layer = model.base_model, model.get_output_embeddings()
    if body is model:
        raise ValueError(f"{type(model).__name__} has no language-model head; load a masked or causal language model")
    whole, others = OwnHead(model), [child for child in model.children() if child is not body]
    if len(others) == 1 and others[0] is layer and isinstance(layer, nn.Linear):
        with torch.no_grad():  # large states: a bound of logits shows
            state = 100 * torch.linspace(-1, 1, layer.in_features).to(layer.weight)[None]
            if torch.allclose(layer(state), whole(state), rtol=1e-3, atol=1e-3):
                return body, layer
    return body, whole


class OwnHead:
    """The head of ``model`` as its own forward applies it: the forward runs, but its body gives the states at hand."""

    def __init__(self, model: Any):
        self.model = model

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Logits [..., V] of the body's last states [..., H]."""
        shell = copy.copy(self.model)  # shares every weight; only its table of modules is another
        body = _Given(self.model.base_model, states.reshape(1, -1, states.shape[-1]))
        shell._modules = {**self.model._modules, self.model.base_model_prefix: body}
        ids = torch.zeros(body.states.shape[:2], dtype=torch.long, device=states.device)
        logits = type(self.model).forward(shell, input_ids=ids).logits
        if not body.asked:
            raise ValueError(f"the head of {type(self.model).__name__} is not read from the last states of its body")
        return logits.reshape(*states.shape[:-1], -1)


class _Given(nn.Module):
    """Stands for a body: whatever it is called with, it gives ``states`` [B, L, H]."""

    def __init__(self, body: nn.Module, states: torch.Tensor):
        super().__init__()
        self.__dict__["body"] = body  # not a module of this one: nothing moves or counts its weights twice
        self.states, self.asked = states, False

    def forward(self, *_: Any, **__: Any) -> Any:
        self.asked = True
        return _Output((self.states,))

    def __getattr__(self, name: str) -> Any:
        # OPT and BART's decoders are asked by what wraps them.
        return self if name == "decoder" else getattr(self.__dict__["body"], name)


class _Output(tuple):
    """A body's output that holds its last states and None under every other name."""

    @property
    def last_hidden_state(self) -> torch.Tensor:
        return self[0]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
