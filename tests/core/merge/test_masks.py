"""Masks on disk against the formulas, and the task models they give back."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from core.merge.masks import open_masks, write_masks, write_task_model

NAMES = {"embed.weight": (6, 5), "layers.0.w.weight": (7, 5), "layers.1.w.weight": (7, 5), "norm.weight": (3,)}


@pytest.fixture
def models(tmp_path, monkeypatch):
    monkeypatch.setattr("core.merge.operators.BLOCK", 16)  # several blocks in these small tensors
    rng = np.random.default_rng(0)
    base = {n: rng.standard_normal(s).astype(np.float32) for n, s in NAMES.items()}
    states = {"base": base}
    for e in range(3):
        states[f"e{e}"] = {n: v + 0.1 * rng.standard_normal(v.shape).astype(np.float32) for n, v in base.items()}
    for name, state in states.items():
        (tmp_path / name).mkdir()
        save_file(state, tmp_path / name / "model.safetensors")
    (tmp_path / "base" / "config.json").write_text("{}")
    return tmp_path, states


def recipe(folder, method, **parameters):
    models = [{"model": str(folder / f"e{e}")} for e in range(3)]
    return {"merge_method": method, "base_model": str(folder / "base"), "models": models, "parameters": parameters}


def deltas(states, name):
    return [states[f"e{e}"][name].astype(np.float64) - states["base"][name] for e in range(3)]


def test_emr_masks_and_task_models_follow_the_paper(models):
    folder, states = models
    masks = write_masks(recipe(folder, "emr"), folder / "masks")
    sums = np.zeros((2, 3))
    unified = {}
    for name in NAMES:
        d = np.stack(deltas(states, name))
        sign = np.where(d.sum(0) > 0, 1, -1)
        unified[name] = sign * np.where(d * sign > 0, np.abs(d), 0).max(0)
        sums[0] += np.abs(d).reshape(3, -1).sum(1)
        sums[1] += np.where(d * unified[name] > 0, np.abs(unified[name]), 0).reshape(3, -1).sum(1)
    assert masks.rescale == pytest.approx(sums[0] / sums[1])
    for task in range(3):
        out = write_task_model(masks, folder / "base", task, folder / f"task{task}")
        got = load_file(out / "model.safetensors")
        for name in NAMES:
            d = deltas(states, name)[task]
            expected = states["base"][name] + masks.rescale[task] * np.where(d * unified[name] > 0, unified[name], 0)
            assert np.allclose(got[name], expected, atol=1e-6), name
        assert (out / "config.json").exists()


def test_tall_masks_bring_a_task_back_closer_than_the_sum(models):
    folder, states = models
    masks = write_masks(recipe(folder, "consensus", tall_lambda=0.5), folder / "masks")
    assert masks.rescale == (1.0, 1.0, 1.0)
    got = load_file(write_task_model(masks, folder / "base", 1, folder / "task") / "model.safetensors")
    masked = summed = 0.0
    for name in NAMES:
        d = deltas(states, name)
        mask = np.abs(d[1]) > 0.5 * np.abs(sum(d) - d[1])
        assert masks.mask(name, 1, mask.size).tolist() == mask.ravel().tolist()
        assert np.allclose(got[name], states["base"][name] + mask * sum(d), atol=1e-6)
        masked += np.square(got[name] - states["e1"][name]).sum()
        summed += np.square(sum(d) - d[1]).sum()
    assert masked < 0.5 * summed


def test_refusals(models):
    folder, _ = models
    with pytest.raises(ValueError, match="emr and consensus"):
        write_masks(recipe(folder, "magmax"), folder / "masks")
    masks = write_masks(recipe(folder, "emr"), folder / "masks")
    with pytest.raises(ValueError, match="exists"):
        write_masks(recipe(folder, "emr"), folder / "masks")
    with pytest.raises(ValueError, match="counted from 0"):
        write_task_model(masks, folder / "base", 3, folder / "task")
    (folder / "masks" / "masks.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no masks"):
        open_masks(folder / "masks")
