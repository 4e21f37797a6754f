"""The recurring benchmark on a tiny encoder: equal rows twice, a planted regression is told, and what is refused."""

import json
import shutil
import threading
import uuid
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow.artifacts import download_artifacts

from core.evaluate.rows import Row
from core.recurring.compare import compare, needed_pairs
from core.recurring.store import Part, RunFacts, Store, records
from core.state import home as home_of
from flows.benchmark import BenchmarkForm, parts
from flows.runtime import FLOWS
from tasks import announce_changes, mlflow_store
from tasks.lineage import trace
from tasks.report_benchmark import read_changes
from tests.tiny_experts import base_folder

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["the", "movie", "was", "a", "plot", "actor", "scene", "music", "film", "it"]
TIMES = ("seconds", "texts_per_second")


@pytest.fixture(scope="module")
def form(tmp_path_factory):
    """Two csv tasks and a tiny base; merge and transfer, four seeds."""
    folder = tmp_path_factory.mktemp("tasks")
    base, rng = str(base_folder(folder / "base")), np.random.default_rng(0)
    for name, (no, yes) in {"one": ("bad", "good"), "two": ("dark", "bright")}.items():
        labels = rng.integers(0, 2, 240)
        texts = [f"{' '.join(rng.choice(WORDS, 5))} {yes if v else no} {i}" for i, v in enumerate(labels)]
        pd.DataFrame({"text": texts, "label": np.where(labels, "yes", "no")}).to_csv(
            folder / f"{name}.csv", index=False
        )
        task = {"version": 1, "kind": "single", "source": {"path": f"{name}.csv"}, "labels": ["no", "yes"],
                "splits": {"validation": 0.2, "test": 0.3}, "fields": {"text": "text", "label": "label"},
                "metric": "accuracy"}  # fmt: skip
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
    settings = {
        "merge": {"base": base, "methods": ("average", "task_arithmetic"), "epochs": 3, "align": False},
        "transfer": {"sources": (base,), "strategies": ("share", "scratch"), "examples": 16, "passes": 32},
    }
    tasks = (str(folder / "one.yaml"), str(folder / "two.yaml"))
    return BenchmarkForm(size="smoke", levels=("merge", "transfer"), tasks=tasks, seeds=4, settings=settings)


@pytest.fixture
def listener():
    """A web server that keeps what is posted to it."""
    told = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/hook", told
    server.shutdown()


@pytest.fixture
def events(monkeypatch):
    """Prefect events that were fired."""
    fired = []
    monkeypatch.setattr("prefect.events.emit_event", lambda **facts: fired.append(facts))
    return fired


def plain(rows):
    """Rows without what timing and machine decide."""
    return [r.model_dump(exclude={"commit", "hardware"}) for r in rows if r.metric not in TIMES]


def test_a_planted_regression_is_found_and_told(form, home, monkeypatch, listener, events):
    flow, (address, told) = FLOWS.get("benchmark"), listener
    form = form.model_copy(update={"levels": ("merge",), "settings": {"merge": form.settings["merge"]}})
    monkeypatch.setenv(announce_changes.VARIABLE, address)
    first = flow.run(form)
    assert {r.settings["level"] for r in first.rows} == {"merge"}
    assert {r.seed for r in first.rows} == {0, 1, 2, 3}
    assert told == []
    _plant(monkeypatch)
    worse = flow.run(form)
    headline, changes = read_changes(worse.artifact.folder)
    assert [(c.level, c.method, c.verdict) for c in changes[:1]] == [("merge", "task_arithmetic", "regression")]
    assert changes[0].effect < -10
    assert {c.verdict for c in changes[1:]} == {"equal"}
    assert headline.startswith("1 regression (merge: task_arithmetic -")
    assert [t["outcome"] for t in told] == ["regression"]
    assert told[0]["regressions"][0]["method"] == "task_arithmetic"
    assert [e["event"].rpartition(".")[2] for e in events] == ["unchanged", "regression"]
    assert events[-1]["resource"]["prefect.resource.id"] == "transferopt.benchmark"
    _recorded(first, worse)


