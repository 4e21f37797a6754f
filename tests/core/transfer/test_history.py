"""The history keeps what was predicted beside what happened."""

import pytest

from core.evaluate.rows import Row, write_rows
from core.state import StateError
from core.transfer.experience import Experience
from core.transfer.history import (
    Comparison,
    cell_name,
    comparable,
    compared,
    other_experiences,
    read_history,
    record,
    unit_of,
)
from core.transfer.recommend import Forecast, Recommendation


def past(cell="a", **scores):
    return [Experience({"log_examples": 2.0}, m, s, 1.0, "t", cell) for m, s in scores.items()]


def advice(known=True, over="linear_probe"):
    regrets = {over: 0.04, "full": 0.01} if known else {}
    forecasts = [Forecast(s, 0.05 * (s == "full"), 0.0, 0.1, 3.0, regret=r) for s, r in regrets.items()]
    return Recommendation("full", True, 0.7 if known else 0.0, forecasts or [Forecast("full")], reference=over)


def test_prediction_and_outcome_meet(tmp_path):
    path = tmp_path / "h.jsonl"
    assert read_history(path) == []
    record(path, past(linear_probe=0.7, full=0.8), advice())
    assert compared(path) == [
        Comparison("a", "linear_probe", "regret", 0.04, pytest.approx(0.1)),
        Comparison("a", "linear_probe", "gain", 0.0, 0.0, "linear_probe"),
        Comparison("a", "full", "regret", 0.01, 0.0, picked=True),
        Comparison("a", "full", "gain", 0.05, pytest.approx(0.1), "linear_probe"),
    ]
    assert read_history(path) == past(linear_probe=0.7, full=0.8)


def test_predictions_meet_outcomes_without_a_probe(tmp_path):
    """Gains are over what the forecast was made over, regrets against what something was predicted of."""
    path = tmp_path / "h.jsonl"
    record(path, past(scratch=0.5, full=0.8, lora=0.9), advice(over="scratch"))
    found = {(c.strategy, c.quantity): c for c in compared(path)}
    assert found["full", "gain"] == Comparison("a", "full", "gain", 0.05, pytest.approx(0.3), "scratch")
    assert found["full", "regret"].realised == 0, "nothing had been predicted of lora"
    assert ("lora", "regret") not in found


def test_predictions_of_older_records_are_over_the_probe(tmp_path):
    path = tmp_path / "h.jsonl"
    old = Row(method="full", metric="predicted gain", value=0.05, settings={"cell": "a"})
    write_rows(path, [*(e.row() for e in past(linear_probe=0.7, full=0.8)), old])
    assert [(c.over, c.realised) for c in compared(path)] == [("linear_probe", pytest.approx(0.1))]


def test_the_same_experience_counts_once(tmp_path):
    path = tmp_path / "h.jsonl"
    for _ in range(2):
        record(path, past(linear_probe=0.7, full=0.8), advice())
    assert len(read_history(path)) == 2
    record(path, past("b", linear_probe=0.6))
    assert len(read_history(path)) == 3


def test_advice_without_knowledge_is_no_prediction(tmp_path):
    path = tmp_path / "h.jsonl"
    record(path, past(linear_probe=0.7, full=0.8), advice(known=False))
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


def test_modalities_do_not_teach_each_other(tmp_path):
    """Also those of records that do not name it: only texts have words, and answers are a language model's."""
    path = tmp_path / "h.jsonl"
    seen = {"log_examples": 2.0}
    old = [
        Experience(seen | {"mean_words": 9.0}, "full", 0.7, 1.0, "words", "s/words/16/x"),
        Experience(seen | {"mean_words": None}, "full", 0.7, 1.0, "pixels", "s/pixels/16/x", modality="image"),
        Experience(seen, "full", 0.7, 1.0, "answers", "s/answers/16/x", "generation", "language"),
    ]
    assert not any("modality" in e.row().settings for e in old)
    sound = Experience(seen, "full", 0.7, 1.0, "sounds", "s/sounds/16/x", modality="audio", passes=32.0)
    record(path, [*old, sound])
    assert read_history(path) == [*old, sound]
    asked = {"words": "text", "pixels": "image", "sounds": "audio", "answers": "language"}
    for group, modality in asked.items():
        kind = "generation" if modality == "language" else "classification"
        assert [e.group for e in other_experiences(path, "u", 16, kind, modality)] == [group]


def test_units_of_what_is_compared():
    assert [unit_of(m) for m in ("accuracy", "mse", "bleu", "wer")] == ["accuracy", "r2", "bleu / 100", "1 - wer"]


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
