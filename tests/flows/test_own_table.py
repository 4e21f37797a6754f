"""A search takes a user's own table as source and as target: counted, named and hashed, or refused before any work."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from threadpoolctl import threadpool_info

from core.hashing import sha256_file
from core.nas.search import search_architectures
from core.nas.spaces import SPACES, get_space
from flows.cli import message
from flows.own_tables import SOURCES
from flows.runtime import FLOWS
from tasks import mlflow_store
from tasks.lineage import trace

FLOW = FLOWS.get("search")
TINY = {"size": "smoke", "queries": 3, "graph_queries": 2, "labels": 50, "encoder_steps": 5}
TARGET = {"target_space": "nb201", "target_metric": "accuracy"}
SOURCE = {"source_space": "nb101", "source_metric": "accuracy"}


def rows_of(space, count=40):
    """Distinct cells whose accuracy grows with their size."""
    space, rng, cells = get_space(space), np.random.default_rng(0), {}
    while len(cells) < count:
        cell = space.sample(rng)
        cells[space.key(cell)] = cell
    size = np.array([math.log(1 + space.size_features(c)["params"]) for c in cells.values()])
    told = {"genotype": [space.format(c) for c in cells.values()], "accuracy": 50 + size}
    return pd.DataFrame({**told, "test": 49 + size, "loss": 20 - size})


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A NAS-Bench-201 parquet and a NAS-Bench-101 csv."""
    folder = tmp_path_factory.mktemp("tables")
    rows_of("nb201").to_parquet(folder / "mine.parquet")
    rows_of("nb101").to_csv(folder / "theirs.csv", index=False)
    return {"target": folder / "mine.parquet", "source": folder / "theirs.csv"}


@pytest.fixture(scope="module")
def threads():
    """BLAS threads that each search of ``as_target`` had."""
    return []


@pytest.fixture(scope="module")
def as_target(files, threads):
    def watched(*args, **given):
        threads.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
        return search_architectures(*args, **given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.search_architectures.search_architectures", watched)
        return FLOW.run(FLOW.form(**TINY, target=str(files["target"]), **TARGET, target_test="test"))


@pytest.fixture(scope="module")
def as_source(files):
    return FLOW.run(FLOW.form(**TINY | {"queries": 1}, source=str(files["source"]), **SOURCE))


def nodes(summary, stage):
    return {n.sha256: n for n in trace(summary.mlflow_run_id).walk() if n.name == stage}.values()


def page(summary):
    return (summary.artifact.folder / "report.html").read_text()


def test_every_query_is_a_cell_of_the_table_and_counted(as_target, files):
    table = pd.read_parquet(files["target"])
    assert as_target.budget == {"queries": 3}
    searches = nodes(as_target, "search-architectures")
    runs = [json.loads(Path(n.path, "trials.json").read_text()) for n in searches]
    assert {r["label"] for r in runs} == {"transfer", "no source", "random"}
    for run in runs:
        asked = [t["cell"] for t in run["trials"]]
        assert len(asked) == len(set(asked)) == 3
        assert set(asked) <= set(table["genotype"])
    known = dict(zip(table["genotype"], table["test"], strict=True))
    kept = {r["label"]: known[r["kept"]["3"]["cell"]] for r in runs}
    last = {r.settings["run"]: r.value for r in as_target.rows if r.settings["queries"] == 3}
    assert last == pytest.approx(kept), "the score is the test column of the cell that is kept"


def test_a_search_sums_in_one_order_however_many_threads_there_are(as_target, threads):
    assert threads, "the searches ran in this process"
    assert set(threads) == {1}


def test_rows_report_and_lineage_name_the_table_by_its_hash(as_target, files):
    digest = sha256_file(files["target"])
    assert all(r.inputs == {"mine.parquet": digest} for r in as_target.rows)
    assert {r.settings["target"] for r in as_target.rows} == {"nb201 mine"}
    said = page(as_target)
    assert f"only the 40 cells of mine.parquet (sha256 {digest}) can be asked" in said
    assert "gain on mine.parquet" in said
    assert "test over the same search without source" in said
    (loaded,) = nodes(as_target, "load-table")
    assert loaded.state == "intact"
    kept = mlflow_store.client().list_artifacts(mlflow_store.find_run(loaded.run))
    assert [a.path for a in kept] == ["artifact.json"], "rows stay at home"


def test_a_table_teaches_built_in_targets(as_source, files):
    assert {r.settings["target"] for r in as_source.rows} == {"nb101 digits", "nasbench-graph proteins"}
    digest = sha256_file(files["source"])[:12]
    assert f"theirs.csv (nb101, accuracy, 40 cells, sha256 {digest}), 40 labels" in page(as_source)
    (learned,) = nodes(as_source, "learn-source")
    assert [n.name for n in learned.inputs] == ["load-table"]
    assert not [n for n in nodes(as_source, "search-architectures") if "load-table" in {i.name for i in n.inputs}]


def test_the_content_of_the_file_decides_what_is_done_again(as_target, files):
    form = FLOW.form(**TINY, target=str(files["target"]), **TARGET, target_test="test")
    assert {line.state for line in FLOW.plan(form)} == {"cached"}
    before = files["target"].read_bytes()
    try:
        table = pd.read_parquet(files["target"])
        table.loc[0, "accuracy"] += 1
        table.to_parquet(files["target"])
        states = {line.stage: line.state for line in FLOW.plan(form)}
    finally:
        files["target"].write_bytes(before)
    again = {"load-table", "search-architectures", "package-sources", "report-search"}
    assert {s for s, state in states.items() if state == "run"} == again
    assert [n.state for n in nodes(as_target, "load-table")] == ["intact"], "earlier runs keep the copy they read"


def test_plan_and_problem_name_both_tables(files):
    form = FLOW.form(**TINY, source=str(files["source"]), **SOURCE, target=str(files["target"]), **TARGET)
    assert [line.stage for line in FLOW.plan(form)].count("load-table") == 2
    problem = FLOW.describe(form.resolved())
    assert problem.budget == "3 cells of mine.parquet a run (queries); source theirs.csv"
    assert problem.domain == "nb101 -> nb201"
    assert "load-table" not in {line.stage for line in FLOW.plan(FLOW.form(**TINY))}


def test_a_minimised_metric_is_searched_downwards(files):
    given = {**TARGET, "target_metric": "loss", "minimise": ("target",)}
    form = FLOW.form(**TINY, target=str(files["target"]), **given)
    assert form.own("target").answer == "minus loss"
    assert FLOW.plan(form)


def test_the_form_offers_built_in_names_spaces_and_files():
    source, space = (FLOW.parameters.properties[n]["anyOf"] for n in ("source", "target_space"))
    assert source[0]["enum"] == list(SOURCES)
    assert "parquet" in source[1]["pattern"]
    assert space[0]["enum"] == SPACES.names()


def refused(**values):
    """The one line that the plan of a form ends with."""
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the callers look at the message)
        FLOW.plan(FLOW.form(**{**TINY, **values}))
    said = message(error.value)
    assert "\n" not in said
    return said


