"""A flow killed with SIGKILL at moments of its work and run again: the same bytes, and no stage paid twice.

Tiny encoder, two csv tasks; every kill is a child of the command, ended with its whole process group. The benchmark of
faults does this twenty times with each flow.
"""

import json
import os

import numpy as np
import pandas as pd
import pytest
import yaml

from benchmarks.flow_process import Place, intact, kill_in_work, left_by, records_of
from flows.cli.resume import resume
from flows.merge import MergeForm, merge
from tests.tiny_experts import base_folder
from tests.tiny_models import WORDS

KILLS = 2


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Base, tasks and everything small."""
    folder, rng = tmp_path_factory.mktemp("world"), np.random.default_rng(0)
    base = base_folder(folder / "base")
    for name in ("one", "two"):
        texts = [f"{' '.join(rng.choice(WORDS, 6))} {i}" for i in range(200)]
        pd.DataFrame({"text": texts, "label": rng.choice(["no", "yes"], 200)}).to_csv(folder / f"{name}.csv")
        task = {"version": 1, "kind": "single", "source": {"path": f"{name}.csv"}, "labels": ["no", "yes"],
                "splits": {"validation": 0.3, "test": 0.3}, "fields": {"text": "text", "label": "label"},
                "metric": "accuracy"}  # fmt: skip
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
    tasks = (str(folder / "one.yaml"), str(folder / "two.yaml"))
    return {"size": "smoke", "base": str(base), "tasks": tasks, "methods": ("average", "ties")}


@pytest.mark.timeout(900)
def test_a_killed_flow_ends_as_if_nothing_had_been(settings, tmp_path, monkeypatch):
    from prefect.client.orchestration import get_client  # after tasks, which sets its environment

    with get_client(sync_client=True) as client:
        server = str(client.api_url)
    more = {"MLFLOW_TRACKING_URI": os.environ["MLFLOW_TRACKING_URI"], "PREFECT_API_URL": server}
    here = Place(tmp_path, more)
    monkeypatch.setenv("TRANSFEROPT_HOME", str(here.home))
    undisturbed = merge.run(MergeForm(**settings)).model_dump(mode="json")
    records = records_of(here.home / "spool" / here.begun()[-1])
    whole = left_by(undisturbed, here.set_aside("undisturbed"))
    assert whole.rows
    assert any(name.endswith(".safetensors") for name in whole.files)

    arguments = ["run", "merge"]
    for key, value in settings.items():
        arguments += ["--set", f"{key}={json.dumps(value) if isinstance(value, tuple) else value}"]
    moments = np.random.default_rng(5).uniform(0.1, 0.8, KILLS)
    for share in sorted(moments):
        assert kill_in_work(here, arguments, int(share * records), 0.05), here.output()
    _, faults = intact(here.home)
    assert not faults
    summary = tmp_path / "summary.json"
    resume(here.begun()[-1], summary)
    left = left_by(json.loads(summary.read_text()), here.home)
    assert left.differences(whole) == []
    assert left.paid_twice() == 0
