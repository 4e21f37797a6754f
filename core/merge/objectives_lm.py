"""Objectives of merged language models: log-likelihood of answers, generation with exact match, lm-eval tasks.

Each has ``name``, ``size``, ``reference`` and ``score(model, indices) -> per-example array``; the model is the causal
language model itself (a module that gives ``logits``), merged in memory.
"""

import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

WORDS = re.compile(r"\W+")


@dataclass
class LikelihoodObjective:
    """Multiple choice: the answer of highest log-likelihood after the prompt, per token when ``normalise``.

    Args:
        tokenizer: of the model; right padding is done here.
        prompts: one an example, ending where the answer begins.
        answers: one list of answers for all examples, or one list an example.
        labels: index of the right answer.

    Raises:
        ValueError: unequal lengths, a label without answer, or labels of one class only.
    """

    name: str
    tokenizer: Any
    prompts: Sequence[str]
    answers: Sequence[str] | Sequence[Sequence[str]]
    labels: Sequence[int]
    reference: float = 1.0
    normalise: bool = False
    batch: int = 16

    def __post_init__(self) -> None:
        if len(self.prompts) != len(self.labels) or not len(self.prompts):
            raise ValueError(f"task {self.name!r}: {len(self.prompts)} prompts for {len(self.labels)} labels")
        if isinstance(self.answers[0], str):
            self.answers = [list(self.answers)] * len(self.prompts)
        if any(not 0 <= label < len(a) for label, a in zip(self.labels, self.answers, strict=True)):
            raise ValueError(f"task {self.name!r}: a label has no answer")
        if len(set(self.labels)) < 2:
            raise ValueError(f"task {self.name!r}: all {len(self.labels)} validation examples are of one class")

    @property
    def size(self) -> int:
        return len(self.prompts)

    def score(self, model: Any, indices: np.ndarray) -> np.ndarray:
        rows = [(i, k) for i in indices for k in range(len(self.answers[i]))]
        values = self._loglikelihood(model, rows)
        found: dict[int, list[float]] = {}
        for (i, _), value in zip(rows, values, strict=True):
            found.setdefault(int(i), []).append(value)
        return np.array([_hit(found[int(i)], self.labels[i]) for i in indices])

    def _loglikelihood(self, model: Any, rows: Sequence[tuple[int, int]]) -> list[float]:
        import torch

        ids, starts = [], []
        for i, k in rows:
            prompt = self.tokenizer(self.prompts[i])["input_ids"]
            answer = self.tokenizer(" " + self.answers[i][k].strip(), add_special_tokens=False)["input_ids"]
            ids.append([*prompt, *answer])
            starts.append(len(prompt))
        out = [0.0] * len(rows)
        order = sorted(range(len(rows)), key=lambda r: -len(ids[r]))
        device = next(model.parameters()).device
        with torch.inference_mode():
            for at in range(0, len(order), self.batch):
                part = order[at : at + self.batch]
                longest = max(len(ids[r]) for r in part)
                pad = self.tokenizer.pad_token_id or 0
                tokens = torch.tensor([ids[r] + [pad] * (longest - len(ids[r])) for r in part], device=device)
                mask = torch.tensor([[1] * len(ids[r]) + [0] * (longest - len(ids[r])) for r in part], device=device)
                logp = model(input_ids=tokens, attention_mask=mask).logits.float().log_softmax(-1)
                for row, r in enumerate(part):
                    span = range(starts[r], len(ids[r]))
                    value = sum(float(logp[row, t - 1, ids[r][t]]) for t in span)
                    out[r] = value / max(len(span), 1) if self.normalise else value
        return out


def _hit(values: Sequence[float], label: int) -> float:
    return float(np.argmax(values) == label) if np.isfinite(values).all() else float("nan")


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

    def __post_init__(self) -> None:
        if len(self.prompts) != len(self.targets) or not len(self.prompts):
            raise ValueError(f"task {self.name!r}: {len(self.prompts)} prompts for {len(self.targets)} targets")

    @property
    def size(self) -> int:
        return len(self.prompts)

    def score(self, model: Any, indices: np.ndarray) -> np.ndarray:
        import torch

        device = next(model.parameters()).device
        out = []
        with torch.inference_mode():
            for i in indices:
                tokens = self.tokenizer(self.prompts[i], return_tensors="pt").to(device)
                tokens.pop("token_type_ids", None)
                made = model.generate(
                    **tokens,
                    max_new_tokens=self.max_new_tokens,
                    do_sample=False,
                    pad_token_id=self.tokenizer.pad_token_id or 0,
                )
                text = self.tokenizer.decode(made[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True)
                out.append(float(self.matches(text, i)))
        return np.array(out)

    def matches(self, text: str, index: int) -> bool:
        """Whether a generated text counts for example ``index``."""
        for mark in self.stop:
            text = text.lstrip().split(mark)[0]
        target = self.targets[index]
        accepted = [target] if isinstance(target, str) else target
        return fold(text) in {fold(t) for t in accepted}


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
