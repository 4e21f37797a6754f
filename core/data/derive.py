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

_SENTENCE_END = re.compile(r"([.!?][\"'”’)]*)\s+(?=[\"'“‘(]?[A-Z0-9])")


def sentences(text: str) -> list[str]:
    """Sentences by punctuation and line breaks (no model); a rule, so abbreviations may split."""
    return [s.strip() for s in _SENTENCE_END.sub(r"\1\n", text).split("\n") if s.strip()]


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


@DERIVATIONS.register("replies")
def replies(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Turns of dialogues as question and answer: turns 1 and 2, 3 and 4, ... of a conversation; repeats once.

    Returns:
        columns ``question``, ``answer``, ``topic``.
    """
    made = []
    for (_, topic, _), turns in rows.groupby(["language", "topic", "conversation"], sort=False):
        said = turns["text"].tolist()
        made += [{"question": a, "answer": b, "topic": topic} for a, b in zip(said[:-1:2], said[1::2]) if a and b]
    return pd.DataFrame(made, columns=["question", "answer", "topic"]).drop_duplicates(ignore_index=True)


@DERIVATIONS.register("translations")
def translations(rows: pd.DataFrame, seed: int, source: str, target: str) -> pd.DataFrame:
    """Turns of two languages side by side, from topics whose conversations have equal shape in both; repeats once.

    Returns:
        columns ``source``, ``target``.
    """
    place = ["topic", "conversation", "turn"]
    both = [rows[rows["language"] == language] for language in (source, target)]
    shapes = [dict(list(r.groupby("topic")[place[1:]].agg(list).apply(tuple, axis=1).items())) for r in both]
    equal = {t for t, shape in shapes[0].items() if [*map(list, shape)] == [*map(list, shapes[1].get(t, ()))]}
    merged = both[0][both[0]["topic"].isin(equal)].merge(both[1], on=place, suffixes=("_a", "_b"))
    made = pd.DataFrame({"source": merged["text_a"], "target": merged["text_b"]})
    return made[(made["source"] != "") & (made["target"] != "")].drop_duplicates(ignore_index=True)


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
