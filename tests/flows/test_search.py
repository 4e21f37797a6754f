"""Which searches a search runs and with what, its map, its effect, and the portable sources it writes and reads."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from core.nas.source import Source
from core.nas.spaces import get_space
from core.nas.spaces.transformer_student import TransformerStudent
from core.state import save_checkpoint
from flows.cli import message
from flows.own_tables import checked
from flows.runtime import FLOWS
from flows.search_targets import needs_latents, needs_sources, runs, targets
from tasks import earlier
from tasks.learn_source import LABELLED, LearnConfig, OracleConfig, learn, read_labelled
from tasks.search_architectures import TRIALS
from tasks.stage import Artifact, Output
from tests import tiny_models
from tests.core.nas.oracles.files import tiny_student
from tests.flows.test_own_table import nodes, page, rows_of

FLOW = FLOWS.get("search")
TINY = {"size": "smoke", "queries": 24, "seeds": 2, "labels": 50, "encoder_steps": 5}
TARGET = {"target_space": "nb201", "target_metric": "accuracy"}
SOURCE = {"source_space": "nb101", "source_metric": "accuracy"}
ARTIFACT = Artifact(name="a", path="", sha256="a")


@pytest.fixture(scope="module", autouse=True)
def _fewer_pairs():
    """The map of ``bridge`` is fitted on fewer cells, whose features take seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("core.nas.searchers.bridge.PAIRS", 60)
        yield


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    rows_of("nb201", 80).to_parquet(folder / "mine.parquet")
    rows_of("nb101").to_csv(folder / "theirs.csv", index=False)
    return {"target": str(folder / "mine.parquet"), "source": str(folder / "theirs.csv"), **TARGET, **SOURCE}


@pytest.fixture(scope="module")
def evolved(tables):
    """A search that evolves with transfer from one own table to another."""
    return FLOW.run(FLOW.form(**TINY, **tables, searches=("bridge",)))


@pytest.fixture(scope="module")
def files(evolved):
    """The portable sources beside the page of ``evolved``, at another place."""
    return {p.name: p for p in sorted((evolved.artifact.folder / "sources").iterdir())}


@pytest.fixture(scope="module")
def elsewhere(files, tables, tmp_path_factory):
    """The same search with the source of ``evolved`` as a file; the table that taught is not there."""
    copy = tmp_path_factory.mktemp("elsewhere") / "taken.source"
    copy.write_bytes(files["nb101-theirs.csv.source"].read_bytes())
    form = {k: v for k, v in tables.items() if not k.startswith("source")}
    return FLOW.run(FLOW.form(**TINY, **form, source=str(copy), searches=("bridge",)))


def only(summary, stage):
    (found,) = nodes(summary, stage)
    return Path(found.path)


def metrics(node):
    return json.loads(Path(node.path, "metrics.json").read_text())


def kept(summary, run):
    return [(r.seed, r.settings["queries"], r.value) for r in summary.rows if r.settings["run"] == run]


def test_elites_come_through_the_map_into_the_search(evolved):
    asked = {}
    for node in nodes(evolved, "search-architectures"):
        told = json.loads(Path(node.path, "trials.json").read_text())
        asked.setdefault(told["label"], []).append([t["cell"] for t in told["trials"]])
        read = {i.name for i in node.inputs}
        assert ("encode-architectures" in read) == ("learn-source" in read) == (told["label"] == "bridge")
    assert set(asked) == {"bridge", "no source"}, "the search without source always runs"
    assert all(len(set(cells)) == TINY["queries"] for found in asked.values() for cells in found)


def test_the_chosen_map_changes_what_is_asked(evolved, tables):
    other = FLOW.form(**TINY, **tables, searches=("bridge",), mapping="random").resolved()
    (target,) = targets(other, checked(other, TINY["queries"]))
    settings = {config.label: config.settings for config, _ in runs(other, target, [ARTIFACT], [ARTIFACT])}
    assert settings == {"bridge": {"mapping": "random"}, "no source": {}}
    states = [(line.stage, line.state) for line in FLOW.plan(other)]
    assert states.count(("search-architectures", "run")) == TINY["seeds"], "bridge, and not the search without source"


def test_the_page_has_the_effect_and_json_the_same_numbers(evolved):
    (found,) = json.loads((evolved.artifact.folder / "effect.json").read_text()).values()
    (bridge,) = found["methods"]
    last = {run: [v for _, n, v in kept(evolved, run) if n == TINY["queries"]] for run in ("bridge", "no source")}
    assert found["without"] == "no source"
    assert bridge["method"] == "bridge"
    assert bridge["pairs"] == TINY["seeds"]
    assert bridge["gain"]["mean"] == pytest.approx(np.mean(last["bridge"]) - np.mean(last["no source"]))
    assert bridge["area"] is not None
    said = page(evolved)
    assert "mine.parquet: transfer effect" in said
    assert "over no source (bridge)" in said


