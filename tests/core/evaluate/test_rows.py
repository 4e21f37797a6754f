import pytest

from core.evaluate.rows import Row, frame, read_rows, write_rows
from core.state import StateError


def test_round_trip_and_key(tmp_path):
    rows = [Row(method="ties", metric="accuracy", value=0.5, seed=s, settings={"task": "trec"}) for s in (1, 2)]
    write_rows(tmp_path / "r.jsonl", rows)
    assert read_rows(tmp_path / "r.jsonl") == rows
    assert rows[0].key() != rows[1].key()
    assert rows[0].key() == rows[0].model_copy(update={"value": 0.9, "metric": "f1", "commit": "x"}).key()
    assert frame(rows)["settings.task"].tolist() == ["trec", "trec"]
    assert read_rows(tmp_path / "absent.jsonl") == []


def test_damaged_and_newer_lines_are_named(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"method": "a", "metric": "b", "value": 1}\n{"meth')
    with pytest.raises(StateError, match=r"r\.jsonl line 2 is damaged"):
        read_rows(path)
    path.write_text('{"method": "a", "metric": "b", "value": 1, "schema_version": 99}\n')
    with pytest.raises(StateError, match="newer"):
        read_rows(path)
