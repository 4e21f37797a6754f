"""Users' texts stay where they are: a marked sentence is planted in the data and looked for in everything recorded.

So are secrets in the environment; and what users named with HTML in it comes out escaped.
"""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow.artifacts import download_artifacts

from flows.merge import MergeForm, merge
from tasks import mlflow_store
from tests.tiny_experts import base_folder

MARK = "xyzzyplantedsentence"
SECRET = "s3cret-plugh-planted"
SECRETS = ("MLFLOW_TRACKING_PASSWORD", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "PREFECT_API_AUTH_STRING", "MY_TOKEN")
WORDS = ["the", "movie", "was", "a", "good", "bad", "plot", "actor", "scene", "music", "film", "it", "dark"]


@pytest.fixture
def world(tmp_path, home, monkeypatch):
    """A tiny base and two csv tasks; every text holds the mark, the environment a secret, a folder's name HTML."""
    for name in SECRETS:
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", os.environ["MLFLOW_TRACKING_URI"])
    base = base_folder(tmp_path / "base<u>x")
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        texts = [f"{MARK} <b> {' '.join(rng.choice(WORDS, 6))} {i}" for i in range(200)]
        pd.DataFrame({"text": texts, "label": rng.choice(["no", "yes"], 200)}).to_csv(
            tmp_path / f"{name}.csv", index=False
        )
        task = {
            "version": 1,
            "kind": "single",
            "source": {"path": f"{name}.csv"},
            "splits": {"validation": 0.3, "test": 0.3},
            "fields": {"text": "text", "label": "label"},
            "labels": ["no", "yes"],
            "metric": "accuracy",
        }
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return tmp_path, base


def run(world, **more):
    folder, base = world
    tasks = (str(folder / "one.yaml"), str(folder / "two.yaml"))
    summary = merge.run(MergeForm(size="smoke", base=str(base), tasks=tasks, methods=("average",), **more))
    assert summary.status == "completed"
    assert MARK not in summary.model_dump_json()
    return summary


def logged(summary):
    """The files that MLflow holds of a run and its stages."""
    parent = mlflow_store.client().get_run(summary.mlflow_run_id)
    query = f"tags.`mlflow.parentRunId` = '{summary.mlflow_run_id}'"
    runs = [parent, *mlflow_store.client().search_runs([parent.info.experiment_id], query)]
    folders = [Path(download_artifacts(run_id=r.info.run_id, artifact_path="")) for r in runs]
    return [p for f in folders for p in f.rglob("*") if p.is_file()]


def recorded(home, summary):
    """Every file of the home, of MLflow's database and artifacts, of Prefect; none of them holds a secret."""
    database = Path(os.environ["MLFLOW_TRACKING_URI"].removeprefix("sqlite:///"))
    places = [
        database,
        *home.rglob("*"),
        *logged(summary),
        *Path(os.environ["PREFECT_HOME"]).rglob("*"),
    ]
    files = [p for p in places if p.is_file()]
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path
    assert len(files) > 20
    return files


def test_a_planted_sentence_is_recorded_nowhere(world, home):
    summary = run(world)
    for path in recorded(home, summary):
        assert MARK.encode() not in path.read_bytes(), path
    report = (Path(summary.artifact.path) / "report.html").read_text()
    assert "base&lt;u&gt;x" in report
    for page in [p for p in [*home.rglob("*"), *logged(summary)] if p.suffix == ".html"]:
        assert "<u>x" not in page.read_text(), page


def test_asked_for_a_sentence_is_quoted_in_the_analysis_alone(world, home):
    """On, the sentence stands escaped in the quoted mistakes and in the report, in cache and MLflow; nowhere else."""
    summary = run(world, log_examples=True)
    quoting = ["mistakes.html", "mistakes.json", "report.html"]
    for files in (recorded(home, summary), logged(summary)):
        assert sorted({p.name for p in files if MARK.encode() in p.read_bytes()}) == quoting
    report = (Path(summary.artifact.path) / "report.html").read_text()
    assert f"{MARK} &lt;b&gt;" in report
    assert "<b>" not in report
