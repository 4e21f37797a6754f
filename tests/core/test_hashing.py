import numpy as np
import pytest

from core.config import Config
from core.hashing import code_version, content_key, sha256_file, sha256_folder


class Settings(Config):
    a: int = 1


def test_content_key_ignores_order_of_keys_and_sees_values():
    assert content_key({"a": 1, "b": [1, 2]}) == content_key({"b": [1, 2], "a": 1})
    assert content_key({"a": 1}) != content_key({"a": 2})
    assert content_key(Settings()) == content_key({"a": 1})
    assert content_key(np.arange(3)) == content_key([0, 1, 2])
    with pytest.raises(TypeError, match="no stable content key"):
        content_key(object())


def test_folder_hash_depends_on_names_and_bytes(tmp_path):
    (tmp_path / "a").write_text("x")
    first = sha256_folder(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    second = sha256_folder(tmp_path)
    assert first != second
    assert sha256_file(tmp_path / "b") == "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"


def test_code_version_follows_imports(tmp_path, monkeypatch):
    assert code_version(["core.state"]) != code_version(["core.registry"])
    assert code_version(["core.state"]) == code_version(["core.state", "core.hashing"])  # imported by it anyway
    with pytest.raises(ValueError, match="module of this project"):
        code_version(["numpy"])
