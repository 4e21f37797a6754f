"""Third-party code is part of content keys: another version of it gives other results."""

import importlib
import sys
from importlib.metadata import EntryPoint

import pytest

from core import plugins
from core.merge.provenance import engine_digest


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "their_methods"
    (folder / "deep").mkdir(parents=True)
    for name in ("__init__.py", "deep/__init__.py", "deep/losses.py"):
        (folder / name).write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    points = [EntryPoint("theirs", "their_methods.deep.losses", "transferopt")]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points)
    yield folder
    for cached in (plugins.plugin_digest, engine_digest):
        cached.cache_clear()
    sys.modules.pop("their_methods", None)


def digests():
    for cached in (plugins.plugin_digest, engine_digest):
        cached.cache_clear()
    return plugins.plugin_digest(), engine_digest()


def test_other_code_is_another_digest_for_stages_and_engine(package):
    before = digests()
    (package / "unrelated.txt").write_text("x")
    assert digests() == before
    (package / "deep" / "losses.py").write_text("FACTOR = 2\n")
    after = digests()
    assert all(a != b for a, b in zip(before, after, strict=True))
    assert "their_methods" not in sys.modules  # read, not imported


def test_without_packages_nothing_is_added(package, monkeypatch):
    with_package = digests()
    monkeypatch.setattr(plugins, "entry_points", lambda group: [])
    assert digests()[0] == ""
    assert digests()[1] != with_package[1]


def test_a_methods_version_is_its_own_code_ours_or_theirs(package, monkeypatch):
    ours, theirs = "core.merge.operators.linear", "their_methods.deep.losses"
    monkeypatch.setattr(plugins, "entry_points", lambda group: [])
    assert plugins.method_version([ours]) != plugins.method_version(["core.merge.operators.fisher"])
    importlib.import_module(theirs)  # of no entry point: a file of the user's
    before = plugins.method_version([ours, theirs])
    assert before == plugins.method_version([theirs, ours]) != plugins.method_version([ours])
    (package / "deep" / "losses.py").write_text("FACTOR = 2\n")
    assert plugins.method_version([ours, theirs]) != before
    assert plugins.method_version([theirs]) != plugins.method_version([])
