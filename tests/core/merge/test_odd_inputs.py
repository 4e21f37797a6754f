"""Odd but real inputs of the engine: what can be merged is, the rest is refused in words that say what to do."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from core.merge.engine import merge
from core.merge.recipe import ModelRef
from core.merge.tensors import SINGLE, open_checkpoint, read_header
from core.state import StateError

BASE = {f"model.layers.{i}.w.weight": torch.randn(4, 4, generator=torch.Generator().manual_seed(i)) for i in range(2)}


def write(folder, values, config=None):
    folder.mkdir(parents=True)
    save_file(values, folder / SINGLE, metadata={"format": "pt", "note": "é" * 20})
    (folder / "config.json").write_text(json.dumps(config or {"vocab_size": 6}))
    return folder


def near(seed, dtype=torch.float32):
    noise = torch.Generator().manual_seed(100 + seed)
    return {n: (v + 0.01 * torch.randn(v.shape, generator=noise)).to(dtype) for n, v in BASE.items()}


def linear(*models, **more):
    return {
        "merge_method": "linear",
        "models": [{"model": str(m), "parameters": {"weight": 0.5}} for m in models],
        **more,
    }


@pytest.fixture
def models(tmp_path):
    return [write(tmp_path / f"m{i}", near(i)) for i in range(2)]


def test_formats_may_be_mixed_where_the_output_is_named(tmp_path):
    kinds = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    mixed = [write(tmp_path / str(kind), near(i, kind)) for i, kind in enumerate(kinds)]
    with pytest.raises(ValueError, match=r"different dtypes .*BF16.*F16.*F32.*F64.*; set dtype or out_dtype"):
        merge(linear(*mixed), tmp_path / "out")
    out = merge(linear(*mixed, out_dtype="float32"), tmp_path / "out")
    assert {t.dtype for t in read_header(out / SINGLE).values()} == {"F32"}


@pytest.mark.parametrize("kernels", ["native", "numpy"])
def test_empty_and_scalar_tensors(tmp_path, monkeypatch, kernels):
    monkeypatch.setenv("TRANSFEROPT_KERNELS", kernels)
    odd = {"z.empty": torch.zeros(0, 3), "z.scalar": torch.tensor(1.5), "z.mask": torch.tensor([True, False])}
    out = merge(linear(*[write(tmp_path / str(i), near(i) | odd) for i in range(2)]), tmp_path / "out")
    found = open_checkpoint(out).tensors
    assert found["z.empty"].shape == (0, 3)
    assert found["z.scalar"].shape == ()
    raw = (out / SINGLE).read_bytes()
    assert np.frombuffer(raw, np.float32, 1, found["z.scalar"].offset)[0] == 1.5


def test_one_folder_under_two_names_is_given_twice(models, tmp_path):
    (tmp_path / "link").symlink_to(models[0])
    for other in (tmp_path / "link", f"{models[0]}/", tmp_path / "m1" / ".." / "m0"):
        with pytest.raises(ValueError, match="are the same folder; give it once"):
            merge(linear(models[0], other), tmp_path / "out")


def test_paths_with_signs_spaces_and_letters(models, tmp_path):
    own = write(tmp_path / "user@host c++ ü" / "mein Modell+1", near(5))
    out = merge(linear(f"{own}/", models[0]), f"{tmp_path / 'aus gabe @+ü'}/")
    assert json.loads((out / "merge.json").read_text())["outputs"]


def test_a_name_is_read_as_a_path_where_there_is_one(tmp_path):
    base, adapter = tmp_path / "c++ @1", tmp_path / "ad+1"
    for text in ("owner/name@main+adapter", "owner/name", "~nobody/name"):
        assert str(ModelRef.model_validate(text)) == text
    assert ModelRef.model_validate("owner/name@main+adapter").revision == "main"
    base.mkdir()
    assert ModelRef.model_validate(str(base)).path == str(base)
    ref = ModelRef.model_validate(f"{base}+{adapter}")
    assert (ref.path, ref.revision, ref.lora) == (str(base), None, str(adapter))


def test_names_that_differ_by_a_prefix_are_explained(models, tmp_path):
    short = write(tmp_path / "short", {n.removeprefix("model."): v for n, v in near(3).items()})
    for pair in ((short, models[0]), (models[0], short)):
        with pytest.raises(ValueError, match=r"names differ by the prefix 'model\.'"):
            merge(linear(*pair), tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: (m / "config.json").write_text('{"a":'), r"config\.json is no JSON .*save the model again"),
        (lambda m: (m / "config.json").write_text("[1]"), r"config\.json holds a list, not a mapping"),
        (
            lambda m: save_file(near(1) | {"q": torch.zeros(2, dtype=torch.complex64)}, m / SINGLE),
            r"m1/model\.safetensors: tensor 'q' has the unknown dtype 'C64'; known: .*; convert it",
        ),
        (
            lambda m: save_file({n: v.to(torch.float8_e4m3fn) for n, v in near(1).items()}, m / SINGLE),
            r"cannot be merged \(.*m0: F32, .*m1: F8_E4M3\); convert the models to one of float64",
        ),
    ],
    ids=["json", "list", "complex", "float8"],
)
def test_what_cannot_be_merged_is_named(models, tmp_path, change, said):
    change(models[1])
    with pytest.raises(ValueError, match=said):
        merge(linear(*models), tmp_path / "out")


def test_an_input_is_never_the_output(models, tmp_path):
    for out in (models[0], tmp_path):
        with pytest.raises(StateError, match="which is to be merged; choose another folder"):
            merge(linear(*models), out, replace=True)
    assert (models[0] / SINGLE).exists()


def test_places_that_cannot_hold_the_output(models, tmp_path):
    with pytest.raises(ValueError, match=r"config\.json is a file"):
        merge(linear(*models), models[0] / "config.json" / "out")
    (tmp_path / "a.part").write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "b.part").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "c").symlink_to(tmp_path / "nowhere")
    for name, said in (("a", "is no folder"), ("b", "is no folder"), ("c", "exists and is not the result")):
        with pytest.raises(StateError, match=said):
            merge(linear(*models), tmp_path / name)
    assert (tmp_path / "a.part").read_text() == "mine"


def test_read_only_models_and_a_limit_on_file_size(models, tmp_path):
    import resource

    for model in models:
        for path in model.iterdir():
            path.chmod(0o444)
        model.chmod(0o555)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    try:
        with pytest.raises(OSError, match=r"File too large .*out\.part/model\.safetensors"):
            merge(linear(*models), tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert open_checkpoint(merge(linear(*models), tmp_path / "out")).tensors.keys() == BASE.keys()
