"""The history keeps what was predicted beside what happened."""

import pytest

from core.state import StateError
from core.transfer.history import cell_name, comparable, compared, other_experiences, read_history, record
from core.transfer.recommend import Experience, Forecast, Recommendation


def past(cell="a", **scores):
    return [Experience({"log_examples": 2.0}, m, s, 1.0, "t", cell) for m, s in scores.items()]


def advice(confidence=0.7):
    return Recommendation("full", True, confidence, [Forecast("full", 0.05, 0.0, 0.1, 3.0)])


def test_prediction_and_outcome_meet(tmp_path):
    path = tmp_path / "h.jsonl"
    assert read_history(path) == []
    record(path, past(linear_probe=0.7, full=0.8), advice())
    assert compared(path) == [("a", "full", 0.05, pytest.approx(0.1))]
    assert read_history(path) == past(linear_probe=0.7, full=0.8)


def test_the_same_experience_counts_once(tmp_path):
    path = tmp_path / "h.jsonl"
    for _ in range(2):
        record(path, past(linear_probe=0.7, full=0.8), advice())
    assert len(read_history(path)) == 2
    record(path, past("b", linear_probe=0.6))
    assert len(read_history(path)) == 3


def test_advice_without_knowledge_is_no_prediction(tmp_path):
    path = tmp_path / "h.jsonl"
    record(path, past(linear_probe=0.7, full=0.8), advice(confidence=0))
    assert compared(path) == []


def test_advice_never_rests_on_the_cell_it_is_about(tmp_path):
    path = tmp_path / "h.jsonl"
    assert other_experiences(path, "t", 16) == []
    for n in (16, 100):
        record(path, past(cell_name("org/model", "t", n, "0123456789abcdef"), linear_probe=0.7))
    left = other_experiences(path, "t", 16)
    assert [e.cell for e in left] == ["org_model/t/100/0123456789ab"]
    assert len(other_experiences(path, "u", 16)) == 2


def test_damaged_history_is_named(tmp_path):
    path = tmp_path / "h.jsonl"
    path.write_text("{broken\n")
    with pytest.raises(StateError, match="line 1 is damaged"):
        read_history(path)


def test_kinds_of_targets_do_not_teach_each_other(tmp_path):
    path = tmp_path / "history.jsonl"
    numbers = [Experience({"log_examples": 2.0}, m, v, 1.0, "treg", "s/treg/24/x", "regression") for m, v in
               (("scratch", -3.0), ("full", 0.4))]  # fmt: skip
    record(path, [*past("s/t/16/x", full=0.7, scratch=0.5), *numbers])
    assert {e.group for e in other_experiences(path, "u", 16)} == {"t"}
    assert {e.group for e in other_experiences(path, "u", 16, "regression")} == {"treg"}
    assert [e.kind for e in read_history(path)].count("regression") == 2


@pytest.mark.parametrize(
    ("metric", "recorded", "value", "score"),
    [
        ("accuracy", "accuracy", 0.7, 0.7),
        ("log_loss", "accuracy", 0.7, 0.7),
        ("mse", "r2", 0.7, 0.7),
        ("spearman", "spearman", 0.7, 0.7),
        ("bleu", "bleu", 70.0, 0.7),
        ("wer", "wer", 0.3, 0.7),
    ],
)
def test_experiences_of_all_metrics_are_at_most_one_and_larger_where_better(metric, recorded, value, score):
    name, scale = comparable(metric)
    assert name == recorded
    assert scale(value) == pytest.approx(score)
