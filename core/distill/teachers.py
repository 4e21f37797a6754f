"""Teachers: built behind a prompt, tuned on the few labelled examples (fully, LoRA, soft prompts), kept on disk."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn

from core.config import Config
from core.data.examples import Examples
from core.hashing import code_version, content_key
from core.models.inserts import has_transposed, room_for_text, token_sizes
from core.models.layers import behind_layers, layer_list
from core.models.load import kind_of, load_causal, load_encoder, load_masked, locate, shape
from core.models.prompt import Demonstration, Prompt, PromptedEncoder, PromptedLM, prompted
from core.models.score import score
from core.models.train import TrainConfig, TrainReport, train
from core.models.used_words import only_used_words
from core.state import Cache
from core.transfer.budget import Budget

TUNING_MODULES = ("core.distill.teachers", "core.models.train", "core.models.prompt", "core.models.heads")


class ModelConfig(Config):
    """A model behind the prompt interface."""

    asset: str = Field(description="asset name, hub repository or folder")
    kind: Literal["encoder", "causal", "masked"] = Field("encoder", description="how it answers")
    layers: int | None = Field(None, ge=1, description="keep the first layers; None: all")
    head_scale: float = Field(20.0, gt=0, description="slope of a sentence encoder's label-word head")
    quantised: Literal["none", "8bit", "4bit"] = Field("none", description="load quantised (CUDA)")
    max_length: int = Field(256, ge=8, description="longest prompt in tokens (language models)")


class TeacherConfig(ModelConfig):
    """A teacher and how it is tuned."""

    tuning: Literal["full", "lora", "prompt"] = Field("full", description="what is trained: all, LoRA, soft prompts")
    last_layers: int | None = Field(None, ge=1, description="with full tuning: train only the last layers")
    rank: int = Field(8, ge=1, description="LoRA rank")
    soft_tokens: int = Field(16, ge=1, description="soft prompt tokens")
    patience: int | None = Field(None, ge=1, description="early stopping on dev, in epochs; None: fixed length")
    demonstrations: int = Field(
        0, ge=0, description="labelled examples of each class shown before every prompt instead of tuned on"
    )
    train: TrainConfig = Field(TrainConfig(lr=2e-5, epochs=12, batch_size=8), description="tuning on the few examples")

    @model_validator(mode="after")
    def _reads_demonstrations(self) -> "TeacherConfig":
        if self.demonstrations and self.kind == "encoder":
            raise ValueError("a sentence encoder reads one text; demonstrations are for causal and masked teachers")
        return self


MPNET = TeacherConfig(
    asset="all-mpnet-base-v2",
    train=TrainConfig(lr=2e-5, epochs=12, batch_size=8, checkpoint_s=600),  # its checkpoint holds a gigabyte
)
MINILM = TeacherConfig(asset="all-minilm-l6-v2", train=TrainConfig(lr=5e-5, epochs=15, batch_size=8))
SMOLLM2 = TeacherConfig(
    asset="smollm2-135m-instruct",
    kind="causal",
    last_layers=8,
    train=TrainConfig(lr=1e-4, epochs=8, batch_size=8, dropout=False),
)
TEACHERS = {"mpnet": MPNET, "minilm": MINILM, "smollm2": SMOLLM2}


def teacher_of(source: str) -> TeacherConfig:
    """Settings for any model: its kind is read from its configuration; its schedule is that of the same kind here."""
    kind = kind_of(source)
    preset = {"encoder": MPNET, "causal": SMOLLM2, "masked": MPNET}[kind]
    depth = shape(source)[1]
    last = min(preset.last_layers, depth) if preset.last_layers else None
    return preset.model_copy(update={"asset": source, "kind": kind, "last_layers": last})


def build(
    config: ModelConfig, prompt: Prompt, device: str | None = None, shown: Sequence[Demonstration] = ()
) -> PromptedLM | PromptedEncoder:
    """The pre-trained model behind the prompt; a language model sees the ``shown`` examples before each text."""
    if config.kind == "encoder":
        return prompted(
            load_encoder(config.asset, layers=config.layers, device=device), prompt, scale=config.head_scale
        )
    load = load_causal if config.kind == "causal" else load_masked
    lm = load(config.asset, layers=config.layers, device=device, quantised=config.quantised)
    return prompted(lm, prompt, max_length=config.max_length, demonstrations=shown)


def split_shown(few_train: Examples, per_class: int) -> tuple[list[Demonstration], Examples]:
    """The first ``per_class`` examples of each class, to be shown, and the others, to be tuned on.

    Nothing is in both: a model that sees the answer before the text would learn to copy it.

    Raises:
        ValueError: a class would have nothing left to tune on.
    """
    seen: dict[Any, int] = {}
    places: tuple[list[int], list[int]] = ([], [])
    for i, label in enumerate(few_train.labels):
        seen[label] = seen.get(label, 0) + 1
        places[seen[label] > per_class].append(i)
    if per_class and min(seen.values()) <= per_class:
        raise ValueError(f"demonstrations={per_class} leave nothing to tune on of {min(seen.values())} a class")
    shown = few_train.take(places[0])
    pairs = shown.pairs or [""] * len(shown)
    made = [Demonstration(t, int(label), p) for t, p, label in zip(shown.texts, pairs, shown.labels, strict=True)]
    return made, few_train.take(places[1])


def pretrained_identity(config: ModelConfig, prompt: Prompt, shown: Sequence[Demonstration] = ()) -> str:
    """What decides the outputs of the model before tuning."""
    own = {k: getattr(config, k) for k in ModelConfig.model_fields if k != "asset"}
    modules = ("core.models.prompt", "core.models.heads", "core.models.encoder", "core.models.load")
    examples = [(d.text, d.pair, d.label) for d in shown]
    return content_key("pretrained", locate(config.asset).sha256, own, prompt, examples, code_version(modules))


def tuned_identity(config: TeacherConfig, prompt: Prompt, train_sha: str, dev_sha: str, seed: int) -> str:
    """What decides the outputs of the tuned model; known without tuning it."""
    dev = dev_sha if config.patience else ""
    return content_key(locate(config.asset).sha256, config, prompt, train_sha, dev, seed, code_version(TUNING_MODULES))


def tuned_teacher(
    cache: Cache,
    config: TeacherConfig,
    prompt: Prompt,
    few_train: Examples,
    dev: Examples | None,
    seed: int,
    budget: Budget | None = None,
) -> PromptedLM | PromptedEncoder:
    """The teacher tuned on ``few_train``; its trained weights come from the cache when they are there."""
    key = tuned_identity(config, prompt, few_train.sha256, dev.sha256 if dev is not None else "", seed)
    shown, rest = split_shown(few_train, config.demonstrations)
    made: list[Any] = []

    def build_weights(folder: Path) -> dict[str, Any]:
        from safetensors.torch import save_file

        model = build(config, prompt, shown=shown)
        report = tune(model, rest, config, seed, dev, checkpoint=folder / "tuning.ckpt", budget=budget)
        made.append(model)
        (folder / "tuning.ckpt").unlink(missing_ok=True)
        weights = {n: p.detach().cpu().contiguous() for n, p in model.named_parameters() if p.requires_grad}
        save_file(weights, folder / "trained.safetensors")
        return {"teacher": config.asset, "seconds": report.seconds, "steps": report.steps}

    folder = cache.compute("teachers", key, build_weights)
    if made:
        return made[0].eval()
    from safetensors.torch import load_file

    model = build(config, prompt, shown=shown)
    prepare_tuning(model, config, seed)
    missing = model.load_state_dict(load_file(folder / "trained.safetensors"), strict=False).unexpected_keys
    if missing:
        raise ValueError(f"weights in {folder} do not belong to {config.asset}: {missing[:3]}; remove the folder")
    return model.eval()


def tune(
    model: PromptedLM | PromptedEncoder,
    examples: Examples,
    config: TeacherConfig,
    seed: int,
    dev: Examples | None = None,
    checkpoint: Path | None = None,
    budget: Budget | None = None,
) -> TrainReport:
    """Tune a prompted model in place by cross-entropy on labelled examples.

    Raises:
        ValueError: labels outside the prompt's, a class without example, or patience without a dev set.
    """
    labels = check_labels(examples.labels, model.classes)
    if config.patience is not None and dev is None:
        raise ValueError("early stopping (patience) needs a dev set")
    prepare_tuning(model, config, seed)
    tokens = model.tokenize(examples.texts, examples.pairs)
    target = torch.from_numpy(labels).to(model.device)

    def loss(_: nn.Module, indices: np.ndarray) -> torch.Tensor:
        return nn.functional.cross_entropy(model(tokens.batch(indices, model.device)), target[indices])

    stop = None if config.patience is None else EarlyStopping(model, dev, config.patience)
    encoder = model.encoder.backbone if isinstance(model, PromptedEncoder) else None
    with only_used_words(encoder, tokens if stop is None else tokens + stop.tokens):
        report = train(
            model,
            loss,
            tokens.lengths,
            config.train,
            seed=seed,
            checkpoint=checkpoint,
            budget=budget,
            after_epoch=stop,
            description=f"tune {model.name}",
        )
        if stop is not None:
            stop.restore()
    if budget is not None:
        budget.note("train_labels", len(labels))
    return report


def prepare_tuning(model: PromptedLM | PromptedEncoder, config: TeacherConfig, seed: int) -> None:
    """Freeze and wrap so that exactly what ``config.tuning`` names is trainable.

    Raises:
        ValueError: more layers than the model has, or more soft prompt tokens than leave room for a text.
    """
    if config.tuning == "full":
        if config.last_layers is not None:
            _train_last_layers(model, config.last_layers)
        return
    from peft import LoraConfig, PromptTuningConfig, get_peft_model

    kind = "FEATURE_EXTRACTION"
    encoder = isinstance(model, PromptedEncoder)
    body = model.encoder.backbone if encoder else model.model.base_model
    if config.tuning == "lora":
        own = {"fan_in_fan_out": has_transposed(body), "target_modules": "all-linear"}
        peft_config = LoraConfig(task_type=kind, r=config.rank, lora_alpha=2 * config.rank, **own)
    else:
        peft_config = PromptTuningConfig(task_type=kind, num_virtual_tokens=config.soft_tokens, **token_sizes(body))
        reader = model.encoder if encoder else model
        reader.max_length = room_for_text(body, reader.max_length, config.soft_tokens)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        wrapped = get_peft_model(body, peft_config).to(model.device)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name, parameter in wrapped.named_parameters():
        parameter.requires_grad_("lora_" in name or "prompt_encoder" in name)
    if encoder:
        model.encoder.backbone = wrapped
        model.head.requires_grad_(True)
    else:
        setattr(model.model, model.model.base_model_prefix, wrapped)


def _train_last_layers(model: PromptedLM | PromptedEncoder, count: int) -> None:
    encoder = isinstance(model, PromptedEncoder)
    inner = model.encoder.backbone if encoder else model.model
    holder, name = layer_list(inner)
    layers = getattr(holder, name)
    if count > len(layers):
        raise ValueError(f"last_layers={count}: {model.name} has {len(layers)}")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for layer in layers[-count:]:
        layer.requires_grad_(True)
    for module in behind_layers(holder):
        module.requires_grad_(True)
    if encoder:
        model.head.requires_grad_(True)


def check_labels(labels: list[Any], classes: int) -> np.ndarray:
    """Labels as int64.

    Raises:
        ValueError: a label outside 0 .. classes - 1, or a class without example.
    """
    array = np.asarray(labels)
    if array.dtype.kind not in "iu" or array.min(initial=0) < 0 or array.max(initial=0) >= classes:
        raise ValueError(f"labels must be class indices 0 to {classes - 1}, got {sorted(set(labels))[:8]}")
    missing = sorted(set(range(classes)) - set(array.tolist()))
    if missing:
        raise ValueError(f"classes {missing} have no labelled example; draw K of every class")
    return array.astype(np.int64)


class EarlyStopping:
    """Stop when dev accuracy (ties: log-likelihood) has not risen for ``patience`` epochs; keeps the best weights."""

    def __init__(self, model: nn.Module, dev: Examples, patience: int):
        self.model, self.patience = model, patience
        self.tokens, self.labels = model.tokenize(dev.texts, dev.pairs), np.asarray(dev.labels)
        self.best, self.since, self.weights = (-1.0, -np.inf), 0, {}

    def __call__(self, epoch: int) -> bool:
        logits = score(self.model, self.tokens, description="dev")[0]
        value = log_likelihood(logits, self.labels)
        result = (float((logits.argmax(1) == self.labels).mean()), value)
        if result > self.best:
            self.best, self.since = result, 0
            self.weights = {n: p.detach().cpu().clone() for n, p in self._trained()}
        else:
            self.since += 1
        return self.since >= self.patience

    def restore(self) -> None:
        """Put the best weights back."""
        with torch.no_grad():
            for name, parameter in self._trained():
                if name in self.weights:
                    parameter.copy_(self.weights[name])

    def state_dict(self) -> tuple[Any, dict[str, np.ndarray]]:
        return [list(self.best), self.since], {n: w.float().numpy() for n, w in self.weights.items()}

    def load_state_dict(self, payload: Any, arrays: dict[str, np.ndarray]) -> None:
        self.best, self.since = tuple(payload[0]), payload[1]
        self.weights = {n: torch.from_numpy(a) for n, a in arrays.items()}

    def _trained(self):
        return [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]


def log_likelihood(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean log-probability of the labels."""
    from core.models.prompt import log_softmax

    return float(log_softmax(logits)[np.arange(len(labels)), labels].mean())


MakeModel = Callable[[], PromptedLM | PromptedEncoder]
