"""What an interrupted merge left is read before it counts: damaged shards, torn and foreign journals, changed files."""

import hashlib
import json

import pytest

from core.merge import engine
from core.merge.engine import merge
from core.merge.tensors import read_header
from core.state import StateError
from tests.tiny_checkpoints import raw_tensors, write_llama, write_recipe

STOP_AFTER = 14


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [write_llama(folder / f"m{i}", i) for i in range(3)]


@pytest.fixture(scope="module")
def recipe(models, tmp_path_factory):
    return ties(tmp_path_factory.mktemp("recipe") / "r.yml", models)


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    return raw_tensors(merge(recipe, tmp_path_factory.mktemp("whole") / "out"))


def ties(path, models, **more):
    parameters = {"weight": 0.5, "density": 0.5}
    return write_recipe(path, "ties", models[1:], models[0], parameters, out_shard_size=12000, **more)


@pytest.fixture
def stopped(recipe, tmp_path, monkeypatch):
    """An output whose merge was interrupted, and the tensors it had finished."""
    done, real = [], engine.run_job

    def counted(plan, job, shards):
        if len(done) >= STOP_AFTER:
            raise KeyboardInterrupt
        real(plan, job, shards)
        done.append(job.name)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "run_job", counted)
        with pytest.raises(KeyboardInterrupt):
            merge(recipe, tmp_path / "out", threads=2)
    return tmp_path / "out", done


@pytest.fixture
def again(monkeypatch):
    """Names of the tensors that are computed from here on."""
    names, real = [], engine.run_job
    monkeypatch.setattr(engine, "run_job", lambda *a: (names.append(a[1].name), real(*a)))
    return names


def part(out):
    return out.with_name("out.part")


def journal(out):
    return out.with_name("out.part.journal")


def shard(out):
    return part(out) / "model-00001-of-00002.safetensors"


def test_finished_tensors_are_journalled_before_an_interrupt_ends_the_run(stopped, recipe, again, whole, capsys):
    out, done = stopped
    assert raw_tensors(merge(recipe, out)) == whole
    assert not set(done) & set(again)
    assert capsys.readouterr().out == ""


