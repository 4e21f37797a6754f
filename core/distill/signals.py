"""Teacher signals, computed once: float16 arrays on disk, memory-mapped, found by what made them.

The key holds the identity of the model (for a tuned one: source, data, settings and code, known without training it),
the texts and the prompt. A run whose signals are cached never builds the teacher: it is passed as a function.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.hashing import content_key
from core.state import Cache

FORMAT = 1


@dataclass(frozen=True)
class Signals:
    """Signals of n texts. ``hidden`` holds the layers named in ``layers`` (0 is the embedding output).

    Shapes: logits [n, C]; hidden [n, len(layers), H]; answers [n, C, H], the state of the text with each answer filled
    in, or None. All float16, memory-mapped when they come from the cache.
    """

    logits: np.ndarray
    hidden: np.ndarray
    layers: tuple[int, ...]
    answers: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.logits)

    def take(self, indices: Sequence[int]) -> "Signals":
        answers = None if self.answers is None else self.answers[indices]
        return Signals(self.logits[indices], self.hidden[indices], self.layers, answers)

    def __add__(self, other: "Signals") -> "Signals":
        if self.layers != other.layers or (self.answers is None) != (other.answers is None):
            raise ValueError(f"signals of layers {self.layers} and {other.layers} cannot be joined")
        if self.logits.shape[1] != other.logits.shape[1]:
            raise ValueError(f"signals of {self.logits.shape[1]} and {other.logits.shape[1]} labels cannot be joined")
        answers = None if self.answers is None else np.concatenate([self.answers, other.answers])
        return Signals(
            np.concatenate([self.logits, other.logits]),
            np.concatenate([self.hidden, other.hidden]),
            self.layers,
            answers,
        )


def text_hash(texts: Sequence[str], pairs: Sequence[str] | None = None) -> str:
    """Hash of texts in order."""
    return content_key(list(texts), None if pairs is None else list(pairs))


def cached_signals(
    cache: Cache,
    identity: str,
    make_model: Callable[[], Any],
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    *,
    layers: Sequence[int] = (),
    answers: bool = False,
    dtype: str = "auto",
) -> Signals:
    """Signals of ``texts`` from the model called ``identity``; ``make_model`` is called only when they are not cached.

    Args:
        make_model: gives a prompted model (:mod:`core.models.prompt`); its prompt and weights must be part of
            ``identity``.
        layers: hidden layers to keep.
        answers: also keep the states of the texts with every answer filled in.
    """
    layers = tuple(sorted(set(layers)))
    key = content_key(FORMAT, identity, text_hash(texts, pairs), layers, answers, dtype)

    def build(folder: Path) -> dict[str, Any]:
        made = compute_signals(make_model(), texts, pairs, layers=layers, answers=answers, dtype=dtype)
        for name in ("logits", "hidden", "answers"):
            array = getattr(made, name)
            if array is not None:
                np.save(folder / f"{name}.npy", array)
        return {"texts": len(texts), "layers": list(layers)}

    folder = cache.compute("signals", key, build)
    load = {name: folder / f"{name}.npy" for name in ("logits", "hidden", "answers")}
    arrays = {name: np.load(p, mmap_mode="r") if p.exists() else None for name, p in load.items()}
    return Signals(arrays["logits"], arrays["hidden"], layers, arrays["answers"])


def compute_signals(
    model: Any,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    *,
    layers: Sequence[int] = (),
    answers: bool = False,
    dtype: str = "auto",
) -> Signals:
    """Run the model over the texts (see :class:`Signals`).

    Raises:
        ValueError: a layer the model does not have, or signals that are not finite.
    """
    from core.models.score import score

    bad = [layer for layer in layers if not 0 <= layer <= model.depth]
    if bad:
        raise ValueError(f"layers {bad} do not exist in {model.name}; it has 0 to {model.depth}")
    tokens = model.tokenize(texts, pairs)
    if layers:
        logits, states = score(model, tokens, dtype=dtype, description=f"signals of {model.name}", hidden=True)
        hidden = states[:, list(layers)]
    else:
        logits = score(model, tokens, dtype=dtype, description=f"signals of {model.name}")[0]
        hidden = np.zeros((len(texts), 0, model.width), dtype=np.float32)
    filled = answer_states(model, texts, pairs, dtype) if answers else None
    for name, array in (("logits", logits), ("hidden", hidden), ("answers", filled)):
        if array is not None and not np.isfinite(array).all():
            raise ValueError(f"{name} of {model.name} are not finite; use dtype='float32'")
    half = [None if a is None else np.clip(a, -6e4, 6e4).astype(np.float16) for a in (logits, hidden, filled)]
    return Signals(half[0], half[1], tuple(layers), half[2])


def answer_states(model: Any, texts: Sequence[str], pairs: Sequence[str] | None, dtype: str = "auto") -> np.ndarray:
    """Last states [n, C, H] of each text with the first word of every label filled in as the answer."""
    from core.models.prompt import LastState
    from core.models.score import Tokenized, score

    second = list(pairs) if pairs is not None else [""] * len(texts)
    columns = []
    for words in model.prompt.words:
        if model.kind == "encoder":
            phrase = model.prompt.phrase.format(answer=words[0], text="", pair="")
            room = model.encoder.max_length - len(model.encoder.tokenizer(phrase)["input_ids"])
            tokens = model.encoder.tokenize([f"{_begun(model.encoder, t, room)} {phrase}" for t in texts], pairs)
            columns.append(score(model.encoder, tokens, dtype=dtype, description="answers")[0])
            continue
        filled = [model.render(t, p, words[0]) for t, p in zip(texts, second, strict=True)]
        tokens = Tokenized.of(model.tokenizer, filled, max_length=model.max_length)
        if model.kind == "causal":
            tokens = tokens.unended(model.tokenizer)
        columns.append(score(LastState(model.model), tokens, dtype=dtype, description="answers")[0])
    return np.stack(columns, axis=1)


def _begun(encoder: Any, text: str, most: int) -> str:
    """The beginning of a text of at most ``most`` tokens: what is written behind it must be read too."""
    ids = encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
    return text if len(ids) <= most else encoder.tokenizer.decode(ids[: max(0, most)])
