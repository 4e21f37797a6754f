"""Pickles of builtins load; anything that names code is refused before it runs."""

import collections
import os
import pickle

import pytest

from core.data import pickles


def test_builtin_containers_and_numbers_load(tmp_path):
    value = {"a": [1, 2.5, None, True], "b": (frozenset({1}), {"x"}, b"bytes", bytearray(b"y"), 1j)}
    path = tmp_path / "v.pkl"
    path.write_bytes(pickle.dumps(value))
    assert pickles.load(path) == value
    assert pickles.load(pickle.dumps(value, protocol=3)) == value
    with path.open("rb") as stream:
        assert pickles.load(stream) == value


class Evil:
    def __reduce__(self):
        return os.system, ("touch owned",)


@pytest.mark.parametrize("value", [Evil(), collections.OrderedDict(a=1), eval, open])
def test_code_and_classes_are_refused(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps(value))
    with pytest.raises(ValueError, match=r"evil\.pkl.*asks for"):
        pickles.load(path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("data", [b"", b"\x80", b"not a pickle", pickle.dumps([1, 2, 3])[:-3]])
def test_torn_pickles_are_refused(data):
    with pytest.raises(ValueError, match="only builtin"):
        pickles.load(data)