def test_rows_with_times_are_equal_but_for_the_times(form, home):
    flow = FLOWS.get("benchmark")
    form = form.model_copy(
        update={"levels": ("transfer",), "seeds": 1, "settings": {"transfer": form.settings["transfer"]}}
    )
    first = flow.run(form)
    shutil.rmtree(home / "cache")  # everything is computed again
    again = flow.run(form)
    assert plain(again.rows) == plain(first.rows)
    assert {c.verdict for c in read_changes(again.artifact.folder)[1]} == {"equal"}
    assert any(r.metric in TIMES for r in first.rows)


def _plant(monkeypatch):
    """Make an operator worse: its merged models answer four tests of ten wrong (new results, not cached ones)."""
    from tasks import evaluate_merges as module
    from tasks.stage import Stage

    real = module._of

    def worse(model, experts, config, *heads):
        found = real(model, experts, config, *heads)
        if model.name != "merge" or "task_arithmetic" not in Path(model.path, "recipe.yaml").read_text():
            return found
        if "normalize: true" in Path(model.path, "recipe.yaml").read_text():
            return found  # the average is task arithmetic, normalised
        rng = np.random.default_rng(0)
        for p in found[0].values():  # with the experts' heads, not the aligned ones
            hit = rng.random(len(p.labels)) < 0.4
            p.probabilities[hit] = np.eye(2)[1 - p.labels[hit]]
        return found

    monkeypatch.setattr(module, "_of", worse)
    key = Stage.key
    monkeypatch.setattr(
        Stage, "key", lambda self, c, i: key(self, c, i) + ("w" if self.name in ("evaluate-merges",) else "")
    )


def _recorded(first, worse):
    """Store, MLflow and lineage say the same."""
    table = Store().read()
    assert table["run"].nunique() == 2
    assert home_of() / "recurring" == Store().folder
    assert set(table["level"]) == {"merge"}
    page = Path(download_artifacts(run_id=worse.mlflow_run_id, artifact_path="report.html")).read_text()
    assert "task_arithmetic" in page
    assert "data:image/svg+xml" in page
    client = mlflow_store.client()
    experiment = client.get_run(worse.mlflow_run_id).info.experiment_id
    below = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{worse.mlflow_run_id}'")
    names = {r.info.run_name for r in below}
    assert {"merge seed 0", "merge seed 2", "record-rows", "report-benchmark", "announce-changes"} <= names
    part = next(r for r in below if r.info.run_name == "merge seed 0")
    assert part.data.tags["flow"] == "merge"
    assert "experts of" in part.data.tags["S"]
    assert client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{part.info.run_id}'")
    nodes = list(trace(first.mlflow_run_id).walk())
    assert {"record-rows", "report-merges", "evaluate-merges", "load-model"} <= {n.name for n in nodes}


def test_a_webhook_that_does_not_answer_is_said_without_its_secret(monkeypatch, caplog):
    monkeypatch.setattr(announce_changes, "PAUSE_S", 0)
    said = announce_changes.post("http://127.0.0.1:9/secret-token", {"text": "x"})
    assert said == "not reached: ConnectError"
    assert "secret-token" not in caplog.text
    assert "could not be sent" in caplog.text


def test_a_plan_runs_nothing_and_counts_every_part(form, home):
    lines = FLOWS.get("benchmark").plan(form)
    stages = [line.stage for line in lines]
    assert stages.count("evaluate-merges") == 4
    assert stages[-3:] == ["record-rows", "report-benchmark", "announce-changes"]
    assert not Store().folder.exists()


