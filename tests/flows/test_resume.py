"""``transferopt resume``: which runs it takes up, and with which parameters."""

import json
import os
import time

import pytest

from core.state import StateError
from core.transfer.problem import Problem
from flows.cli import beside
from flows.cli.resume import resume
from flows.runtime import FLOWS, TransferFlow
from tasks import mlflow_store, spool, tracking

PROBLEM = Problem(source="s", target="t", knowledge="k", domain="d", objective="f", budget="1 queries")
MERGE = FLOWS.get("merge")
LONG = MERGE.form(size="smoke", tasks=tuple(f"/a/folder/of/many/tasks/number-{i}.yaml" for i in range(150)))


class Begun(Exception):
    """The flow would run now."""


@pytest.fixture
def taken_up(home, monkeypatch):
    """Resume a run as far as its flow: the parameters that the flow is given."""
    given = []

    def run(_, parameters):
        given.append(parameters)
        raise Begun

    def take_up(run_id):
        with pytest.raises(Begun):
            resume(run_id, None)
        return given[-1]

    monkeypatch.setattr(beside, "begin", lambda: None)
    monkeypatch.setattr(beside, "stop", lambda: None)
    monkeypatch.setattr(TransferFlow, "run", run)
    return take_up


def test_a_run_that_is_alive_is_left_to_its_process(taken_up):
    with (
        tracking.start("merge", "system", PROBLEM, None, MERGE._tags(MERGE.form(size="smoke"))) as run,
        tracking.nested("part", None, MERGE._tags(MERGE.form(size="smoke"))) as part,
    ):
        while spool.pending(run.spool.folder):
            time.sleep(0.01)
        for alive in (run, part):
            with pytest.raises(StateError, match=f"is still running in process {os.getpid()} on .*stop it and resume"):
                resume(alive.id, None)
            assert mlflow_store.client().get_run(mlflow_store.find_run(alive.id)).info.status == "RUNNING"
    assert taken_up(run.id) == MERGE.form(size="smoke")


@pytest.mark.parametrize("earlier", [False, True])
def test_a_configuration_of_any_length_comes_back(taken_up, earlier):
    """Tags of a store are short, so it fills several; earlier versions wrote one."""
    tags = MERGE._tags(LONG)
    assert max(map(len, tags.values())) < 5000
    if earlier:
        tags = {k: v for k, v in tags.items() if not k.startswith("config")}
    with tracking.start("merge", "system", PROBLEM, None, tags) as run:
        pass
    if earlier:
        mlflow_store.client().set_tag(mlflow_store.find_run(run.id), "config", LONG.model_dump_json())
    assert taken_up(run.id) == LONG
    stored = mlflow_store.client().get_run(mlflow_store.find_run(run.id)).data.tags
    assert json.loads("".join(stored[k] for k in sorted(stored) if k.startswith("config")))["size"] == "smoke"
