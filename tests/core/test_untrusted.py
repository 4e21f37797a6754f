"""A pickle that runs code, put where each loader reads: it is refused or never opened, and nothing of it runs."""

import json
import os
import pickle
import shutil
import zipfile

import numpy as np
import pytest
import torch

from core.data.tasks import load_task
from core.merge.engine import merge
from core.merge.masks import open_masks
from core.merge.recipe import load_recipe
from core.merge.relation import RelationGraph
from core.merge.tensors import read_header
from core.models.classifier import TextClassifier
from core.models.load import load_causal, load_encoder, load_masked
from core.nas.oracles import get_oracle
from core.nas.oracles.nb201_official import load_dictionary
from core.nas.source import Source
from core.state import load_checkpoint, verify
from tests.tiny_checkpoints import write_llama, write_recipe
from tests.tiny_experts import base_folder


class Evil:
    """Unpickled, it makes a file."""

    def __reduce__(self):
        return os.system, ("touch owned",)


EVIL = pickle.dumps(Evil())


@pytest.fixture(autouse=True)
def nothing_ran(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "owned").exists(), "the pickle was executed"


def test_the_pickle_would_run(tmp_path):
    pickle.loads(EVIL)
    (tmp_path / "owned").unlink()


@pytest.mark.parametrize(
    ("load", "name"),
    [
        (lambda p: load_checkpoint(p, kind="search", schema=1), "search.ckpt"),
        (Source.load, "source.ckpt"),
        (RelationGraph.load, "graph.ckpt"),
        (read_header, "model.safetensors"),
        (load_recipe, "recipe.yaml"),
        (load_dictionary, "table.pth"),
        (lambda p: get_oracle("nb201", file=str(p), dataset="cifar10"), "nb201.pkl"),
        (lambda p: get_oracle("nasbench-graph", file=str(p), dataset="cora"), "cora.bin"),
        (lambda p: load_causal(p), "model.gguf"),
        (lambda p: load_task(str(p)), "task.yaml"),
    ],
)
def test_a_file_that_is_a_pickle(tmp_path, load, name):
    path = tmp_path / name
    path.write_bytes(EVIL)
    with pytest.raises((ValueError, TypeError, OSError)):
        load(path)


@pytest.mark.parametrize("load", [load_encoder, load_causal, load_masked])
def test_weights_that_are_a_pickle(tmp_path, load):
    """What transformers may still read as a .bin file goes through torch.load(weights_only=True)."""
    folder = base_folder(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save({"embeddings.word_embeddings.weight": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises((ValueError, OSError, RuntimeError, pickle.UnpicklingError)):
        load(folder)


def test_code_that_comes_with_a_model_is_not_run(tmp_path):
    folder = base_folder(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModel": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("import os\nos.system('touch owned')\n")
    with pytest.raises((ValueError, OSError), match=r"trust_remote_code|model type"):
        load_encoder(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin"])
def test_a_merge_reads_no_pickled_weights(tmp_path, name):
    good, bad = write_llama(tmp_path / "good", 0), write_llama(tmp_path / "bad", 1)
    (bad / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Evil()}, bad / name)
    recipe = write_recipe(tmp_path / "r.yml", "linear", [good, bad], per_model=[{"weight": 0.5}] * 2)
    with pytest.raises((ValueError, OSError)):
        merge(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_arrays_of_objects_are_not_unpickled(tmp_path):
    """Every array file of ours is read with numpy's default, which refuses objects."""
    np.save(tmp_path / "targets.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "answers.npz", a=np.array([Evil()], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        np.load(tmp_path / "targets.npy")
    with np.load(tmp_path / "answers.npz") as stored, pytest.raises(ValueError, match="allow_pickle"):
        _ = stored["a"]


def test_folders_of_ours_with_pickles_in_them(tmp_path):
    for name in ("artifact.json", "classifier.json", "masks.json"):
        (tmp_path / name).write_bytes(EVIL)
    for load in (verify, TextClassifier, open_masks):
        with pytest.raises((ValueError, OSError)):
            load(tmp_path)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_data_files_that_are_pickles(tmp_path, suffix):
    (tmp_path / f"rows{suffix}").write_bytes(EVIL)
    (tmp_path / "t.yaml").write_text(
        f"version: 1\nkind: single\nsource: {{path: rows{suffix}}}\nlabels: [bad, good]\nmetric: accuracy\n"
        "fields: {text: text, label: label}\nsplits: {validation: 0.3, test: 0.3}\n"
    )
    with pytest.raises(ValueError, match="rows"):
        load_task(str(tmp_path / "t.yaml")).splits()


def test_no_module_unpickles_or_evaluates_without_its_guard():
    """A new loader must come through here: each of these calls is named with the reason why it is safe."""
    import ast
    from pathlib import Path

    root = Path(__file__).resolve().parents[2]
    known = {"core/data/pickles.py", "core/nas/oracles/nb201_official.py"}  # restricted unpickler; weights_only=True
    found = set()
    for path in [p for part in ("core", "tasks", "flows") for p in (root / part).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            text = ast.unparse(node.func)
            named = {k.arg: ast.unparse(k.value) for k in node.keywords}
            unsafe = text in ("pickle.load", "pickle.loads", "cloudpickle.loads", "joblib.load", "torch.load", "eval")
            unsafe |= text in ("exec", "yaml.unsafe_load", "yaml.full_load", "tarfile.open", "shutil.unpack_archive")
            unsafe |= text == "yaml.load" and "Loader" not in named
            unsafe |= named.get("allow_pickle") == "True" or named.get("trust_remote_code") == "True"
            if unsafe:
                found.add(path.relative_to(root).as_posix())
                assert text != "torch.load" or named["weights_only"] == "True", path
    assert found <= known


def test_a_decompression_bomb_is_stopped(tmp_path):
    from core.data.archives import ArchiveError, extract

    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("zeros", bytes(50 << 20))
    assert (tmp_path / "bomb.zip").stat().st_size < 1 << 20
    with pytest.raises(ArchiveError, match="more than 1000000 bytes"):
        extract(tmp_path / "bomb.zip", tmp_path / "out", max_bytes=1_000_000)
    left = sum(p.stat().st_size for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert left <= 2 << 20
    shutil.rmtree(tmp_path / "out")
