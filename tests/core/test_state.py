import multiprocessing
import os
import time

import numpy as np
import pytest

from core.state import (
    Cache,
    StateError,
    atomic_path,
    exclusive,
    load_checkpoint,
    save_checkpoint,
    seal,
    verify,
)


def test_checkpoint_round_trip(tmp_path):
    path = tmp_path / "c.ckpt"
    arrays = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}
    save_checkpoint(path, {"step": 3}, kind="test", schema=2, arrays=arrays)
    payload, found, schema = load_checkpoint(path, kind="test", schema=2)
    assert (payload, schema) == ({"step": 3}, 2)
    np.testing.assert_array_equal(found["x"], arrays["x"])
    assert load_checkpoint(path, kind="test", schema=3)[2] == 2  # the previous version is read


@pytest.mark.parametrize("damage", ["truncate", "flip", "foreign", "empty"])
def test_damaged_checkpoints_are_refused_and_named(tmp_path, damage):
    path = tmp_path / "c.ckpt"
    save_checkpoint(path, {"step": 3}, kind="test", schema=1, arrays={"x": np.zeros(10)})
    data = bytearray(path.read_bytes())
    if damage == "truncate":
        data = data[:-5]
    elif damage == "flip":
        data[-1] ^= 1
    elif damage == "foreign":
        data = bytearray(b"PK\x03\x04 something else")
    else:
        data = bytearray()
    path.write_bytes(data)
    with pytest.raises(StateError, match=r"c\.ckpt"):
        load_checkpoint(path, kind="test", schema=1)


def test_every_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "c.ckpt"
    save_checkpoint(path, {"a": 1}, kind="test", schema=1)
    good = path.read_bytes()
    for position in range(len(good)):
        data = bytearray(good)
        data[position] ^= 1 << (position % 8)
        path.write_bytes(data)
        with pytest.raises(StateError):
            load_checkpoint(path, kind="test", schema=1)


def test_newer_and_foreign_kinds_are_refused(tmp_path):
    path = tmp_path / "c.ckpt"
    save_checkpoint(path, {}, kind="test", schema=2)
    with pytest.raises(StateError, match="schema version 2, this program reads up to 1; update"):
        load_checkpoint(path, kind="test", schema=1)
    with pytest.raises(StateError, match="holds a 'test' checkpoint, expected 'other'"):
        load_checkpoint(path, kind="other", schema=2)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "f"
    path.write_text("old")

    def fail():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_cache_computes_once_and_recomputes_what_is_damaged(tmp_path):
    cache, calls = Cache(tmp_path), []

    def build(folder):
        calls.append(1)
        (folder / "out.txt").write_text("result")
        return {"who": "me"}

    folder = cache.compute("kind", "key", build)
    assert cache.compute("kind", "key", build) == folder
    assert len(calls) == 1
    assert verify(folder)["facts"] == {"who": "me"}
    (folder / "out.txt").write_text("rEsult")
    assert cache.find("kind", "key") is None
    cache.compute("kind", "key", build)
    assert len(calls) == 2


def test_a_killed_build_is_resumed_in_its_part_folder(tmp_path):
    cache = Cache(tmp_path)

    def killed(folder):
        (folder / "half").write_text("1")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.compute("kind", "key", killed)
    assert cache.find("kind", "key") is None
    seen = []
    cache.compute("kind", "key", lambda folder: seen.append((folder / "half").read_text()))
    assert seen == ["1"]


def test_seal_hash_is_of_the_content_not_of_the_facts(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("same")
    assert seal(tmp_path / "a", {"t": 1}) == seal(tmp_path / "b", {"t": 2})
    (tmp_path / "a" / "x").unlink()
    with pytest.raises(StateError, match="missing or damaged"):
        verify(tmp_path / "a")


def _hold(path, seconds):
    with exclusive(path):
        time.sleep(seconds)


def test_a_second_holder_is_told_who_holds_it(tmp_path):
    path = tmp_path / "out"
    context = multiprocessing.get_context("fork")
    holder = context.Process(target=_hold, args=(path, 20))
    holder.start()
    deadline = time.monotonic() + 10
    while not os.path.exists(f"{path}.owner") and time.monotonic() < deadline:
        time.sleep(0.01)
    try:
        with pytest.raises(StateError, match=f"in use by process {holder.pid}"), exclusive(path):
            pass
    finally:
        holder.kill()
        holder.join()
    with exclusive(path, wait_s=5):  # a killed holder does not block
        pass
