"""The cache's size limit removes what was unused longest, never what a model or a run needs."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, RESOURCE_DOES_NOT_EXIST
from mlflow.store.entities import PagedList

from core.state import Cache, exclusive
from tasks import lineage, long_tags, mlflow_store, pruning, spool, tidying


@pytest.fixture
def cached(home, monkeypatch):
    """Three folders of 1 MB, used one after the other; the oldest is needed by a model."""

    def build(folder):
        (folder / "x").write_bytes(bytes(10**6))

    folders = [Cache().compute("merge", f"k{i}", build) for i in range(3)]
    for age, folder in zip((300, 200, 100), folders, strict=True):
        os.utime(folder, (folder.stat().st_mtime - age,) * 2)
    monkeypatch.setattr(pruning, "protected", lambda: {folders[0].resolve(): "model m v1"})
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


class Registry:
    """An MLflow client: models of two pages, a version whose run was removed for good, one whose run read a folder."""

    def __init__(self, read: Path):
        self.inputs = long_tags.split("inputs", [{"name": "merge", "sha256": "", "run": "", "path": str(read)}])

    def search_registered_models(self, page_token=None):
        first, second = SimpleNamespace(name="a"), SimpleNamespace(name="b")
        return PagedList([second], None) if page_token else PagedList([first], "more")

    def search_model_versions(self, query, page_token=None):
        versions = {"name='a'": [("1", "removed"), ("2", "")], "name='b'": [("1", "there")]}[query]
        return PagedList([SimpleNamespace(version=v, run_id=run) for v, run in versions], None)

    def get_run(self, run):
        if run == "away":
            raise MlflowException("no connection", INTERNAL_ERROR)
        if run != "there":
            raise MlflowException(f"Run with id={run} not found", RESOURCE_DOES_NOT_EXIST)
        return SimpleNamespace(data=SimpleNamespace(tags=self.inputs))

    def search_experiments(self):
        return PagedList([], None)

    def search_runs(self, *_, **__):
        return PagedList([], None)


@pytest.fixture
def two_paths(home, tmp_path, monkeypatch):
    """A cached folder; the home is now named by a link, and the registry knows the folder by its other path."""
    folder = Cache().compute("merge", "k", lambda out: (out / "x").write_text("1") and None)
    (tmp_path / "link").symlink_to(home)
    monkeypatch.setenv("TRANSFEROPT_HOME", str(tmp_path / "link"))
    monkeypatch.setattr(mlflow_store, "client", lambda: Registry(folder))
    return folder


def test_what_any_model_needs_stays_under_each_path_of_the_home(two_paths):
    """Models of further pages count, and a version whose run is gone hides nothing."""
    (entry,) = pruning.entries([Cache()])
    assert entry.path != two_paths
    assert entry.needed == "model b v1"


def test_nothing_goes_while_nobody_knows_what_a_model_needs(two_paths, monkeypatch, caplog):
    away = PagedList([SimpleNamespace(version="1", run_id="away")], None)
    monkeypatch.setattr(Registry, "search_model_versions", lambda *_, **__: away)
    monkeypatch.setenv(tidying.LIMIT, "0")
    tidying.keep_within_limit()
    assert two_paths.exists()
    assert "the cache was not tidied: no connection" in caplog.text


def test_files_stay_until_mlflow_has_them(two_paths, monkeypatch):
    monkeypatch.setattr(Registry, "search_registered_models", lambda *_, **__: PagedList([], None))
    run = spool.spool_root() / "r1"
    run.mkdir(parents=True)
    line = json.dumps({"op": "artifact", "run": "r1", "path": str(two_paths / "x"), "at": ""}) + "\n"
    (run / "ops.jsonl").write_text(line)
    (entry,) = pruning.entries([Cache()])
    assert entry.needed == "records of run r1, which wait for MLflow"
    (run / "delivered.json").write_text(str(len(line)))
    assert [e.needed for e in pruning.entries([Cache()])] == [""]
    (run / "refused.jsonl").write_text(json.dumps({"at": len(line), "error": "e", "record": json.loads(line)}) + "\n")
    assert [e.needed for e in pruning.entries([Cache()])] == [entry.needed]


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
