"""One prompt interface for three model kinds: masked LM, causal LM, sentence encoder.

A :class:`Prompt` is a template with one ``{answer}`` slot and words for every label. A prompted model turns a text into
label logits [B, C] and the hidden state of every layer at the answer position [layers + 1, B, H]:

    masked    the state at the mask, logits from the LM head at the label words' tokens
    causal    the state at the last prompt token, logits the same way (the answer comes last)
    encoder   the pooled state, logits from a head whose rows start as the embeddings of the label phrases

Nothing assumes that teacher and student share kind, width, depth or tokenizer.
"""

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn

from core.config import Config
from core.hashing import content_key
from core.models.encoder import TextEncoder
from core.models.heads import Classifier, label_word_head
from core.models.layers import layer_states, output_width
from core.models.lm_head import body_and_head
from core.models.load import LanguageModel
from core.models.score import Tokenized, score

CONTENT_FREE = ("N/A", "", "[MASK]")
KINDS = ("masked", "causal", "encoder")


class Prompt(Config):
    """Templates and label words (the verbalizer). Slots: ``{text}``, ``{pair}``, ``{answer}``."""

    masked: str = Field("", description="masked-LM template, {answer} where the mask goes")
    causal: str = Field("", description="causal-LM template, ends with {answer}")
    encoder: str = Field("{text}", description="what the sentence encoder reads; second texts go in as a pair")
    words: tuple[tuple[str, ...], ...] = Field(
        description="for each label one or more words, or words of several tokens"
    )
    phrase: str = Field("{answer}", description="label phrase of the sentence encoder, with {answer}")
    separator: str = Field("\n\n", description="between demonstrations")

    @model_validator(mode="after")
    def _usable(self) -> "Prompt":
        for name in ("masked", "causal", "phrase"):
            template = getattr(self, name)
            slots = [slot for _, slot, _, _ in string.Formatter().parse(template) if slot is not None]
            if template and slots.count("answer") != 1:
                raise ValueError(f"{name} template {template!r} needs exactly one answer slot {{answer}}")
            if set(slots) - {"text", "pair", "answer"}:
                raise ValueError(f"{name} template {template!r}: slots are {{text}}, {{pair}} and {{answer}}")
        if self.causal and not self.causal.rstrip().endswith("{answer}"):
            raise ValueError(f"causal template {self.causal!r} must end with the answer slot {{answer}}")
        if len(self.words) < 2 or any(not w or not all(x.strip() for x in w) for w in self.words):
            raise ValueError(f"each of two or more labels needs at least one word that is not empty, got {self.words}")
        seen: dict[str, int] = {}
        for label, words in enumerate(self.words):
            for word in words:
                if seen.setdefault(word.strip().lower(), label) != label:
                    raise ValueError(f"label word {word!r} stands for labels {seen[word.strip().lower()]} and {label}")
        return self

    @classmethod
    def of(cls, task: Any, **changes: Any) -> "Prompt":
        """The prompt of a task: its templates (``{mask}`` is the answer slot) and label words.

        Several words for a label are separated by ``|``. Without label words the label names serve.
        """
        words = [tuple(w.split("|")) for w in (task.label_words or [n.replace("_", " ") for n in task.labels])]
        causal = task.causal_template
        if causal:
            causal = causal.replace("{mask}", "{answer}") if "{mask}" in causal else causal.rstrip() + " {answer}"
        given = {"masked": task.template.replace("{mask}", "{answer}"), "causal": causal, "words": words}
        return cls(**(given | changes))

    @property
    def phrases(self) -> list[list[str]]:
        """Label phrases of the sentence encoder, for each label."""
        return [[self.phrase.format(answer=w, text="", pair="") for w in words] for words in self.words]

    def fill(self, kind: str, text: str, pair: str = "", answer: str = "") -> str:
        """The template of ``kind`` filled in."""
        template = getattr(self, kind)
        if not template:
            raise ValueError(f"this prompt has no {kind} template; give one")
        filled = template.format(text=text, pair=pair, answer=answer)
        return filled.rstrip() if kind == "causal" and not answer else filled

    @property
    def sha256(self) -> str:
        return content_key(self)


@dataclass(frozen=True)
class Demonstration:
    """A labelled example shown before the prompt."""

    text: str
    label: int
    pair: str = ""


