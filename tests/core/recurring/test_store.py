"""The results store: a file a run, whole or absent, never changed, refused when damaged or newer."""

import json
from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest

from core.evaluate.rows import Row
from core.recurring import store as module
from core.recurring.store import COLUMNS, Part, RunFacts, Store, fingerprint, records
from core.state import StateError


def facts(run="r0", week=0):
    return RunFacts(run=run, time=datetime(2026, 1, 3, tzinfo=UTC) + timedelta(weeks=week), libraries={"torch": "2"})


def row(value=0.5, method="ties", seed=0, **settings):
    return Row(method=method, metric="accuracy", value=value, seed=seed, settings={"task": "a", **settings},
               budget={"task_examples": 3}, inputs={"model": "abc"})  # fmt: skip


def table(run="r0", week=0, value=0.5):
    return records(facts(run, week), [Part("merge", {"size": "smoke"}, [row(value), row(None, seed=1)])])


def test_what_is_written_is_read(tmp_path):
    store = Store(tmp_path / "new")
    assert store.read().empty
    assert list(store.read().columns) == list(COLUMNS)
    store.append(table("later", 1))
    store.append(table("first", 0))
    read = store.read()
    assert list(read["run"].unique()) == ["first", "later"]
    pd.testing.assert_frame_equal(read[read["run"] == "first"].reset_index(drop=True), table("first", 0))
    assert read["value"].isna().sum() == 2


def test_a_measurement_stands_once_a_run():
    same = records(facts(), [Part("merge", {}, [row(), row()])])
    assert len(same) == 1
    with pytest.raises(ValueError, match=r"measured twice in run r0, as 0\.5 and 0\.6"):
        records(facts(), [Part("merge", {}, [row(), row(0.6)])])
    several = [Part("merge", {"size": "a"}, [row()]), Part("merge", {"size": "b"}, [row(0.6)])]
    assert records(facts(), several)["key"].nunique() == 2


def test_a_run_is_appended_once_and_never_changed(tmp_path):
    store = Store(tmp_path)
    first = store.append(table())
    before = first.read_bytes()
    assert store.append(table()) == first
    with pytest.raises(StateError, match=r"run r0 is stored in .* with other records"):
        store.append(table(value=0.7))
    assert first.read_bytes() == before
    assert [p.suffix for p in tmp_path.iterdir() if p.suffix == ".parquet"] == [".parquet"]
    with pytest.raises(ValueError, match="records of one run, got 2"):
        store.append(pd.concat([table(), table("r1")]))


def test_the_fingerprint_is_of_content(tmp_path):
    a = table()
    assert fingerprint(a) == fingerprint(a.iloc[::-1])
    assert fingerprint(a) != fingerprint(table(value=0.51))


def test_damaged_foreign_and_newer_files_are_named(tmp_path, monkeypatch):
    store = Store(tmp_path)
    path = store.append(table())
    good = path.read_bytes()
    path.write_bytes(good[:-20])
    with pytest.raises(StateError, match=f"{path.name} is damaged"):
        store.read()
    flipped = bytearray(good)
    flipped[40] ^= 255
    path.write_bytes(bytes(flipped))
    with pytest.raises(StateError, match="is damaged"):
        store.read()
    pd.DataFrame({"x": [1]}).to_parquet(path)
    with pytest.raises(StateError, match="no results file"):
        store.read()
    path.unlink()
    monkeypatch.setattr(module, "SCHEMA", 3)
    path = store.append(table())
    monkeypatch.setattr(module, "SCHEMA", 2)
    with pytest.raises(StateError, match=r"schema version 3, this program reads up to 2"):
        store.read()


def test_set_ups_of_schema_1_lose_the_task_that_rows_name(tmp_path, monkeypatch):
    setups = {
        "distill": {"size": "smoke", "task": "a", "settings": {"task": "b"}},
        "transfer": {"size": "smoke", "target": "a", "settings": {}},
        "merge": {"size": "smoke", "tasks": ["a"], "settings": {}},
    }
    old = records(facts(), [Part(level, setup, [row()]) for level, setup in setups.items()])
    monkeypatch.setattr(module, "SCHEMA", 1)
    Store(tmp_path).append(old)
    monkeypatch.undo()
    Store(tmp_path).append(records(facts("r1", 1), [Part("merge", setups["merge"], [row()])]))
    read = Store(tmp_path).read()
    found = [json.loads(s) for s in read["setup"]]
    assert found == [
        {"size": "smoke", "settings": {"task": "b"}},
        {"size": "smoke", "settings": {}},
        setups["merge"],
        setups["merge"],
    ]