@pytest.mark.parametrize(
    ("change", "values", "said"),
    [
        (None, {"target_space": "nb102"}, "target_space: Input should be 'darts'"),
        (None, {"target_space": "nb101"}, "mine.parquet has 40 bad genotypes of nb101: row 0"),
        (None, {"target_metric": "acuracy"}, "has no column 'acuracy', did you mean 'accuracy'?"),
        (None, {"target_metric": ""}, "mine.parquet is a table of your own; give target_metric"),
        (None, {"queries": 41}, "mine.parquet has 40 cells, but a budget of 41 queries (parameter queries) needs 41"),
        (lambda t: t.assign(accuracy=t["accuracy"].where(t.index != 4)), {}, "no finite number (row 4"),
        (lambda t: t.drop(columns="genotype"), {}, "has no column 'genotype'"),
        (None, {"target_test": "test", "minimise": ("target",)}, "target_test is read as larger is better"),
        (None, {"target": "mine.xlsx"}, "target: unknown name 'mine.xlsx'"),
        (None, {"target": "none.csv"}, "no file none.csv"),
    ],
)  # fmt: skip
def test_a_target_that_cannot_be_used_is_refused_by_the_plan(tmp_path, change, values, said):
    table = rows_of("nb201")
    (change(table) if change else table).to_parquet(tmp_path / "mine.parquet")
    assert said in refused(**{"target": str(tmp_path / "mine.parquet"), **TARGET, **values})


def test_a_source_that_cannot_be_used_is_refused_by_the_plan(files, tmp_path):
    rows_of("nb101", 19).to_csv(tmp_path / "few.csv", index=False)
    assert "few.csv has 19 cells, but a source needs 20" in refused(source=str(tmp_path / "few.csv"), **SOURCE)
    assert "give source_space and source_metric" in refused(source=str(files["source"]))
    assert "source_metric: only for a table of your own" in refused(source_metric="accuracy")
    assert "source: unknown name 'cifar1', did you mean 'cifar10'?" in refused(source="cifar1")
    both = {"source_space": "nb201", "source_metric": "accuracy", "source": str(files["target"])}
    assert "the source would know every answer" in refused(**both, target=str(files["target"]), **TARGET)
    peeks = {"source_space": "nb201", "source_metric": "test", "source": str(files["target"]), "target_test": "test"}
    assert "the source would know what only the report may see" in refused(
        **peeks, target=str(files["target"]), **TARGET
    )


@pytest.mark.parametrize(
    ("labels", "size", "said"),
    [
        ([0, 1] * 30, 8, "60 training images of a query, but mine has 36; give fewer than that (train_examples"),
        ([0] * 200, 8, "are all of one class"),
        ([0, 1] * 100, 3, "stages need images"),
    ],
)
def test_images_that_no_cell_can_be_trained_on_are_refused_by_the_plan(tmp_path, labels, size, said):
    rng, rows = np.random.default_rng(0), ["image,label"]
    for i, label in enumerate(labels):
        Image.fromarray(rng.integers(0, 256, (size, size), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        rows.append(f"{tmp_path / f'{i}.png'},{'ab'[label]}")
    (tmp_path / "images.csv").write_text("\n".join(rows))
    names = ", ".join("ab"[v] for v in sorted(set(labels)))
    (tmp_path / "mine.yaml").write_text(
        f"version: 1\nkind: image\nsource: {{path: {tmp_path / 'images.csv'}}}\nlabels: [{names}]\nmetric: accuracy\n"
        f"image_shape: [1, {size}, {size}]\nsplits: {{validation: 0.2, test: 0.2}}\n"
    )
    assert said in refused(data=str(tmp_path / "mine.yaml"), images=60)
