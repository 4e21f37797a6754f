"""Objectives of merged language models: log-likelihood of answers, generation with exact match, lm-eval tasks.

Each has ``name``, ``size``, ``reference`` and ``score(model, indices) -> per-example array``; the first two also
``judge(model, indices)`` with hits and a smooth value. The model is the causal language model itself, merged in memory.
"""

import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from core.merge.answers import BATCH_TOKENS, log_likelihoods, written
from core.merge.objectives import Scored, judge

WORDS = re.compile(r"\W+")


@dataclass
class LikelihoodObjective:
    """Multiple choice: the answer of highest log-likelihood after the prompt, per token when ``normalise``.

    Args:
        tokenizer: of the model; every text is tokenised once.
        prompts: one an example, ending where the answer begins.
        answers: one list of answers for all examples, or one list an example; two or more.
        labels: index of the right answer.
        batch_tokens: padded size of a batch.

    Raises:
        ValueError: unequal lengths, a label without answer, fewer than two answers, labels of one class only, or
            (when first scored) a prompt or answer without tokens.
    """

    name: str
    tokenizer: Any
    prompts: Sequence[str]
    answers: Sequence[str] | Sequence[Sequence[str]]
    labels: Sequence[int]
    reference: float = 1.0
    normalise: bool = False
    batch_tokens: int = BATCH_TOKENS

    def __post_init__(self) -> None:
        if len(self.prompts) != len(self.labels) or not len(self.prompts):
            raise ValueError(f"task {self.name!r}: {len(self.prompts)} prompts for {len(self.labels)} labels")
        if isinstance(self.answers[0], str):
            self.answers = [list(self.answers)] * len(self.prompts)
        if any(not 0 <= label < len(a) for label, a in zip(self.labels, self.answers, strict=True)):
            raise ValueError(f"task {self.name!r}: a label has no answer")
        if min(map(len, self.answers)) < 2:
            raise ValueError(f"task {self.name!r}: an example has one answer only; there is nothing to choose")
        if len(set(self.labels)) < 2:
            raise ValueError(f"task {self.name!r}: all {len(self.labels)} validation examples are of one class")

    @property
    def size(self) -> int:
        return len(self.prompts)

    @cached_property
    def tokens(self) -> tuple[list[list[int]], list[list[list[int]]]]:
        """Token ids of the prompts and of each one's answers."""
        return prompt_ids(self.tokenizer, self.prompts, self.name), answer_ids(self.tokenizer, self.answers, self.name)

    def score(self, model: Any, indices: np.ndarray) -> np.ndarray:
        return self.judge(model, indices).correct

    def judge(self, model: Any, indices: np.ndarray, hits: bool = True) -> Scored:
        """Hits, and hits smoothed by the margin between the right answer's log-likelihood and the best other's."""
        prompts, answers = ([column[i] for i in indices] for column in self.tokens)
        pad = self.tokenizer.pad_token_id or 0
        values = np.full((len(prompts), max(map(len, answers))), -np.inf)
        for row, found in enumerate(log_likelihoods(model, prompts, answers, pad, self.batch_tokens)):
            tokens = np.array([len(a) for a in answers[row]]) if self.normalise else 1.0
            values[row, : len(found)] = found / tokens
        return judge(values, np.array([self.labels[i] for i in indices], dtype=np.int64))


