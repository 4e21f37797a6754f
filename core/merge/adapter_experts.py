"""Experts of a causal language model: one LoRA adapter a task, trained on prompts with their answers.

A folder holds the adapter as peft writes it, ``expert.json`` (task, base and their hashes, configuration, cost) and
``task.json``; a few megabytes. A classification task is answered by a label word, a generation task by its reference
text and the end-of-text token. Embeddings and head are never adapted: they are one tensor where a model ties them.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from core.config import Config
from core.hashing import content_key, sha256_file
from core.merge.answers import tokens_of
from core.merge.experts import CARD, TASK
from core.merge.lora import WEIGHTS
from core.merge.objectives_lm import answer_ids, prompt_ids
from core.models.train import TrainConfig
from core.state import Cache, write_json

RECIPE = 1  # bumped when training itself changes; adapters cost minutes and survive edits elsewhere
KINDS = ("single", "pair", "generation")


class AdapterConfig(Config):
    """How an adapter is trained."""

    examples: int = Field(800, ge=8, description="training examples drawn from the task")
    max_words: int = Field(40, ge=1, description="texts are cut after this many words (pairs: each)")
    rank: int = Field(8, ge=1, description="LoRA rank; alpha is twice the rank")
    targets: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj"), description="projections that are adapted, by the end of their name"
    )
    seed: int = Field(0, description="draw of examples, initialisation, batch order")
    train: TrainConfig = Field(
        TrainConfig(lr=5e-4, epochs=2, batch_size=16, dropout=False), description="the training loop's settings"
    )


def prompts_of(task: Any, examples: Any, max_words: int) -> list[str]:
    """The task's causal prompts, ending where the answer begins.

    Args:
        task: :class:`core.data.tasks.Task`.
        examples: :class:`core.data.examples.Examples` with texts.

    Raises:
        TaskError: the task has no causal template.
    """

    def cut(text: str) -> str:
        words = text.split()
        return text if len(words) <= max_words else " ".join(words[:max_words])

    pairs = examples.pairs or [""] * len(examples)
    return [
        task.prompt(cut(text), cut(pair), mask="", causal=True).rstrip()
        for text, pair in zip(examples.texts, pairs, strict=True)
    ]


def label_words(task: Any) -> list[str]:
    """One answer a class: the first of its label words, or the label's name."""
    return [word.split("|")[0] for word in task.label_words or [n.replace("_", " ") for n in task.labels]]


def train_adapter(task: Any, base: Any, config: AdapterConfig, cache: Cache | None = None) -> Path:
    """Train an adapter of ``base`` on ``task`` (a :class:`core.data.tasks.Task` or its name); the expert's folder.

    Cached by content: the same training examples, task, base and configuration give the folder that is there. A killed
    training continues from its checkpoint.

    Raises:
        ValueError: neither classification nor generation, training examples of one class only, targets that the model
            lacks or that are its embeddings or head.
    """
    from core.data.tasks import load_task
    from core.models.load import locate

    task = load_task(task) if isinstance(task, (str, Path)) else task
    source = locate(base)
    if task.kind not in KINDS:
        raise ValueError(f"task {task.name!r} is of kind {task.kind!r}; adapters are for {KINDS}")
    drawn = task.splits().train.sample(config.examples, config.seed)
    if len(set(drawn.labels)) < 2:
        raise ValueError(f"task {task.name!r}: the {len(drawn)} training examples have one answer only")
    key = content_key("adapter", RECIPE, task.name, task.key, drawn.sha256, source.sha256, config)

    def build(folder: Path) -> dict[str, str]:
        _build(folder, task, drawn, source, config, cache)
        return {"task": task.name, "base": source.name}

    return (cache or Cache()).compute("adapters", key, build)


def _build(folder: Path, task: Any, drawn: Any, source: Any, config: AdapterConfig, cache: Cache | None) -> None:
    from core.models.load import load_causal
    from core.models.quiet import quietly
    from core.models.train import train

    lm = load_causal(source, cache=cache)
    wrapped = adapted(lm.model, config)
    prompts, answers = sequences(lm.tokenizer, task, drawn, config.max_words)
    loss, lengths = answer_loss(lm.model, prompts, answers, lm.tokenizer.pad_token_id or 0)
    checkpoint = folder / "training.ckpt"
    report = train(
        lm.model, loss, lengths, config.train, seed=config.seed, checkpoint=checkpoint, description=f"adapt {task.name}"
    )
    checkpoint.unlink(missing_ok=True)
    wrapped.peft_config["default"].base_model_name_or_path = source.name
    quietly(wrapped.save_pretrained, folder, save_embedding_layers=False)
    card = {
        "task": task.name,
        "base": source.name,
        "base_sha256": source.sha256,
        "train_sha256": drawn.sha256,
        "train_labels": len(drawn),
        "train_examples": report.examples,
        "config": config.model_dump(mode="json"),
        "weights_sha256": sha256_file(folder / WEIGHTS),
    }
    write_json(folder / CARD, card)
    write_json(folder / TASK, task.model_dump(mode="json", by_alias=True))


def adapted(model: Any, config: AdapterConfig) -> Any:
    """``model`` with fresh LoRA layers put in (in place), the only parameters that are trainable; peft's wrapper.

    Raises:
        ValueError: a target is the embedding or the head, or no module is called like it.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    ends = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    for target in config.targets:
        found = [m for name, m in model.named_modules() if name == target or name.endswith("." + target)]
        if not found:
            raise ValueError(f"{type(model).__name__} has no module {target!r}; targets are ends of module names")
        if any(id(m) in ends for m in found):
            raise ValueError(f"target {target!r} is the embedding or the head, which may be tied; adapt layers only")
    settings = LoraConfig(
        task_type="CAUSAL_LM", r=config.rank, lora_alpha=2 * config.rank, target_modules=list(config.targets)
    )
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        return get_peft_model(model, settings)


def sequences(tokenizer: Any, task: Any, examples: Any, max_words: int) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of each example's prompt and of its right answer."""
    prompts = prompt_ids(tokenizer, prompts_of(task, examples, max_words), task.name)
    free = task.kind == "generation"
    right = [[str(y)] for y in examples.labels] if free else [[label_words(task)[y]] for y in examples.labels]
    # a free text must also be ended; after a label word nobody reads on
    end = [tokenizer.eos_token_id] if free and tokenizer.eos_token_id is not None else []
    return prompts, [[*ids, *end] for [ids] in answer_ids(tokenizer, right, task.name)]


def answer_loss(
    model: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], pad: int
) -> tuple[Callable[[Any, np.ndarray], Any], np.ndarray]:
    """A loss for :func:`core.models.train.train`, mean cross-entropy (nats a token) of the answers; and the lengths."""
    import torch

    from core.models.prompt import body_and_head

    tokens = tokens_of([[*p, *a] for p, a in zip(prompts, answers, strict=True)], pad)
    body, head = body_and_head(model)
    device = next(model.parameters()).device

    def loss(_: Any, indices: np.ndarray) -> Any:
        batch = tokens.batch(indices, device)
        spans = [(len(prompts[i]) - 1, len(prompts[i]) + len(answers[i]) - 1) for i in indices]
        row = torch.tensor([r for r, (start, stop) in enumerate(spans) for _ in range(start, stop)], device=device)
        at = torch.tensor([p for start, stop in spans for p in range(start, stop)], device=device)
        logits = head(body(**batch).last_hidden_state[row, at])
        return torch.nn.functional.cross_entropy(logits.float(), batch["input_ids"][row, at + 1])

    return loss, tokens.lengths
