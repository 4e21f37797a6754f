"""LoRA, prompt tuning, prefix tuning and IA3: settings of one function on top of peft."""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import nn

from core.models.inserts import has_transposed, linear_maps, room_for_text, token_sizes
from core.transfer.strategies import STRATEGIES, StrategyConfig
from core.transfer.strategies.tuning import ALL, tune

# What IA3 scales where peft has no entry for an architecture: keys, values, and the feed-forward's inner state.
# Where one map makes queries, keys and values, all three are scaled, as peft does.
KEYS_VALUES = (
    *("key", "value", "k_proj", "v_proj", "key_proj", "value_proj", "k_lin", "v_lin", "k", "v"),
    *("query_key_value", "c_attn", "in_proj", "Wqkv"),
)
FEED_FORWARD = (
    *("intermediate.dense", "down_proj", "fc2", "wo", "dense2", "output_dense", "lin2"),
    *("ffn_output", "dense_4h_to_h", "mlp.c_proj", "mlp.Wo"),
)


@dataclass(frozen=True)
class Method:
    """A peft method: how its configuration is made, its learning rate, whether it adds tokens to the input."""

    config: Callable[[nn.Module, StrategyConfig, Any], Any]
    lr: float
    tokens: bool
    source: str
    summary: str


def _lora(model: nn.Module, c: StrategyConfig, task: Any) -> Any:
    from peft import LoraConfig

    linear = set(linear_maps(model))
    names = [n for n, m in model.named_modules() if n in linear or isinstance(m, nn.Conv2d)]
    if not names:
        raise ValueError(f"lora needs linear maps or convolutions; {type(model).__name__} has none")
    own = {"target_modules": names, "fan_in_fan_out": has_transposed(model)}
    return LoraConfig(task_type=task, r=c.rank, lora_alpha=2 * c.rank, **own)


def _ia3(model: nn.Module, c: StrategyConfig, task: Any) -> Any:
    from peft import IA3Config

    linear = linear_maps(model)
    inner = [n for n in linear if n.endswith(FEED_FORWARD)]
    scaled = [n for n in linear if n.rsplit(".", 1)[-1] in KEYS_VALUES]
    if not scaled:
        raise ValueError(
            f"ia3 scales keys and values; {type(model).__name__} has no attention to scale under a name known here; "
            "use lora or adapter"
        )
    own = {"feedforward_modules": inner, "fan_in_fan_out": has_transposed(model)}
    return IA3Config(task_type=task, target_modules=scaled + inner, **own)


def _prompt(model: nn.Module, c: StrategyConfig, task: Any) -> Any:
    from peft import PromptTuningConfig

    return PromptTuningConfig(task_type=task, num_virtual_tokens=c.virtual_tokens, **token_sizes(model))


def _prefix(model: nn.Module, c: StrategyConfig, task: Any) -> Any:
    from peft import PrefixTuningConfig

    if "past_key_values" not in signature(type(model).forward).parameters:
        raise ValueError(
            f"prefix tuning needs a model that takes past keys and values, {model.config.model_type} does not; "
            "use prompt_tuning, lora, ia3 or adapter"
        )
    own = {}
    if hasattr(model.config, "d_kv"):  # T5: heads need not be as wide together as the model
        heads = model.config.num_attention_heads
        own = {"token_dim": model.config.d_kv * heads, "num_attention_heads": heads}
    return PrefixTuningConfig(task_type=task, num_virtual_tokens=c.virtual_tokens, **own)


METHODS = {
    "lora": Method(_lora, 5e-4, False, "Hu et al. 2021", "Train low-rank updates of every linear layer."),
    "ia3": Method(_ia3, 5e-3, False, "Liu et al. 2022", "Train scales of keys, values and feed-forward states."),
    "prompt_tuning": Method(_prompt, 3e-2, True, "Lester et al. 2021", "Train virtual tokens in front of the input."),
    "prefix_tuning": Method(_prefix, 1e-2, True, "Li & Liang 2021", "Train virtual keys and values in every layer."),
}


class Wrapped(nn.Module):
    """A peft model as a backbone: the states of virtual tokens are cut off again, everything else passes."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, **batch: Any) -> Any:
        if "token_type_ids" in batch:
            # peft warns and drops them. Single texts have type 0 throughout, which models take as their default; of a
            # pair the separator alone is left to tell the second text.
            batch = {k: v for k, v in batch.items() if k != "token_type_ids"}
        out = self.inner(**batch)
        state = getattr(out, "last_hidden_state", None)
        if state is not None and "input_ids" in batch and state.shape[1] > batch["input_ids"].shape[1]:
            out.last_hidden_state = state[:, -batch["input_ids"].shape[1] :]
        return out

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


def insert(method: Method, body: nn.Module, config: StrategyConfig) -> None:
    """Put the method's parameters into ``body.backbone``; where they are tokens, texts are cut to leave them room.

    Raises:
        ValueError: virtual tokens for a model that reads no tokens or has no room for them; prefixes for one that takes
            no past keys and values; no part of the model that the method changes.
    """
    from peft import TaskType, get_peft_model
    from peft.mapping import inject_adapter_in_model

    backbone = body.backbone
    if not method.tokens:
        inject_adapter_in_model(method.config(backbone, config, None), backbone)
        return
    if body.modality not in ("text", "language"):
        raise ValueError(f"virtual tokens need a source that reads tokens, {body.name} is of modality {body.modality}")
    task = TaskType.FEATURE_EXTRACTION
    if body.modality == "language":
        task = TaskType.SEQ_2_SEQ_LM if backbone.config.is_encoder_decoder else TaskType.CAUSAL_LM
    wrapped = get_peft_model(backbone, method.config(backbone, config, task))
    body.max_length = room_for_text(backbone, body.max_length, config.virtual_tokens)
    _start_near_the_source(wrapped, backbone)
    body.backbone = Wrapped(wrapped)


def _start_near_the_source(wrapped: nn.Module, backbone: nn.Module) -> None:
    """Virtual tokens start as words of the vocabulary, prefixes near zero; peft's own start is a standard normal."""
    words = backbone.get_input_embeddings().weight.detach()
    for encoder in wrapped.prompt_encoder.values():
        virtual = encoder.embedding.weight
        with torch.no_grad():
            if virtual.shape[1] == words.shape[1]:
                virtual.copy_(words[torch.randint(len(words), (len(virtual),)).to(words.device)])
            else:
                virtual.mul_(0.02)


def _register(name: str, method: Method) -> None:
    def strategy(source, target, config, seed, budget):
        return tune(source, target, config, seed, budget, lambda body, c: insert(method, body, c), lr=method.lr)

    strategy.__qualname__ = name
    STRATEGIES.register(name, method.summary, family="adjust", kinds=ALL, source=method.source)(strategy)


for _name, _method in METHODS.items():
    _register(_name, _method)