def test_labelled_cells_are_coloured_by_what_was_measured(evolved, tables):
    with np.load(only(evolved, "map-latent-spaces") / "points.npz") as points:
        shown = points["source_value"]
    assert sorted(shown) == pytest.approx(sorted(pd.read_csv(tables["source"])["accuracy"]))


def test_a_search_leaves_portable_sources_beside_its_page(evolved, files):
    assert set(files) == {"nb101-theirs.csv.source", "nb201-mine.source"}
    known, learned = map(Source.load, files.values())
    assert set(known.facts["latent_spaces"]) == {"nb101", "nb201"}
    assert known.facts["latent_maps"] == {"nb201": "linear"}
    trials = {t["cell"] for n in nodes(evolved, "search-architectures")
              for t in json.loads(Path(n.path, "trials.json").read_text())["trials"]}  # fmt: skip
    space = get_space("nb201")
    assert {space.format(e) for e in learned.elites} == trials
    assert learned.facts["labels"] == len(trials)
    assert "nb201-mine.source" in page(evolved)


def test_what_a_file_carries_is_used_and_not_trained_again(evolved, elsewhere):
    assert {metrics(n)["brought"] for n in nodes(evolved, "encode-architectures")} == {0}
    assert {metrics(n)["brought"] for n in nodes(elsewhere, "encode-architectures")} == {1}
    first, second = (only(s, "map-latent-spaces") for s in (evolved, elsewhere))
    for file in ("map.npz", "points.npz"):
        with np.load(first / file) as a, np.load(second / file) as b:
            assert all(np.allclose(a[name], b[name]) for name in a.files), file
    assert kept(elsewhere, "bridge") == kept(evolved, "bridge"), "encoders and elites are the same, so is the search"
    assert "taken.source (nb101 theirs.csv: nb101, 40 labels, sha256" in page(elsewhere)
    assert not nodes(elsewhere, "learn-source")


def test_latest_goes_on_from_a_source_that_was_a_file(elsewhere, tables):
    assert earlier.latest("search", ("learn-source", "load-source")).name == "load-source"
    form = {k: v for k, v in tables.items() if not k.startswith("source")}
    plan = FLOW.plan(FLOW.form(**TINY, **form, source="latest", searches=("bridge",)))
    known = {line.state for line in plan if line.stage in ("encode-architectures", "map-latent-spaces")}
    assert known == {"cached"}, "what the file carries is used again"
    assert [line.stage for line in plan].count("learn-from-search") == 1, "and what was measured teaches, too"


def test_one_encoder_for_all_spaces_is_trained_once(tables):
    form = FLOW.form(**TINY, **tables, searches=("bridge",), mapping="shared")
    assert [line.stage for line in FLOW.plan(form)].count("encode-architectures") == 1
    both = FLOW.form(size="smoke", searches=("bridge",))
    assert [line.stage for line in FLOW.plan(both)].count("encode-architectures") == 3, "source, target, graphs"
    assert [line.stage for line in FLOW.plan(FLOW.form(size="smoke"))].count("encode-architectures") == 2


def test_one_encoder_serves_a_search_in_both_spaces(tables):
    done = FLOW.run(FLOW.form(**TINY | {"seeds": 1, "queries": 3}, **tables, searches=("bridge",), mapping="shared"))
    assert len(kept(done, "bridge")) == 3
    (file,) = (done.artifact.folder / "sources").iterdir()
    assert Source.load(file).facts["latent_spaces"].keys() == {"nb101+nb201"}


def refused(**values):
    """The one line that the plan of a form ends with."""
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the callers look at the message)
        FLOW.plan(FLOW.form(**{"size": "smoke", **values}))
    said = message(error.value)
    assert "\n" not in said
    return said


def test_unknown_searches_are_refused_with_the_nearest():
    assert "unknown searcher 'brige', did you mean 'bridge'?" in refused(searches=("transfer", "brige"))
    assert "give at least one search" in refused(searches=())
    assert FLOW.form(searches=("rea", "rea")).searches == ("rea",)


def test_a_latency_that_nobody_knows_is_refused_in_the_plan():
    given = {"searches": ("pareto",), "cost": "latency"}
    assert "of which no latency is known" in refused(target="transformer-student", **given)
    FLOW.plan(FLOW.form(size="smoke", **given))


@pytest.mark.parametrize(
    ("name", "sources", "latents"),
    [("transfer", True, False), ("pareto", True, False), ("bridge", True, True), ("target_latent", False, True),
     ("predictor", False, False), ("rea", False, False), ("parameters_first", False, False)],
)  # fmt: skip
def test_a_search_is_given_what_it_takes(name, sources, latents):
    assert (needs_sources(name), needs_latents(name)) == (sources, latents)
    form = FLOW.form(searches=(name,), cost="flops").resolved()
    (config, given), (twin, nothing) = runs(form, targets(form, {})[0], [ARTIFACT], [ARTIFACT])
    assert given == {"sources": [ARTIFACT] * sources, "latents": [ARTIFACT] * latents}
    assert (twin.searcher, twin.label, nothing) == ("predictor_eager", "no source", {"sources": [], "latents": []})
    assert config.settings == {"pareto": {"cost": "flops"}, "bridge": {"mapping": "linear"}}.get(name, {})


