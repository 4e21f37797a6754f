"""Students and what they can do without a teacher: probe, fine-tuning, SetFit. All return a model to serve."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from core.data.examples import Examples
from core.distill.teachers import ModelConfig, TeacherConfig, check_labels, tune
from core.models.heads import linear_head
from core.models.load import kind_of
from core.models.prompt import PromptedEncoder
from core.models.score import score
from core.models.train import TrainConfig, train
from core.models.used_words import only_used_words
from core.transfer.budget import Budget

MINILM = ModelConfig(asset="all-minilm-l6-v2")
MINILM_3 = ModelConfig(asset="all-minilm-l6-v2", layers=3)
SMOLLM2_8 = ModelConfig(asset="smollm2-135m-instruct", kind="causal", layers=8)
SMOLLM2_6 = ModelConfig(asset="smollm2-135m-instruct", kind="causal", layers=6)
STUDENTS = {"minilm": MINILM, "minilm3": MINILM_3, "smollm2-8": SMOLLM2_8, "smollm2-6": SMOLLM2_6}

FINE_TUNING = TrainConfig(lr=5e-5, epochs=15, batch_size=8)
PAIRS = TrainConfig(lr=2e-5, steps=100, batch_size=16, schedule="linear")


def student_of(source: str) -> ModelConfig:
    """Settings for any model; its kind is read from its configuration."""
    return ModelConfig(asset=source, kind=kind_of(source))


def fine_tune(
    student: nn.Module, examples: Examples, seed: int, config: TrainConfig = FINE_TUNING, budget=None
) -> None:
    """Fine-tune a prompted student on labelled examples, in place."""
    tune(student, examples, TeacherConfig(asset="", train=config), seed, budget=budget)


def random_head(student: PromptedEncoder, seed: int) -> None:
    """Replace the label-word head by a random one, in place: the ordinary way to fine-tune an encoder."""
    student.head = linear_head(student.width, student.classes, seed).to(student.device)
    student.normalize = False


def linear_probe(student: PromptedEncoder, examples: Examples, budget: Budget | None = None) -> None:
    """Replace the head by a logistic regression on the frozen embeddings, in place."""
    from sklearn.linear_model import LogisticRegression

    labels = check_labels(examples.labels, student.classes)
    vectors = student.encoder.embed(examples.texts, examples.pairs, normalize=True)
    model = LogisticRegression(C=10.0, max_iter=1000).fit(vectors, labels)
    weight, bias = model.coef_, model.intercept_
    if len(weight) == 1:  # two classes: one row for the difference of the logits
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    with torch.no_grad():
        student.head.weight.copy_(torch.from_numpy(weight))
        student.head.bias.copy_(torch.from_numpy(bias))
    if budget is not None:
        budget.note("train_labels", len(labels))


def setfit(
    student: PromptedEncoder, examples: Examples, seed: int, config: TrainConfig = PAIRS, budget: Budget | None = None
) -> None:
    """SetFit (Tunstall et al. 2022): contrast of labelled pairs by cosine, then a logistic head, in place."""
    labels = check_labels(examples.labels, student.classes)
    left, right, same = sample_pairs(labels, config.steps * config.batch_size, seed)
    tokens = student.encoder.tokenize(examples.texts, examples.pairs)
    target = torch.from_numpy(same.astype(np.float32)).to(student.device)

    def loss(_: nn.Module, indices: np.ndarray) -> torch.Tensor:
        texts, place = np.unique(np.concatenate([left[indices], right[indices]]), return_inverse=True)
        vectors = nn.functional.normalize(student.encoder(tokens.batch(texts, student.device)), dim=-1)
        a, b = vectors[place[: len(indices)]], vectors[place[len(indices) :]]
        return nn.functional.mse_loss((a * b).sum(-1).float(), target[indices])

    with only_used_words(student.encoder.backbone, tokens):
        train(student.encoder, loss, len(left), config, seed=seed, budget=budget, description="setfit")
    linear_probe(student, examples, budget)


def sample_pairs(labels: Sequence[int], count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``count`` pairs of positions, half of one class, half of two; whether they are the same class."""
    labels = np.asarray(labels)
    rng = np.random.default_rng([seed, 5])
    left = rng.integers(len(labels), size=count)
    same = np.arange(count) % 2 == 0
    right = np.empty(count, dtype=np.int64)
    for i, (a, equal) in enumerate(zip(left, same, strict=True)):
        candidates = np.flatnonzero((labels == labels[a]) == equal)
        right[i] = candidates[rng.integers(len(candidates))]
    return left, right, same


def answers(model: nn.Module, examples: Examples, dtype: str = "auto") -> np.ndarray:
    """Logits [n, C] of a prompted model."""
    return score(model, model.tokenize(examples.texts, examples.pairs), dtype=dtype, description="answers")[0]
