"""The cache's size limit removes what was unused longest, never what a model or a run needs."""

import os

import pytest

from core.state import Cache
from tasks import pruning, tidying


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
