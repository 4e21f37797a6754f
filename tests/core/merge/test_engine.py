"""The engine end to end: kill and resume, shares, tied and integer tensors, manifest, files that open elsewhere."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from core.merge import engine
from core.merge.engine import merge
from core.merge.tensors import read_header
from core.state import StateError
from tests.tiny_checkpoints import (
    llama_config,
    llama_values,
    raw_tensors,
    write_checkpoint,
    write_llama,
    write_recipe,
    write_tokenizer,
)

WEIGHTS = [{"weight": 0.6, "density": 0.5}, {"weight": 0.3, "density": 0.7}]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [write_llama(folder / f"m{i}", i) for i in range(3)]


def dare(path, models, **more):
    return write_recipe(path, "dare_ties", models[1:], models[0], per_model=WEIGHTS, **more)


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def start(recipe, out, *flags):
    command = [sys.executable, "-c", "from flows.cli import main; main()", "merge", str(recipe), str(out), *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize("delay", [0.0, 0.15, 0.4])
def test_killed_and_run_again_gives_the_same_bytes(tmp_path, delay):
    big = [write_llama(tmp_path / f"m{i}", i, layers=40, vocabulary=3000) for i in range(3)]
    recipe = dare(tmp_path / "r.yml", big)
    whole = merge(recipe, tmp_path / "whole")
    out = tmp_path / "out"
    process = start(recipe, out, "--threads", "1")
    journal = tmp_path / "out.part.journal"
    while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"done") > 2):
        time.sleep(0.002)
    time.sleep(delay * 0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists() or (out / "merge.json").exists()
    merge(recipe, out)
    assert files(out) == files(whole)
    assert sorted(p.name for p in tmp_path.glob("out*")) == ["out"]


def test_an_interrupted_merge_does_not_repeat_finished_tensors(models, tmp_path, monkeypatch):
    recipe, done = dare(tmp_path / "r.yml", models), []
    real = engine.run_job

    def counted(plan, job, shards):
        if len(done) == 12:
            raise KeyboardInterrupt
        done.append(job.name)
        real(plan, job, shards)

    monkeypatch.setattr(engine, "run_job", counted)
    with pytest.raises(KeyboardInterrupt):
        merge(recipe, tmp_path / "out", threads=1)
    assert not (tmp_path / "out").exists()
    first, done[:] = list(done), []
    monkeypatch.setattr(engine, "run_job", lambda *a: (done.append(a[1].name), real(*a)))
    merge(recipe, tmp_path / "out", threads=1)
    assert not set(first) & set(done)
    assert len(first) + len(done) == 30


def test_what_a_power_cut_took_is_merged_again(models, tmp_path):
    recipe = dare(tmp_path / "r.yml", models)
    merge(recipe, tmp_path / "part", part=(1, 2))
    merge(recipe, tmp_path / "whole")
    shard = tmp_path / "part.part" / "model.safetensors"
    shard.write_bytes(bytes(shard.stat().st_size))  # the machine lost everything that was not on the disk
    assert raw_tensors(merge(recipe, tmp_path / "part")) == raw_tensors(tmp_path / "whole")


def test_changed_inputs_or_recipe_start_anew(models, tmp_path):
    own = [write_llama(tmp_path / f"m{i}", i) for i in range(3)]
    merge(dare(tmp_path / "r.yml", own), tmp_path / "out", part=(1, 2))
    merge(dare(tmp_path / "r2.yml", own, seed=5), tmp_path / "out")
    assert raw_tensors(tmp_path / "out") == raw_tensors(merge(dare(tmp_path / "r3.yml", own, seed=5), tmp_path / "b"))


def test_two_processes_share_the_work_and_a_plain_run_joins(models, tmp_path):
    recipe = dare(tmp_path / "r.yml", models, out_shard_size=4000)
    whole = merge(recipe, tmp_path / "whole")
    workers = [start(recipe, tmp_path / "out", "--part", f"{i}/2") for i in (1, 2)]
    for w in workers:
        text, _ = w.communicate(timeout=120)
        assert w.returncode == 0, text
    assert not (tmp_path / "out").exists()
    assert len(list(tmp_path.glob("out.part.journal.*"))) == 2
    merge(recipe, tmp_path / "out")
    assert files(tmp_path / "out") == files(whole)


def test_only_one_process_writes(models, tmp_path):
    recipe = dare(tmp_path / "r.yml", models)
    import fcntl

    with open(tmp_path / "out.part.journal", "ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StateError, match="written by another process"):
            merge(recipe, tmp_path / "out")


def test_out_is_kept_when_it_is_something_else(models, tmp_path):
    recipe = dare(tmp_path / "r.yml", models)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    with pytest.raises(StateError, match="is not the result"):
        merge(recipe, tmp_path / "out")
    done = merge(recipe, tmp_path / "done")
    before = (done / "merge.json").stat().st_mtime_ns
    assert merge(recipe, done) == done
    assert (done / "merge.json").stat().st_mtime_ns == before


def test_manifest_names_every_input_and_output(models, tmp_path):
    out = merge(dare(tmp_path / "r.yml", models, seed=9), tmp_path / "out")
    manifest = json.loads((out / "merge.json").read_text())
    assert manifest["seed"] == 9
    assert set(manifest["inputs"]) == {str(m) for m in models}
    for model, hashes in manifest["inputs"].items():
        assert hashes == {p.name: sha(p) for p in (Path(model) / "model.safetensors", Path(model) / "config.json")}
    assert manifest["outputs"] == {p.name: sha(p) for p in out.iterdir() if p.name != "merge.json"}
    assert "dare_ties" in (out / "README.md").read_text()


def sha(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("shard", ["1B", 5000])
def test_transformers_opens_the_result(models, tmp_path, shard):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = merge(dare(tmp_path / "r.yml", models, out_shard_size=shard, dtype="float32"), tmp_path / "out")
    assert (out / "model.safetensors.index.json").exists() == (shard == 5000)
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(out)
    with torch.no_grad():
        assert torch.isfinite(
            model(**tokenizer("w5 w7", return_tensors="pt", return_token_type_ids=False)).logits
        ).all()


def test_tied_embeddings_are_written_once(models, tmp_path):
    tied = [write_llama(tmp_path / f"t{i}", i, tied=True) for i in range(3)]
    out = merge(dare(tmp_path / "r.yml", tied), tmp_path / "out")
    assert "lm_head.weight" not in raw_tensors(out)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is True
    out = merge(dare(tmp_path / "r2.yml", [tied[0], *models[1:]]), tmp_path / "mixed")
    assert "lm_head.weight" in raw_tensors(out)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False


def test_integer_tensors_must_agree(tmp_path):
    def write(i, numbers):
        values = llama_values(i) | {"model.table": np.array(numbers, np.int64)}
        return write_checkpoint(tmp_path / f"{i}-{sum(numbers)}", values, config=llama_config())

    same = [write(i, [1, 2, 3]) for i in range(3)]
    out = merge(dare(tmp_path / "r.yml", same), tmp_path / "out")
    assert np.frombuffer(raw_tensors(out)["model.table"][2], np.int64).tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match=r"integer tensor 'model\.table' differs"):
        merge(dare(tmp_path / "r2.yml", [*same[:2], write(2, [1, 2, 4])]), tmp_path / "out2")


def test_overflow_stops_with_the_tensors_name(models, tmp_path):
    recipe = write_recipe(
        tmp_path / "r.yml", "task_arithmetic", models[1:], models[0], {"weight": 1e9}, dtype="float16"
    )
    with pytest.raises(ValueError, match="overflow"):
        merge(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16", "float64"])
def test_output_formats(models, tmp_path, dtype):
    out = merge(dare(tmp_path / "r.yml", models, out_dtype=dtype), tmp_path / "out")
    kinds = {i.dtype for i in read_header(out / "model.safetensors").values()}
    assert kinds == {{"float16": "F16", "float32": "F32", "bfloat16": "BF16", "float64": "F64"}[dtype]}
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == dtype


def test_passthrough_copies_every_bit(models, tmp_path):
    out = merge(write_recipe(tmp_path / "r.yml", "passthrough", models[:1]), tmp_path / "out")
    assert raw_tensors(out) == raw_tensors(models[0])


def test_memory_stays_small_for_a_tensor_larger_than_it(tmp_path):
    """A 64 MB tensor in each of four models; the process may grow by less than one of them."""
    rng = np.random.default_rng(0)
    values = {"w": rng.standard_normal((4096, 8192)).astype(np.float64) * 0.02}
    folders = []
    for i in range(4):
        folders.append(write_checkpoint(tmp_path / str(i), {"w": values["w"] + i * 1e-3}))
    recipe = write_recipe(tmp_path / "r.yml", "ties", folders[1:], folders[0], {"weight": 1.0, "density": 0.5})
    code = (
        "import resource, sys; from core.merge.engine import merge; before = resource.getrusage(resource.RUSAGE_SELF)"
        ".ru_maxrss; merge(sys.argv[1], sys.argv[2]); "
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(recipe), str(tmp_path / "out")], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 64


def test_template_and_shape_of_the_tokenizer(models, tmp_path):
    recipe = write_recipe(tmp_path / "r.yml", "passthrough", models[:1], chat_template="chatml")
    out = merge(recipe, tmp_path / "out")
    assert "<|im_start|>" in (out / "chat_template.jinja").read_text()


def test_vocabularies_are_matched_by_token(tmp_path):
    words = ["<unk>", "<s>", "</s>", "red", "green", "blue"]
    orders = [words, [*words[:3], "blue", "red", "green", "pink"]]
    folders = []
    for i, order in enumerate(orders):
        values = llama_values(i, vocabulary=len(order))
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            values[name] = np.array([[float(words.index(w) if w in words else 9)] * 16 for w in order])
        config = llama_config(vocabulary=len(order))
        folders.append(write_checkpoint(tmp_path / str(i), values, config=config))
        write_tokenizer(folders[-1], order)
    weights = [{"weight": 1.0}, {"weight": 1.0}]
    recipe = write_recipe(tmp_path / "r.yml", "linear", folders, per_model=weights, tokenizer_source="union")
    out = merge(recipe, tmp_path / "out")
    tensor = raw_tensors(out)["model.embed_tokens.weight"]
    assert tensor[1] == (7, 16)
    values = (np.frombuffer(tensor[2], np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(7, 16)
    vocab = json.loads((out / "tokenizer.json").read_text())
    place = {**vocab["model"]["vocab"], **{t["content"]: t["id"] for t in vocab["added_tokens"]}}
    expected = {w: float(i) for i, w in enumerate(words)} | {"pink": 9.0}
    assert {w: float(values[r, 0]) for w, r in place.items()} == expected
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 7
    padded = write_recipe(
        tmp_path / "p.yml", "linear", folders, per_model=weights, tokenizer={"source": "base", "pad_to_multiple_of": 4}
    )
    assert raw_tensors(merge(padded, tmp_path / "padded"))["lm_head.weight"][1] == (8, 16)


def test_a_finished_merge_leaves_nothing_behind(models, tmp_path):
    merge(dare(tmp_path / "r.yml", models), tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["out", "r.yml"]