def test_the_default_evolves_with_transfer_and_the_smallest_run_does_not():
    assert "bridge" in FLOW.form().resolved().searches
    assert FLOW.form(size="smoke").resolved().searches == ("transfer", "predictor_eager", "random")


def test_targets_are_trained_or_distilled():
    form = FLOW.form(size="smoke", target="nb201").resolved()
    assert targets(form, {})[0].oracle.settings["space"] == "nb201"
    student = FLOW.form(size="smoke", target="transformer-student").resolved()
    found = targets(student, {})[0]
    assert (found.label, found.oracle.name) == ("transformer-student on mr_reviews", "student")
    assert found.oracle.settings["settings"] == {"epochs": 1, "unlabelled": 60}
    assert {line.stage for line in FLOW.plan(student)} >= {"search-architectures", "encode-architectures"}
    assert FLOW.describe(student).objective.startswith("validation accuracy of a real distillation")
    assert "is of kind image; a transformer-student needs texts" in refused(target=student.target, data="digits")


def test_files_that_are_no_portable_source_are_refused_by_the_plan(tmp_path, files):
    assert "there is no file none.source; give the .source file of an earlier search" in refused(source="none.source")
    (tmp_path / "text.source").write_text("no")
    assert "text.source is no usable portable source" in refused(source=str(tmp_path / "text.source"))
    save_checkpoint(tmp_path / "other.source", {}, kind="search", schema=1)
    assert "holds a 'search' checkpoint, expected 'nas-source'" in refused(source=str(tmp_path / "other.source"))
    save_checkpoint(tmp_path / "new.source", {}, kind="nas-source", schema=99)
    assert "schema version 99" in refused(source=str(tmp_path / "new.source"))
    save_checkpoint(tmp_path / "empty.source", {}, kind="nas-source", schema=1)
    assert "it lacks 'space'" in refused(source=str(tmp_path / "empty.source"))
    taken = str(next(iter(files.values())))
    assert "source_space: only for a table of your own" in refused(source=taken, source_space="nb101")
    assert "or a .parquet or .csv or .source file" in refused(source="cifar.xlsx")


def test_public_labels_are_written_and_own_rows_stay_at_home(tmp_path, tables, evolved):
    assert not (only(evolved, "learn-source") / LABELLED).exists()
    out = Output(tmp_path / "own")
    out.folder.mkdir()
    settings = {"space": "nb101", "metric": "accuracy", "path": tables["source"]}
    learn.body(out, LearnConfig(name="s", oracle=OracleConfig(name="table", settings=settings)))
    cells, labels = read_labelled(Artifact(name="s", path=str(out.folder), sha256=""))
    assert (out.folder / LABELLED).exists()
    assert len(cells) == 40
    assert sorted(labels) == pytest.approx(sorted(pd.read_csv(tables["source"])["accuracy"]))


def test_students_of_an_own_model_are_searched_and_what_was_learned_goes_on(tmp_path):
    arguments = tiny_student(tmp_path, rows=700)
    given = {"target": "transformer-student", "model": arguments["model"], "data": arguments["task"]}
    tiny = {"size": "smoke", "queries": 20, "graph_queries": 3, "seeds": 1, "labels": 50, "encoder_steps": 5}
    done = FLOW.run(FLOW.form(**tiny, **given, images=30, epochs=1, searches=("bridge",)))
    found = [json.loads((Path(n.path) / TRIALS).read_text()) for n in nodes(done, "search-architectures")]
    (trials,) = [t for t in found if (t["label"], t["space"]) == ("bridge", "transformer-student")]
    space = get_space("transformer-student", **trials["settings"])
    original = TransformerStudent.of(tiny_models.bert_config())
    assert space == original != get_space("transformer-student")
    assert len(trials["trials"]) == 20
    files = {p.name: p for p in (done.artifact.folder / "sources").iterdir()}
    learned = Source.load(next(p for n, p in files.items() if n.startswith("transformer-student")))
    assert learned.home == original
    assert original.full_name in learned.facts["latent_spaces"]
    taught = {p.name: Source.load(p) for p in files.values()}
    assert original.full_name in taught["nb201-cifar10.source"].facts["latent_maps"]
    again = FLOW.form(**tiny, source=str(files[f"{learned.name.replace(' ', '-')}.source"]), target="nb201", images=60)
    assert original.full_name in FLOW.describe(again).source


def test_a_model_is_for_students_alone():
    assert "model is what target transformer-student cuts" in refused(model="here")
    assert "does not exist" in refused(target="transformer-student", model="./nowhere")