def test_a_truncated_shard_is_merged_again(stopped, recipe, again, whole, capsys):
    out, done = stopped
    data = shard(out).read_bytes()
    shard(out).write_bytes(data[: len(data) // 2])
    assert raw_tensors(merge(recipe, out)) == whole
    lost = set(done) & set(again)
    assert 0 < len(lost) < len(done)
    said = capsys.readouterr().out
    assert f"{len(lost)} of {len(done)} finished tensors" in said
    assert said.count("\n") == 1


def test_flipped_bytes_cost_their_tensor_only(stopped, recipe, again, whole, capsys):
    out, done = stopped
    name, info = next((n, i) for n, i in read_header(shard(out)).items() if n in done)
    with open(shard(out), "r+b") as handle:
        handle.seek(info.offset + info.bytes - 3)
        byte = handle.read(1)[0]
        handle.seek(-1, 1)
        handle.write(bytes([byte ^ 16]))
    assert raw_tensors(merge(recipe, out)) == whole
    assert set(done) & set(again) == {name}
    assert name in capsys.readouterr().out


def test_a_missing_shard_is_merged_again(stopped, recipe, whole):
    out, _ = stopped
    shard(out).unlink()
    assert raw_tensors(merge(recipe, out)) == whole


def test_a_missing_folder_is_merged_again(stopped, recipe, whole):
    out, _ = stopped
    for path in part(out).iterdir():
        path.unlink()
    part(out).rmdir()
    assert raw_tensors(merge(recipe, out)) == whole


@pytest.mark.parametrize(
    "tail",
    [b'{"done": "model.norm.weight", "xxh3_1', b'{"done": "model.norm.weight"}\n', b"\0" * 40, b"\xff\n7\nnull\n"],
    ids=["torn", "without-checksum", "zeros", "noise"],
)
def test_lines_that_vouch_for_nothing_count_for_nothing(stopped, recipe, again, whole, tail):
    out, done = stopped
    with open(journal(out), "ab") as handle:
        handle.write(tail)
    assert raw_tensors(merge(recipe, out)) == whole
    assert not set(done) & set(again)
    assert len(done) + len(again) == len(whole)


def test_a_line_after_a_torn_one_is_whole(stopped, recipe, monkeypatch):
    out, _ = stopped
    with open(journal(out), "ab") as handle:
        handle.write(b'{"done": "mod')
    monkeypatch.setattr(engine, "_finish", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        merge(recipe, out)
    lines = [line for line in journal(out).read_bytes().split(b"\n") if line]
    assert [line for line in lines if not line.endswith(b"}")] == [b'{"done": "mod']


@pytest.mark.parametrize("kind", ["another-recipe", "older-program", "no-journal", "empty-journal"])
def test_what_is_not_of_this_merge_is_replaced_and_said(stopped, recipe, models, whole, tmp_path, capsys, kind):
    out, _ = stopped
    lines = journal(out).read_text().splitlines()
    if kind == "another-recipe":
        recipe, whole = ties(tmp_path / "r2.yml", models, seed=3, dtype="float32"), None
    elif kind == "older-program":
        names = [json.loads(line)["done"] for line in lines[1:]]
        old = [{"key": "0" * 64, "boot": "b"}, *[{"done": n} for n in names], {"synced": names}]
        journal(out).write_text("".join(json.dumps(entry) + "\n" for entry in old))
    elif kind == "no-journal":
        journal(out).unlink()
    else:
        journal(out).write_text("")
    (part(out) / "model-00001-of-00009.safetensors").write_bytes(b"left by another layout")
    merged = merge(recipe, out)
    assert "starting anew" in capsys.readouterr().out
    assert whole is None or raw_tensors(merged) == whole
    assert not (merged / "model-00001-of-00009.safetensors").exists()


def test_unfinished_companions_do_not_join_the_result(stopped, recipe, whole):
    out, _ = stopped
    (part(out) / ".README.md.x7").write_text("half a card")
    (part(out) / "1_Pooling").mkdir()
    (part(out) / "1_Pooling" / "config.json").write_text("{")
    merged = merge(recipe, out)
    assert raw_tensors(merged) == whole
    assert not {".README.md.x7", "1_Pooling"} & {p.name for p in merged.iterdir()}


def test_a_damaged_share_is_found_by_the_run_that_joins(recipe, tmp_path, again, whole):
    out = tmp_path / "out"
    merge(recipe, out, part=(1, 2))
    merge(recipe, out, part=(2, 2))
    shard(out).write_bytes(shard(out).read_bytes()[:-100])
    again.clear()
    assert raw_tensors(merge(recipe, out)) == whole
    assert 0 < len(again) < len(whole)


def test_the_manifest_of_a_resumed_merge_names_the_right_hashes(stopped, recipe):
    out, _ = stopped
    merged = merge(recipe, out)
    outputs = json.loads((merged / "merge.json").read_text())["outputs"]
    for name, digest in outputs.items():
        assert digest == hashlib.sha256((merged / name).read_bytes()).hexdigest()


def test_a_changed_result_is_refused_or_replaced(recipe, tmp_path, whole, capsys):
    out = merge(recipe, tmp_path / "out")
    path = out / "model-00001-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\x80\x3f\x80\x3f")
    with pytest.raises(StateError, match=r"00001-of-00002\.safetensors is not as the merge wrote it.*remove"):
        merge(recipe, out)
    assert raw_tensors(merge(recipe, out, replace=True)) == whole
    assert "merging again" in capsys.readouterr().out
    path.unlink()
    with pytest.raises(StateError, match="is missing"):
        merge(recipe, out)
    (out / "merge.json").write_text('["key"]')
    with pytest.raises(StateError, match="is damaged"):
        merge(recipe, out)


def test_a_folder_with_brackets_is_resumed_too(recipe, tmp_path, again, whole):
    out = tmp_path / "out [v2] ü"
    merge(recipe, out, part=(1, 2))
    first = list(again)
    again.clear()
    assert raw_tensors(merge(recipe, out)) == whole
    assert not set(first) & set(again)
    assert [p.name for p in tmp_path.iterdir()] == [out.name]