@dataclass
class GenerationObjective:
    """Greedy generation scored by exact match, case, punctuation and spaces folded.

    Args:
        targets: accepted texts of each example (a string, or several).
        stop: generation is cut at the first of these strings.
    """

    name: str
    tokenizer: Any
    prompts: Sequence[str]
    targets: Sequence[str | Sequence[str]]
    max_new_tokens: int = 16
    stop: Sequence[str] = ("\n",)
    reference: float = 1.0
    batch_tokens: int = BATCH_TOKENS

    def __post_init__(self) -> None:
        if len(self.prompts) != len(self.targets) or not len(self.prompts):
            raise ValueError(f"task {self.name!r}: {len(self.prompts)} prompts for {len(self.targets)} targets")

    @property
    def size(self) -> int:
        return len(self.prompts)

    @cached_property
    def tokens(self) -> tuple[list[list[int]], list[list[list[int]]]]:
        """Token ids of the prompts and of each one's accepted texts."""
        accepted = [[t] if isinstance(t, str) else list(t) for t in self.targets]
        return prompt_ids(self.tokenizer, self.prompts, self.name), answer_ids(self.tokenizer, accepted, self.name)

    def score(self, model: Any, indices: np.ndarray) -> np.ndarray:
        return self.judge(model, indices).correct

    def judge(self, model: Any, indices: np.ndarray, hits: bool = True) -> Scored:
        """Hits, and the probability of the likeliest accepted text, which tells near misses from far ones.

        Both are NaN where that probability is not finite: a broken model writes something, too.

        Args:
            hits: False writes nothing, which is most of the time, and leaves the hits NaN.
        """
        prompts, accepted = ([column[i] for i in indices] for column in self.tokens)
        pad = self.tokenizer.pad_token_id or 0
        found = log_likelihoods(model, prompts, accepted, pad, self.batch_tokens)
        soft = np.exp([values.max() for values in found])
        if not hits:
            return Scored(np.full(len(soft), np.nan), soft)
        texts = written(model, self.tokenizer, prompts, self.max_new_tokens, self.batch_tokens)
        right = np.array([float(self.matches(text, i)) for text, i in zip(texts, indices, strict=True)])
        return Scored(np.where(np.isfinite(soft), right, np.nan), soft)

    def matches(self, text: str, index: int) -> bool:
        """Whether a generated text counts for example ``index``."""
        for mark in self.stop:
            text = text.lstrip().split(mark)[0]
        target = self.targets[index]
        accepted = [target] if isinstance(target, str) else target
        return fold(text) in {fold(t) for t in accepted}


def prompt_ids(tokenizer: Any, prompts: Sequence[str], name: str) -> list[list[int]]:
    """Token ids of prompts.

    Raises:
        ValueError: a prompt without tokens (an answer would have nothing to follow).
    """
    ids = [list(row) for row in tokenizer(list(prompts))["input_ids"]]
    if not all(ids):
        raise ValueError(f"task {name!r}: prompt {ids.index([])} tokenizes to nothing")
    return ids


def answer_ids(tokenizer: Any, answers: Sequence[Sequence[str]], name: str) -> list[list[list[int]]]:
    """Token ids of each example's answers as they follow a prompt: after a space, without special tokens.

    Raises:
        ValueError: an answer without tokens.
    """
    known: dict[str, list[int]] = {}
    for text in {t for listed in answers for t in listed}:
        known[text] = list(tokenizer(" " + text.strip(), add_special_tokens=False)["input_ids"])
        if not known[text]:
            raise ValueError(f"task {name!r}: answer {text!r} tokenizes to nothing")
    return [[known[t] for t in listed] for listed in answers]


def fold(text: str) -> str:
    """Lower case, everything but letters and digits as one space."""
    return WORDS.sub(" ", text.lower()).strip()


@dataclass
class LmEvalObjective:
    """A task of lm-evaluation-harness by name, with the harness's own arguments (optional package ``lm_eval``).

    Args:
        metric: per-example metric of the task, e.g. ``acc``.
        limit: number of examples; they are the harness's first ones.
        arguments: further arguments of ``lm_eval.simple_evaluate`` (``num_fewshot`` ...).

    Raises:
        ValueError: the package is not installed.
    """

    name: str
    tokenizer: Any
    limit: int
    metric: str = "acc"
    reference: float = 1.0
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if importlib.util.find_spec("lm_eval") is None:
            raise ValueError(f"task {self.name!r} is one of lm-evaluation-harness; install it: pip install lm-eval")

    @property
    def size(self) -> int:
        return self.limit

    def score(self, model: Any, indices: np.ndarray) -> np.ndarray:
        import lm_eval
        from lm_eval.models.huggingface import HFLM

        wrapped = HFLM(pretrained=model, tokenizer=self.tokenizer)
        found = lm_eval.simple_evaluate(
            model=wrapped, tasks=[self.name], limit=self.limit, log_samples=True, **self.arguments
        )
        samples = sorted(found["samples"][self.name], key=lambda s: s["doc_id"])
        return np.array([float(s[self.metric]) for s in samples])[np.asarray(indices)]
