"""Users' texts stay where they are: a marked sentence is planted in the data and looked for in everything recorded.

So are secrets in the environment; and what users named with HTML in it comes out escaped.
"""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from flows.merge import MergeForm, merge
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
        texts = [f"{MARK} {' '.join(rng.choice(WORDS, 6))} {i}" for i in range(200)]
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


def test_a_planted_sentence_is_recorded_nowhere(world, home):
    folder, base = world
    form = MergeForm(
        size="smoke", base=str(base), tasks=(str(folder / "one.yaml"), str(folder / "two.yaml")), methods=("average",)
    )
    summary = merge.run(form)
    assert summary.status == "completed"
    database = Path(os.environ["MLFLOW_TRACKING_URI"].removeprefix("sqlite:///"))
    places = [
        database,
        *home.rglob("*"),
        *database.parent.glob("mlartifacts/**/*"),
        *Path(os.environ["PREFECT_HOME"]).rglob("*"),
    ]
    read = 0
    for path in places:
        if path.is_file():
            read += 1
            assert MARK.encode() not in path.read_bytes(), path
            assert SECRET.encode() not in path.read_bytes(), path
    assert read > 20
    assert MARK not in summary.model_dump_json()
    report = (Path(summary.artifact.path) / "report.html").read_text()
    assert "base&lt;u&gt;x" in report
    for page in [*home.rglob("*.html"), *database.parent.glob("mlartifacts/**/*.html")]:
        assert "<u>x" not in page.read_text(), page