class PromptedLM(nn.Module):
    """A masked or causal LM answering with label words.

    Args:
        demonstrations: shown before every prompt, in this order.
        too_long: ``"cut"`` shortens the text (never the template), ``"error"`` refuses.

    Raises:
        ValueError: a label word that tokenizes to nothing, two labels with the same tokens, a masked template on a
            causal model, or a template that alone is longer than the model's window.
    """

    def __init__(
        self,
        lm: LanguageModel,
        prompt: Prompt,
        demonstrations: Sequence[Demonstration] = (),
        too_long: Literal["cut", "error"] = "cut",
        max_length: int | None = None,
    ):
        super().__init__()
        self.kind, self.tokenizer, self.prompt = lm.kind, lm.tokenizer, prompt
        self.name, self.sha256 = lm.name, lm.sha256
        self.max_length = min(lm.max_length, max_length or 512)
        self.model, self.too_long = lm.model, too_long
        self._head = (body_and_head(lm.model)[1],)  # a tuple, as its weights are the model's already
        self.demonstrations = tuple(demonstrations)
        self._shown = self._demonstrated()
        ids, weights = label_tokens(self.tokenizer, prompt.words)
        self.register_buffer("label_ids", torch.from_numpy(ids).to(self.device), persistent=False)
        self.register_buffer("label_weights", torch.from_numpy(weights).to(self.device), persistent=False)
        self.render("")  # refuses a template that does not fit before any work is done

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def classes(self) -> int:
        return len(self.prompt.words)

    @property
    def width(self) -> int:
        return output_width(self.model)

    @property
    def depth(self) -> int:
        return self.model.config.num_hidden_layers

    def render(self, text: str, pair: str = "", answer: str | None = None) -> str:
        """The whole prompt for one text, cut so that it fits the model.

        Args:
            answer: filled in where the model would answer, without the demonstrations; None leaves that open.
        """
        mask = self.tokenizer.mask_token if self.kind == "masked" else ""
        text, pair = (t.replace(mask, " ") if mask else t for t in (text, pair))
        shown, answer = (self._shown, mask) if answer is None else ("", answer)
        for _ in range(8):
            filled = shown + self.prompt.fill(self.kind, text, pair, answer)
            over = len(self.tokenizer(filled)["input_ids"]) - self.max_length
            if over <= 0:
                return filled
            if self.too_long == "error" and text:
                raise ValueError(
                    f"a prompt is {over} tokens longer than {self.name} reads ({self.max_length}): {text[:60]!r}"
                )
            if not text and not pair:
                break
            text, pair = self._shortened(text, pair, over + 1)
        raise ValueError(
            f"template and demonstrations alone are longer than {self.name} reads ({self.max_length} tokens)"
        )

    def _shortened(self, text: str, pair: str, over: int) -> tuple[str, str]:
        """``over`` tokens less, off the longer of the two until they are equally long: neither may vanish alone."""
        ids = [self.tokenizer(t, add_special_tokens=False)["input_ids"] for t in (text, pair)]
        first, second = (len(i) for i in ids)
        left = max(0, first + second - over)
        small = min(first, second, left // 2)
        kept = (left - small, small) if first >= second else (small, left - small)
        return tuple(
            t if n == len(i) else self.tokenizer.decode(i[:n]) for t, i, n in zip((text, pair), ids, kept, strict=True)
        )

    def _demonstrated(self) -> str:
        shown = [
            self.prompt.fill(self.kind, d.text, d.pair, self.prompt.words[d.label][0]) for d in self.demonstrations
        ]
        return "".join(s + self.prompt.separator for s in shown)

    def tokenize(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Tokenized:
        """Token ids of the filled prompts."""
        rendered = [self.render(t, p) for t, p in zip(texts, pairs or [""] * len(texts), strict=True)]
        types = self.kind == "masked" and getattr(self.model.config, "type_vocab_size", 0) > 1
        tokens = Tokenized.of(self.tokenizer, rendered, token_types=types)
        return tokens if self.kind == "masked" else tokens.unended(self.tokenizer)

    def forward(self, batch: dict[str, torch.Tensor], hidden: bool = False):
        """Label logits [B, C]; with ``hidden`` also the states at the answer [layers + 1, B, H]."""
        (head,) = self._head
        out = self.model.base_model(**batch, output_hidden_states=hidden)
        rows = torch.arange(len(batch["input_ids"]), device=self.device)
        soft = out.last_hidden_state.shape[1] - batch["input_ids"].shape[1]  # soft prompt tokens come first
        position = self._position(batch) + soft
        logits = self._label_logits(head, out.last_hidden_state[rows, position])
        if not hidden:
            return logits
        states = layer_states(self.model, out.hidden_states)
        return logits, torch.stack([h[rows, position].float() for h in states])

    def _position(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.kind == "causal":
            return batch["attention_mask"].sum(1) - 1
        is_mask = (batch["input_ids"] == self.tokenizer.mask_token_id).int()
        if not bool(is_mask.any(1).all()):
            raise ValueError("a prompt lost its mask; the template does not fit the model's window")
        length = is_mask.shape[1]
        return length - 1 - is_mask.flip(1).argmax(1)  # the last mask: earlier ones belong to demonstrations

    def _label_logits(self, head: Callable[[torch.Tensor], torch.Tensor], state: torch.Tensor) -> torch.Tensor:
        """Mean over a label's words of the mean logit of the word's tokens, [B, C] in float32."""
        if isinstance(head, nn.Linear):
            flat = self.label_ids.flatten()
            bias = None if head.bias is None else head.bias[flat]
            token = nn.functional.linear(state, head.weight[flat], bias).unflatten(1, self.label_ids.shape)
        else:
            token = head(state.unsqueeze(1)).squeeze(1)[:, self.label_ids]
        return (token.float() * self.label_weights).sum((-1, -2))


class PromptedEncoder(Classifier):
    """A sentence encoder answering through a head of label phrases."""

    kind = "encoder"

    def __init__(self, encoder: TextEncoder, prompt: Prompt, scale: float = 20.0):
        super().__init__(encoder, label_word_head(encoder, prompt.phrases, scale), normalize=True)
        self.prompt, self.name, self.sha256 = prompt, encoder.name, encoder.sha256

    @property
    def classes(self) -> int:
        return len(self.prompt.words)

    @property
    def device(self) -> torch.device:
        return self.encoder.device

    @property
    def width(self) -> int:
        return self.encoder.width

    @property
    def depth(self) -> int:
        return self.encoder.depth

    def tokenize(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Tokenized:
        if self.prompt.encoder == "{text}":
            return self.encoder.tokenize(texts, pairs)
        second = pairs or [""] * len(texts)
        return self.encoder.tokenize([self.prompt.fill("encoder", t, p) for t, p in zip(texts, second, strict=True)])


def prompted(model: TextEncoder | LanguageModel, prompt: Prompt, **options: Any) -> PromptedLM | PromptedEncoder:
    """``model`` behind the prompt interface."""
    return (
        PromptedEncoder(model, prompt, **options)
        if isinstance(model, TextEncoder)
        else PromptedLM(model, prompt, **options)
    )


def label_tokens(tokenizer: Any, words: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of label words [C, words, tokens] (padded) and the weight of each in its label's mean.

    Raises:
        ValueError: a word tokenizes to nothing or to the unknown token, or two labels have the same tokens.
    """
    rows: list[list[list[int]]] = []
    for label, group in enumerate(words):
        tokens = [_within_text(tokenizer, w.strip()) for w in group]
        for word, ids in zip(group, tokens, strict=True):
            if not ids or all(i == tokenizer.unk_token_id for i in ids):
                raise ValueError(f"label word {word!r} of label {label} tokenizes to nothing; choose another word")
        rows.append(tokens)
    keys = [tuple(sorted(map(tuple, tokens))) for tokens in rows]
    for label, key in enumerate(keys):
        if key in keys[:label]:
            raise ValueError(
                f"labels {keys.index(key)} and {label} have the same tokens ({words[label]}); choose words that differ"
            )
    n_words, n_tokens = max(map(len, rows)), max(len(t) for tokens in rows for t in tokens)
    ids = np.zeros((len(rows), n_words, n_tokens), dtype=np.int64)
    weights = np.zeros(ids.shape, dtype=np.float32)
    for c, tokens in enumerate(rows):
        for w, word in enumerate(tokens):
            ids[c, w, : len(word)] = word
            weights[c, w, : len(word)] = 1.0 / (len(tokens) * len(word))
    return ids, weights


def _within_text(tokenizer: Any, word: str) -> list[int]:
    """Token ids of a word that follows another one.

    Alone it may get a blank too many: tokenizers of Llama 2 and Gemma's kind put one before every text.
    """
    before, after = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a", f"a {word}"))
    if after[: len(before)] == before:
        return after[len(before) :]
    return tokenizer(f" {word}", add_special_tokens=False)["input_ids"]


class LastState(nn.Module):
    """The final state [B, H] of the last real token: what a filled prompt of a language model looks like."""

    def __init__(self, model: Any):
        super().__init__()
        self.body = body_and_head(model)[0]

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        states = self.body(**batch).last_hidden_state
        last = states.shape[1] - batch["input_ids"].shape[1] + batch["attention_mask"].sum(1) - 1
        return states[torch.arange(len(last), device=states.device), last].float()


def log_softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Log of softmax(logits / temperature) over the last axis (the temperature divides logits, not probabilities)."""
    z = np.asarray(logits, dtype=np.float64) / temperature
    z = z - z.max(-1, keepdims=True)
    return (z - np.log(np.exp(z).sum(-1, keepdims=True))).astype(np.float32)


def content_free_logits(model: PromptedLM | PromptedEncoder) -> np.ndarray:
    """Mean label logits [C] of prompts without content (Zhao et al. 2021, "Calibrate before use")."""
    pairs = list(CONTENT_FREE) if "{pair}" in model.prompt.masked + model.prompt.causal else None
    texts = list(CONTENT_FREE) if model.kind != "encoder" else ["N/A", ".", "-"]
    return log_softmax(score(model, model.tokenize(texts, pairs), dtype="float32")[0]).mean(0)


def calibrated(logits: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Logits [n, C] less the content-free log-probabilities [C]."""
    return logits - reference


def pool_bias(logits: np.ndarray, prior: np.ndarray | None = None, rounds: int = 200) -> np.ndarray:
    """Bias [C] that makes the mean prediction over a pool equal ``prior`` (uniform: assumes balanced classes).

    Subtract it from logits. Found by the fixed point ``b += log(mean p / prior)``.
    """
    prior = np.full(logits.shape[1], 1.0 / logits.shape[1]) if prior is None else np.asarray(prior)
    bias = np.zeros(logits.shape[1])
    for _ in range(rounds):
        mean = np.exp(log_softmax(logits - bias)).mean(0)
        bias += np.log(np.maximum(mean, 1e-12) / prior)
    return bias - bias.mean()
