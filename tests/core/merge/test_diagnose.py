"""Diagnosis against literal counts on whole arrays."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from core.evaluate.rows import read_rows
from core.merge.diagnose import ALL, diagnose, short_names

NAMES = {"embed.weight": (6, 4), "layers.0.w.weight": (4, 5), "layers.1.w.weight": (4, 5), "norm.weight": (4,)}


@pytest.fixture
def models(tmp_path):
    rng = np.random.default_rng(0)
    base = {n: rng.standard_normal(s).astype(np.float32) for n, s in NAMES.items()}
    everything = {"base": base}
    for e in range(3):
        everything[f"expert{e}"] = {
            n: v + np.float32(e + 1) * rng.standard_normal(v.shape).astype(np.float32) for n, v in base.items()
        }
    everything["expert2"]["norm.weight"] = base["norm.weight"]
    for name, state in everything.items():
        (tmp_path / name).mkdir()
        save_file(state, tmp_path / name / "model.safetensors")
    return tmp_path, everything


def recipe(folder, experts=3, **more):
    models = [{"model": str(folder / f"expert{e}"), "parameters": {"weight": 1.0}} for e in range(experts)]
    return {"merge_method": "task_arithmetic", "base_model": str(folder / "base"), "models": models, **more}


def value(rows, metric, layer, **settings):
    found = [
        r.value
        for r in rows
        if r.metric == metric and r.settings["layer"] == layer and settings.items() <= r.settings.items()
    ]
    assert len(found) == 1
    return found[0]


def test_every_figure_by_literal_counting(models):
    folder, state = models
    got = diagnose(recipe(folder), density=0.3)
    assert got.experts == ("expert0", "expert1", "expert2")
    assert set(got.layers) == {"embeddings", "layers.0", "layers.1", "other", ALL}
    groups = {"embeddings": ["embed.weight"], "layers.1": ["layers.1.w.weight"], ALL: list(NAMES)}
    for layer, names in groups.items():
        deltas = [
            [state[e][n].astype(np.float64) - state["base"][n].astype(np.float64) for n in names] for e in got.experts
        ]
        flat = [np.concatenate([d.ravel() for d in ds]) for ds in deltas]
        a, b = flat[0], flat[1]
        pair = {"a": "expert0", "b": "expert1"}
        cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        assert value(got.rows, "cosine", layer, **pair) == pytest.approx(cosine)
        assert value(got.rows, "sign_conflict", layer, **pair) == pytest.approx(np.mean(a * b < 0))
        common = kept = 0
        for x, y in zip(deltas[0], deltas[1], strict=True):
            k = max(1, int(0.3 * x.size))
            tops = [set(np.argsort(-np.abs(v).ravel(), kind="stable")[:k].tolist()) for v in (x, y)]
            common, kept = common + len(tops[0] & tops[1]), kept + k
        assert value(got.rows, "overlap", layer, **pair) == pytest.approx(common / kept)
        squares = [float(v @ v) for v in flat]
        assert value(got.rows, "norm", layer, expert="expert2") == pytest.approx(squares[2] ** 0.5)
        assert value(got.rows, "share", layer, expert="expert2") == pytest.approx(squares[2] / sum(squares))
        assert value(got.rows, "imbalance", layer) == pytest.approx(3 * max(squares) / sum(squares))
    assert value(got.rows, "overlap", "other", a="expert0", b="expert2") is None
    assert value(got.rows, "cosine", "other", a="expert0", b="expert2") is None  # expert2 does not change the norm
    assert value(got.rows, "sign_conflict", "other", a="expert0", b="expert2") is None


def test_same_rows_for_any_block_size(models, monkeypatch):
    folder, _ = models
    whole = diagnose(recipe(folder))
    monkeypatch.setattr("core.merge.operators.BLOCK", 7)
    for a, b in zip(whole.rows, diagnose(recipe(folder)).rows, strict=True):
        assert (a.value is None) == (b.value is None)
        assert a.value is None or a.value == pytest.approx(b.value, rel=1e-12)
        assert a.inputs == b.inputs
        assert all(len(digest) == 64 for digest in a.inputs.values())


def test_files_and_pictures(models):
    folder, _ = models
    got = diagnose(recipe(folder))
    files = got.save(folder / "out")
    assert {f.name for f in files} >= {"diagnose.jsonl", "cosine.png", "sign_conflict.png", "overlap.png", "share.png"}
    assert all(f.read_bytes().startswith(b"\x89PNG") for f in files if f.suffix == ".png")
    assert [r.value for r in read_rows(folder / "out" / "diagnose.jsonl")] == [r.value for r in got.rows]
    axes = got.heat_map("sign_conflict").axes[0]
    assert axes.get_ylabel() == "layer"
    assert axes.get_xlabel() == "pair of experts"
    assert "expert0 - expert1" in got.summary()


def test_one_expert_has_no_pairs(models):
    folder, _ = models
    got = diagnose(recipe(folder, experts=1))
    assert {r.metric for r in got.rows} == {"norm", "relative_norm", "share", "imbalance"}
    assert {f.name for f in got.save(folder / "one")} == {"diagnose.jsonl", "relative_norm.png", "share.png"}


def test_refusals(models):
    folder, _ = models
    with pytest.raises(ValueError, match="density=0"):
        diagnose(recipe(folder), density=0)
    without = {"merge_method": "linear", "models": recipe(folder)["models"]}
    with pytest.raises(ValueError, match="no base_model"):
        diagnose(without)


def test_short_names():
    assert short_names(["/a/x/model", "/a/y/model"]) == ("x/model", "y/model")
    assert short_names(["/a/one", "/b/two"]) == ("one", "two")


def test_the_stage_writes_rows_metrics_and_pictures(models, monkeypatch):
    from tasks import diagnose as task
    from tasks.stage import Artifact, Output

    folder, _ = models
    experts = {f"expert{e}": Artifact(name="x", path=str(folder / f"expert{e}"), sha256="") for e in range(3)}

    class Expert:
        def __init__(self, artifact):
            self.folder, self.task = artifact.folder, f"task of {artifact.folder.name}"

    monkeypatch.setattr(task, "experts_of", lambda given: [Expert(given[name]) for name in sorted(given)])
    out = Output(folder / "stage")
    out.folder.mkdir()
    base = Artifact(name="base", path=str(folder / "base"), sha256="")
    task.diagnose_experts.body(out, task.DiagnoseConfig(), base=base, experts=experts)
    rows = read_rows(out.folder / "rows.jsonl")
    assert {r.settings["a"] for r in rows if "a" in r.settings} == {"task of expert0", "task of expert1"}
    assert (out.folder / "sign_conflict.png").exists()
    assert "sign_conflict/mean" in (out.folder / "metrics.json").read_text()
