"""Rows and pairs made from archives: what they hold, and that nothing leaks or repeats."""

import pandas as pd
import pytest

from core.data.derive import matched, passages, period, replies, same_group, sentences, translations
from core.data.examples import fold


def test_sentences_end_at_marks_and_lines():
    text = 'He said "Go!" Then left. Prices rose 3.5 % today.\nA new line without end'
    assert sentences(text) == ['He said "Go!"', "Then left.", "Prices rose 3.5 % today.", "A new line without end"]


def test_passages_keep_whole_sentences_and_other_columns():
    rows = pd.DataFrame({"t": ["One two three. Four five six. Seven eight nine ten eleven. End."], "who": ["x"]})
    made = passages(rows, 0, text="t", words=6, least=2)
    assert made.t.tolist() == ["One two three. Four five six.", "Seven eight nine ten eleven. End."]
    assert made.who.tolist() == ["x", "x"]
    assert passages(rows, 0, text="t", words=6, least=7).empty


def test_period_leaves_out_the_time_between():
    rows = pd.DataFrame({"d": ["2020-01-01", "2020-02-25", "2020-03-10"]})
    made = period(rows, 0, date="d", before="2020-02-20", after="2020-03-10")
    assert list(zip(made.d, made.period)) == [("2020-01-01", "before"), ("2020-03-10", "after")]


def grouped():
    rows = [(f"text {i} of film {i % 7}", f"film {i % 7}") for i in range(140)]
    return pd.DataFrame(rows, columns=["t", "g"])


def test_same_group_pairs_are_true_balanced_and_use_a_text_once():
    rows = grouped()
    made = same_group(rows, 3, text="t", group="g")
    group = dict(zip(rows.t, rows.g))
    for a, b, answer in made.itertuples(index=False):
        assert (group[a] == group[b]) == (answer == "same")
    assert made.answer.value_counts().to_dict() == {"same": len(made) // 2, "different": len(made) // 2}
    assert len(made) >= 50
    used = [*made.text, *made.other]
    assert len(used) == len(set(used))


@pytest.mark.parametrize("within", ["", "topic"])
def test_matched_pairs_say_the_truth(within):
    rows = pd.DataFrame({"q": [f"question {i // 2}" for i in range(80)], "a": [f"answer {i}" for i in range(80)]})
    rows["topic"] = [f"topic {i // 20}" for i in range(80)]
    truth = set(zip(rows.q, rows.a))
    topics = dict(zip(rows.a, rows.topic)), dict(zip(rows.q, rows.topic))
    made = matched(rows, 0, text="q", other="a", within=within)
    for q, a, answer in made.itertuples(index=False):
        assert ((q, a) in truth) == (answer == "match")
        if within:
            assert topics[0][a] == topics[1][q]
    assert made.text.is_unique
    assert 0.4 < (made.answer == "match").mean() < 0.6


@pytest.mark.parametrize(
    "make",
    [lambda r, s: same_group(r, s, text="t", group="g"), lambda r, s: passages(r, s, text="t", words=3, least=1)],
)
def test_derivations_do_not_depend_on_row_order_nor_change_their_input(make):
    rows = grouped()
    before = rows.copy()
    one, two = make(rows, 0), make(rows.iloc[::-1].reset_index(drop=True), 0)
    assert rows.equals(before)
    assert sorted(map(tuple, one.values)) == sorted(map(tuple, two.values))


def turns(language, *conversations, topic="t"):
    made = [(language, topic, i, j, text) for i, c in enumerate(conversations) for j, text in enumerate(c)]
    return pd.DataFrame(made, columns=["language", "topic", "conversation", "turn", "text"])


def test_replies_pair_neighbouring_turns_once():
    rows = turns("en", ["a", "b", "c", "d", "e"], ["a", "b"], ["f", ""])
    assert replies(rows, 0)[["question", "answer"]].values.tolist() == [["a", "b"], ["c", "d"]]


def test_translations_need_the_same_shape():
    same = [turns("en", ["hi", "yes"], ["no"]), turns("it", ["ciao", "sì"], ["no"])]
    other = [turns("en", ["x", "y"], topic="u"), turns("it", ["z"], topic="u")]
    made = translations(pd.concat([*same, *other]), 0, source="en", target="it")
    assert made.values.tolist() == [["hi", "ciao"], ["yes", "sì"], ["no", "no"]]
    assert all(fold(t) for t in made.source)
