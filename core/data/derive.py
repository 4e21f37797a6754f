"""Ways to make rows or pairs out of what an archive holds: passages of speeches, reviews of the same film, replies.

A derivation is a function ``(rows, seed, **settings) -> rows`` on data frames. ``derive`` in a task's source runs on
all rows before they are split; ``pair`` in its splits runs on the rows of each split, so that no text crosses splits.
"""

import re

import numpy as np
import pandas as pd

from core.data.examples import fold, share_of
from core.registry import Registry

DERIVATIONS: Registry = Registry("derivation")

_SENTENCE = re.compile(r"(?<=[.!?])[\"'”’)]*\s+(?=[\"'“‘(]?[A-Z0-9])|\n+")


def sentences(text: str) -> list[str]:
    """Sentences by punctuation and line breaks (no model); a rule, so abbreviations may split."""
    return [s.strip() for s in _SENTENCE.split(text) if s and s.strip()]


@DERIVATIONS.register("passages")
def passages(rows: pd.DataFrame, seed: int, text: str, words: int, least: int = 8) -> pd.DataFrame:
    """Cut long texts into passages of whole sentences, at most about ``words`` words, at least ``least``.

    Args:
        text: column that is cut; the other columns are repeated.
        words: a passage is closed before it would pass this many words (a longer sentence stands alone).
    """
    made = []
    for row in rows.to_dict("records"):
        current: list[str] = []
        for sentence in [*sentences(str(row[text])), None]:
            size = sum(len(s.split()) for s in current)
            if current and (sentence is None or size + len(sentence.split()) > words):
                if size >= least:
                    made.append({**row, text: " ".join(current)})
                current = []
            if sentence is not None:
                current.append(sentence)
    return pd.DataFrame(made, columns=rows.columns)


@DERIVATIONS.register("period")
def period(rows: pd.DataFrame, seed: int, date: str, before: str, after: str, into: str = "period") -> pd.DataFrame:
    """Label rows "before" or "after" by an ISO date column; rows between the two dates are left out."""
    dates = rows[date].astype(str)
    kept = rows[(dates < before) | (dates >= after)].copy()
    kept[into] = np.where(kept[date].astype(str) < before, "before", "after")
    return kept


@DERIVATIONS.register("same_group")
def same_group(rows: pd.DataFrame, seed: int, text: str, group: str) -> pd.DataFrame:
    """Pairs of texts: two of one group ("same"), or of two groups ("different"), as many of each; a text occurs once.

    Returns:
        columns ``text``, ``other``, ``answer``.
    """
    order = _shuffled(rows, text, seed)
    made, waiting = [], []
    for _, members in order.groupby(group, sort=True):
        texts = members[text].astype(str).drop_duplicates().tolist()
        half = len(texts) // 2 // 2 * 2
        made += [{"text": a, "other": b, "answer": "same"} for a, b in zip(texts[:half:2], texts[1:half:2])]
        waiting += texts[half:]
    waiting.sort(key=lambda t: share_of(fold(t), seed + 1))
    groups = dict(zip(rows[text].astype(str), rows[group]))
    for a, b in zip(waiting[::2], waiting[1::2]):
        if groups[a] != groups[b]:
            made.append({"text": a, "other": b, "answer": "different"})
    same = [m for m in made if m["answer"] == "same"]
    different = [m for m in made if m["answer"] == "different"]
    n = min(len(same), len(different))
    return _shuffled(pd.DataFrame([*same[:n], *different[:n]]), "text", seed)


@DERIVATIONS.register("matched")
def matched(rows: pd.DataFrame, seed: int, text: str, other: str, within: str = "") -> pd.DataFrame:
    """True (text, other) pairs and, as many, pairs whose ``other`` belongs to another row ("match" / "mismatch").

    Args:
        within: column; mismatches are taken from rows with the same value (harder), empty for any row.

    Returns:
        columns ``text``, ``other``, ``answer``. Half of the rows are matched, the other half mismatched, so each text
        occurs once.
    """
    order = _shuffled(rows, text, seed)
    made = []
    for _, members in order.groupby(within) if within else [("", order)]:
        truth = set(zip(members[text].map(fold), members[other].map(fold)))
        once = members.drop_duplicates(text)
        pairs = list(zip(once[text], once[other]))
        half = len(pairs) // 2
        made += [{"text": a, "other": b, "answer": "match"} for a, b in pairs[:half]]
        for k, (a, _) in enumerate(pairs[half:]):
            b = pairs[half:][k - 1][1]
            if (fold(a), fold(b)) not in truth:
                made.append({"text": a, "other": b, "answer": "mismatch"})
    return _shuffled(pd.DataFrame(made, columns=["text", "other", "answer"]), "text", seed)


def _shuffled(rows: pd.DataFrame, text: str, seed: int) -> pd.DataFrame:
    """Rows in an order that depends on their texts and the seed alone."""
    shares = rows[text].astype(str).map(lambda t: share_of(fold(t), seed))
    return rows.iloc[np.argsort(shares.to_numpy(), kind="stable")].reset_index(drop=True)