def test_parts_and_their_set_ups(form):
    found = parts(form.resolved())
    assert list(found) == [*(f"merge seed {i}" for i in range(4)), f"transfer {form.tasks[0]}"]
    setups = {name: json.dumps(p.setup, sort_keys=True) for name, (p, _) in found.items()}
    assert setups["merge seed 0"] == setups["merge seed 2"]
    every = BenchmarkForm(size="smoke", suite="archive", seeds=2).resolved()
    assert len(parts(every)) == 2 + 2 + 2 + 2 + 1
    assert [f.seeds for _, f in parts(every).values() if f.__class__.__name__ == "SearchForm"] == [1, 1]
    assert len({json.dumps([p.level, p.setup]) for p, _ in parts(every).values()}) == 5


def measured_by(run, form, dropped=()):
    """Records as the parts of a run would leave them: a method of each level, ``dropped`` levels 40 points worse."""
    recorded = []
    for part, parameters in parts(form).values():
        given = parameters.model_dump()
        told = {"target": given["target"]} if part.level == "transfer" else {"task": given.get("task")}
        tasks = [{"task": t} for t in given["tasks"]] if "tasks" in part.setup else [told]
        seeds = range(given["seed"], given["seed"] + (given["seeds"] if part.level == "transfer" else 1))
        noise = np.random.default_rng(run)
        rows = [
            Row(method="a", metric="accuracy", value=(80 - 40 * (part.level in dropped) + noise.normal(0, 2)) / 100,
                seed=s, settings=t)
            for t in tasks
            for s in seeds
        ]  # fmt: skip
        recorded.append(Part(part.level, part.setup, rows))
    return records(RunFacts(run=f"r{run}", time=datetime(2026, 1, 1 + run, tzinfo=UTC)), recorded)


def test_the_default_run_can_tell_of_a_regression_at_every_level():
    form = BenchmarkForm(size="default", suite="archive").resolved()
    before, levels = measured_by(0, form), form.levels
    for dropped in [(level,) for level in levels] + [levels]:
        changes = compare(measured_by(1, form, dropped), before)
        assert {c.level for c in changes if c.verdict == "regression"} == set(dropped)
        assert min(c.pairs for c in changes) >= needed_pairs(form.alpha, len(levels))


def test_two_files_of_one_task_are_refused(form, tmp_path):
    shutil.copy(form.tasks[1], tmp_path / "one.yaml")
    twice = form.model_copy(update={"tasks": (form.tasks[0], str(tmp_path / "one.yaml"))})
    with pytest.raises(ValueError, match=r"one\.yaml and .*one\.yaml are both the task 'one'; rename one"):
        parts(twice.resolved())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mrge": {}}, "settings of 'mrge', did you mean 'merge'"),
        ({"merge": {"epoch": 1}}, "unknown key 'epoch', did you mean 'epochs'"),
    ],
)
def test_unknown_settings_are_refused_before_work(settings, message):
    with pytest.raises(ValueError, match=message):
        parts(BenchmarkForm(size="smoke", suite="archive", settings=settings).resolved())


def test_weekly_and_apart_from_make_run():
    found = yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text())["deployments"]
    (deployed,) = (d for d in found if d["entrypoint"] == "flows/benchmark.py:benchmark")
    (schedule,) = deployed["schedules"]
    minute, hour, day, month, weekday = schedule["cron"].split()
    assert (day, month) == ("*", "*")
    assert all(part.isdigit() for part in (minute, hour, weekday))
    listed = next(line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("FLOWS"))
    assert "benchmark" not in listed


def test_prefect_takes_the_automation_and_it_listens_to_the_event():
    from prefect.events import Resource
    from prefect.events.schemas.automations import AutomationCore

    text = (ROOT / "deployments" / "automations.yaml").read_text().replace("${NOTIFY_BLOCK}", str(uuid.uuid4()))
    (entry,) = yaml.safe_load(text)["automations"]
    automation = AutomationCore(**entry)
    assert automation.trigger.expect == {f"{announce_changes.EVENT}.regression"}
    assert automation.trigger.match.matches(Resource({"prefect.resource.id": announce_changes.RESOURCE}))
    assert not automation.trigger.match.matches(Resource({"prefect.resource.id": "another"}))
