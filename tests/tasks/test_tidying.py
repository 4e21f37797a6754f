"""The cache's size limit removes what was unused longest, never what a model or a run needs."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.state import Cache, exclusive
from tasks import lineage, pruning, spool, tidying


@pytest.fixture
def cached(home, monkeypatch):
    """Three folders of 1 MB, used one after the other; the oldest is needed by a model."""

    def build(folder):
        (folder / "x").write_bytes(bytes(10**6))

    folders = [Cache().compute("merge", f"k{i}", build) for i in range(3)]
    for age, folder in zip((300, 200, 100), folders, strict=True):
        os.utime(folder, (folder.stat().st_mtime - age,) * 2)
    monkeypatch.setattr(pruning, "protected", lambda: {str(folders[0]): "model m v1"})
    return folders


def test_the_longest_unused_goes(cached, monkeypatch):
    monkeypatch.setenv(tidying.LIMIT, "0.0025")
    tidying.keep_within_limit()
    assert [f.exists() for f in cached] == [True, False, True]


def test_what_is_needed_stays_even_above_the_limit(cached, monkeypatch):
    monkeypatch.setenv(tidying.LIMIT, "0")
    tidying.keep_within_limit()
    assert [f.exists() for f in cached] == [True, False, False]


def test_without_a_limit_nothing_goes(cached, monkeypatch):
    monkeypatch.delenv(tidying.LIMIT, raising=False)
    tidying.keep_within_limit()
    assert all(f.exists() for f in cached)


@pytest.mark.parametrize("text", ["much", "-1", "nan"])
def test_a_wrong_limit_is_refused(text, monkeypatch):
    monkeypatch.setenv(tidying.LIMIT, text)
    with pytest.raises(ValueError, match=f"{tidying.LIMIT}={text}: give a number of gigabytes"):
        tidying.limit_bytes()


HOLD = """
import sys, time
from core.state import exclusive
with exclusive(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holding():
    """Start a process that holds a path; killed at the end, which leaves its marks behind."""
    started = []

    def hold(path: Path) -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "held\n"
        started.append(process)
        return process

    yield hold
    for process in started:
        process.kill()
        process.wait()


def test_what_a_killed_run_left_behind_is_not_in_use(cached, holding):
    folder = cached[1]
    process = holding(folder)
    needed = lambda: {e.path: e.needed for e in pruning.entries([Cache()])}  # noqa: E731
    assert needed()[folder] == "in use"
    process.kill()
    process.wait()
    assert folder.with_name(f"{folder.name}.owner").exists()
    assert needed()[folder] == ""


def test_what_a_running_flow_has_used_stays_whatever_the_store_says(cached, holding):
    """A finished stage of a flow that goes on stands in no running run, and its record may still be on its way."""
    run = spool.spool_root() / "r1"
    run.mkdir(parents=True)
    (run / "ops.jsonl").write_text("")
    process = holding(run / "run")
    time.sleep(0.01)
    os.utime(cached[2])
    found = {e.path: e.needed for e in pruning.entries([Cache()])}
    assert [found[f] for f in cached] == ["model m v1", "", "a running flow"]
    gone = pruning.prune(pruning.entries([Cache()]), max_age_s=0, max_bytes=None)
    assert [e.path for e in gone] == [cached[1]]
    process.kill()
    process.wait()
    assert {e.path: e.needed for e in pruning.entries([Cache()])}[cached[2]] == ""


def test_an_own_lock_is_in_use_too(cached):
    with exclusive(cached[1]):
        assert pruning.held(cached[1])
    assert not pruning.held(cached[1])


def test_a_damaged_description_is_told_by_its_state_and_stops_nothing(tmp_path):
    for text in ('{"name": "half', "[1]", '{"name": 3, "sha256": 4}'):
        (tmp_path / "data.json").write_text(text)
        lineage._about(str(tmp_path))
    (tmp_path / "data.json").write_text('{"name": "films"}')
    assert lineage._about(str(tmp_path)) == "films"
