"""A stage's merge after a kill: what an attempt left is taken over only where it is as it was written."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from core.merge import engine
from core.merge.engine import merge


@pytest.fixture
def recipe(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("base", "one", "two"):
        (tmp_path / name).mkdir()
        weights = {f"layer.{i}": rng.normal(size=(8, 8)).astype(np.float32) for i in range(6)}
        save_file(weights, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
        (tmp_path / name / "config.json").write_text("{}")
    return {
        "merge_method": "task_arithmetic",
        "base_model": str(tmp_path / "base"),
        "models": [{"model": str(tmp_path / n), "parameters": {"weight": 0.5}} for n in ("one", "two")],
        "dtype": "float32",
    }


def test_a_damaged_unfinished_merge_changes_nothing(recipe, tmp_path):
    whole = merge(recipe, tmp_path / "whole") / "model.safetensors"
    model = tmp_path / "stage" / "model"
    part = merge(recipe, model, part=(1, 2)) / "model.safetensors"
    part.write_bytes(part.read_bytes()[:-300])
    merge(recipe, model, replace=True)
    assert (model / "model.safetensors").read_bytes() == whole.read_bytes()
    assert [p.name for p in model.parent.iterdir()] == ["model"]


def test_a_finished_merge_of_an_unfinished_stage_is_made_again(recipe, tmp_path):
    model = tmp_path / "stage" / "model"
    file = merge(recipe, model) / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-4] + b"\x00\x00\x80\x3f")
    merge(recipe, model, replace=True)
    assert file.read_bytes() == whole


def test_a_stage_goes_on_where_a_killed_attempt_stood(recipe, tmp_path, monkeypatch):
    whole = merge(recipe, tmp_path / "whole") / "model.safetensors"
    model, names, real = tmp_path / "stage" / "model", [], engine.run_job
    monkeypatch.setattr(engine, "run_job", lambda *a: (names.append(a[1].name), real(*a)))
    merge(recipe, model, part=(1, 2))
    first = list(names)
    names.clear()
    merge(recipe, model, replace=True)
    assert (model / "model.safetensors").read_bytes() == whole.read_bytes()
    assert len(names) == 6 - len(first) > 0
    names.clear()
    merge(recipe, model, replace=True)
    assert names == []
