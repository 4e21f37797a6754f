"""Which tensors are layers, embeddings or buffers, told from their names alone (any architecture)."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

LAYER = re.compile(r"^(.+?)\.(\d+)\.(.+)$")
BEFORE = re.compile(r"embed|wte|wpe|shared|word|position|patch|conv1|stem", re.IGNORECASE)
VOCABULARY = re.compile(
    r"embed_tokens|wte|word_embed|embed_in|embed_out|lm_head|shared|embeddings\.weight|predictions|vocab_projector|"
    r"^decoder\.(weight|bias)$"
)
BUFFERS = re.compile(r"(position_ids|inv_freq|(^|\.)masked_bias|rotary_emb\..*)$")
CAUSAL_MASK = re.compile(r"(^|\.)attn\.bias$")
LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
MODULE_NAMES = {
    "text_decoder": ("language_model", "text_model", "model"),
    "vision_tower": ("vision_tower", "visual", "vision_model"),
}


@dataclass(frozen=True)
class Place:
    """Where a tensor stands: ``stack`` (prefix of its layer stack, empty outside), layer number and the rest."""

    stack: str = ""
    layer: int = 0
    rest: str = ""

    def at(self, layer: int) -> str:
        """The same tensor's name in another layer."""
        return f"{self.stack}.{layer}.{self.rest}"


@dataclass(frozen=True)
class Names:
    """The tensor names of a model, sorted into layer stacks and the rest."""

    places: Mapping[str, Place]
    depth: Mapping[str, int]

    @property
    def main_stack(self) -> str:
        """The deepest stack (the first of equal ones); empty without layers."""
        return max(self.depth, key=lambda s: self.depth[s], default="")


def sort_names(names: Iterable[str]) -> Names:
    """Find the layer stacks: name parts followed by a number that runs from 0 without a gap, at least two layers or
    called like a layer."""
    names = list(names)
    candidates: dict[str, set[int]] = {}
    for name in names:
        if match := LAYER.match(name):
            candidates.setdefault(match[1], set()).add(int(match[2]))
    depth = {
        stack: len(numbers)
        for stack, numbers in candidates.items()
        if numbers == set(range(len(numbers))) and (len(numbers) > 1 or re.search(r"(layers?|h|blocks?)$", stack))
    }
    places = {}
    for name in names:
        match = LAYER.match(name)
        places[name] = Place(match[1], int(match[2]), match[3]) if match and match[1] in depth else Place()
    return Names(places, depth)


@dataclass(frozen=True)
class Stack:
    """The layers of one stack: the tensors of each, and how layer 0 differs from the others.

    ``extra`` is what layer 0 alone has although it works for all (T5's relative positions), ``lacking`` what every
    other layer has (ModernBERT's first norm): such a layer 0 can stand nowhere else, nor another in its place.
    """

    name: str
    layers: Mapping[int, Sequence[Place]]

    @classmethod
    def of(cls, name: str, places: Iterable[Place]) -> "Stack":
        layers: dict[int, list[Place]] = {}
        for place in places:
            layers.setdefault(place.layer, []).append(place)
        return cls(name, layers)

    @cached_property
    def extra(self) -> frozenset[str]:
        others = {p.rest for layer, places in self.layers.items() if layer for p in places}
        return frozenset(p.rest for p in self.layers.get(0, ()) if p.rest not in others) if others else frozenset()

    @cached_property
    def lacking(self) -> frozenset[str]:
        others = [{p.rest for p in places} for layer, places in self.layers.items() if layer]
        return (
            frozenset(set.intersection(*others) - {p.rest for p in self.layers.get(0, ())}) if others else frozenset()
        )

    def at(self, first: int, number: int, sources: Sequence[int]) -> list[tuple[Place, Sequence[int]]]:
        """What output layer ``number`` is made of: each tensor with the layer it comes from in every source.

        Args:
            first: the layer whose tensors it takes (of a deeper model than this one: layer 0's).
            sources: layer of every source.

        Raises:
            ValueError: layer 0 would stand elsewhere than first, or another in its place, where that breaks the model.
        """
        if self.lacking and any((layer == 0) != (number == 0) for layer in sources):
            raise ValueError(
                f"layer 0 of {self.name} has no {min(self.lacking)!r}, which every other layer has: take it as the "
                "first layer of the output and nowhere else"
            )
        here = [(p, sources) for p in self.layers.get(first, self.layers[0]) if p.rest not in self.extra]
        return here + [(p, [0] * len(sources)) for p in self.layers[0] if number == 0 and p.rest in self.extra]


def in_module(name: str, module: str, modules: Iterable[str]) -> bool:
    """Whether a tensor belongs to a module of the recipe: the module is a part of its dotted name.

    Tensors that belong to none belong to the first module.
    """
    modules = list(modules)
    if modules == ["default"] or len(modules) == 1:
        return True
    owner = next((m for m in modules if _has_part(name, m)), modules[0])
    return owner == module


def _has_part(name: str, module: str) -> bool:
    parts = name.split(".")
    return any(part in parts for part in (module, *MODULE_NAMES.get(module, ())))


def is_before(name: str) -> bool:
    """Whether a tensor outside the layers comes before them (embeddings) or after (norm, head)."""
    return bool(BEFORE.search(name))


def is_buffer(name: str, shape: tuple[int, ...]) -> bool:
    """Buffers that older checkpoints stored and that a model computes itself (causal masks have four dimensions)."""
    return bool(BUFFERS.search(name)) or (len(shape) == 4 and bool(CAUSAL_MASK.search(name)))


def vocabulary_size(config: Mapping[str, Any]) -> int | None:
    """``vocab_size`` of a configuration, also of its text part."""
    return config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")


def is_vocabulary(name: str, shape: tuple[int, ...], config: Mapping[str, Any]) -> bool:
    """Whether the first dimension counts tokens."""
    size = vocabulary_size(config)
    return bool(shape) and VOCABULARY.search(name) is not None and (size is None or shape[0] == size)
