"""Tables of the benchmarks with holes in them: refused with file, rows and rule, before any answer."""

import pickle
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from core.data.tfrecord import RecordError
from core.nas.oracles import get_oracle
from core.nas.oracles.nb101 import EPOCHS
from core.nas.spaces import get_space
from core.transfer.budget import Budget
from tests.core.nas.oracles import files

NAN = float("nan")


def put(column, row, value):
    """A change of one cell of a table."""

    def change(frame):
        frame = frame.astype({column: object}) if isinstance(value, str) or value is None else frame.copy()
        frame.loc[row, column] = value
        return frame

    return change


def refused(message, make):
    with pytest.raises(ValueError, match=message):
        make()


# -- NAS-Bench-201 from a parquet ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nb201():
    codes = ["".join(map(str, cell.ops)) for cell in get_space("nb201").enumerate()]
    columns = {name: np.linspace(10, 90, len(codes)) for name in ("test_200", "valid_12", "test_12")}
    columns |= {f"valid_200_run{i}": np.linspace(10, 90 + i, len(codes)) for i in range(3)}
    columns |= {name: np.ones(len(codes)) for name in ("train_time_200_s", "latency_s", "params_M", "flops_M")}
    columns["valid_200_run2"][100:] = NAN
    columns["n_runs"] = np.isfinite(columns["valid_200_run2"]) + 2
    return pd.DataFrame({"ops": codes} | {f"c10_{name}": values for name, values in columns.items()})


def nb201_table(frame, tmp_path):
    path = tmp_path / "nb201.parquet"
    frame.to_parquet(path)
    return get_oracle("nb201-table", path=path, budget=Budget("queries", 5))


def test_rows_with_fewer_runs_than_others_are_whole(nb201, tmp_path):
    oracle = nb201_table(nb201, tmp_path)
    assert np.isfinite(oracle.answers).all()
    assert np.isnan(oracle.measured[100:, 2]).all()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (put("c10_test_200", 7, NAN), r"'c10_test_200' has 1 values that are no finite number \(row 7: nothing\)"),
        (put("c10_train_time_200_s", 7, float("inf")), r"no finite number \(row 7: inf\)"),
        (put("c10_train_time_200_s", 7, -1.0), "negative training seconds, 1 times, first in row 7"),
        (put("c10_valid_200_run0", 9, NAN), r"1 rows lack a finite training run \(row 9: nan, "),
        (put("c10_valid_200_run1", 9, NAN), r"1 rows lack a finite training run \(row 9: "),
        (put("c10_valid_200_run2", 9, NAN), r"1 rows lack a finite training run \(row 9: "),
        (put("c10_valid_200_run1", 9, float("inf")), r"'c10_valid_200_run1' has 1 .*\(row 9: inf\)"),
        (
            lambda f: f.assign(c10_valid_200_run2=["many"] * 100 + [None] * (len(f) - 100)),
            "'c10_valid_200_run2' has 100 values that are no finite number .row 0: 'many', ",
        ),
        (put("ops", 3, None), "1 bad genotypes of nb201: row 3: no genotype; .*get it again"),
        (put("ops", 3, "000005"), "row 3: unknown operation 5"),
        (put("ops", 3, "00000"), "row 3: an nb201 cell has"),
        (put("ops", 3, "000002"), "row 3: the same architecture as row 2"),
        (lambda f: f.drop(index=[3, 8]).reset_index(), r"15,625 architectures of nb201, got 15,623; missing are .*;"),
        (lambda f: f.iloc[:0], "has no rows"),
        (lambda f: f.drop(columns="c10_latency_s"), "no column 'c10_latency_s'"),
        (lambda f: f.assign(c10_test_12="many"), "'c10_test_12' has 15625 values that are no finite number"),
    ],
)
def test_a_parquet_of_nb201_with_a_hole(nb201, tmp_path, spoil, message):
    refused(rf"nb201\.parquet.*{message}", lambda: nb201_table(spoil(nb201), tmp_path))


# -- NAS-Bench-201 from the registry archive -----------------------------------------------------------------------


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """Writes the archive's cifar10 and opens its oracle."""
    (tmp_path / "nasbench201").mkdir()
    path = tmp_path / "nasbench201" / "cifar10.pkl"
    monkeypatch.setattr("core.nas.oracles.nb201.resolve", lambda name: SimpleNamespace(path=tmp_path, sha256="0" * 64))

    def open_with(spoil):
        entry = {"val_acc": [80.0, 81.0], "train_time": [5.0], "model_size": [0.1], "latency": [0.01]}
        data = {"".join(map(str, cell.ops)): dict(entry) for cell in get_space("nb201").enumerate()}
        spoil(data)
        path.write_bytes(pickle.dumps(data))
        return get_oracle("nb201")

    return open_with


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: d["000003"].update(val_acc=[80.0, NAN]), r"'val_acc' of 1 rows .*\(row 000003: list \[80.0, nan\]"),
        (lambda d: d["000003"].update(val_acc=[]), "'val_acc' of 1 rows is no list of finite numbers, at least one"),
        (lambda d: d["000003"].update(val_acc=None), "row 000003: NoneType None"),
        (lambda d: d["000003"].update(train_time=[NAN]), "'train_time' of 1 rows"),
        (lambda d: d["000003"].update(train_time=[-5.0]), "negative training seconds"),
        (lambda d: d["000003"].pop("latency"), "1 rows lack one of val_acc, .* \\(row '000003'\\)"),
        (lambda d: d.pop("000003"), r"15,625 architectures of nb201, got 15,624; missing are .*nor_conv_3x3~2\|;"),
        (lambda d: d.update({"000009": d.pop("000003")}), "row 15624: unknown operation 9"),
        (lambda d: d.clear(), "a table has rows by architecture, got dict {}"),
    ],
)
def test_an_archive_of_nb201_with_a_hole(archive, spoil, message):
    refused(rf"cifar10\.pkl.*{message}", lambda: archive(spoil))


def test_an_archive_without_holes_answers(archive):
    assert archive(lambda data: None).query(get_space("nb201").parse("000000")).value in (80.0, 81.0)


# -- the pool of NAS-Bench-101 -------------------------------------------------------------------------------------


@pytest.fixture
def pool():
    space = get_space("nb101")
    cells = [space.parse(text) for text in files.CELLS_101]
    rows = {
        "adj_upper": ["".join(map(str, c.edges)) for c in cells],
        "ops": ["".join(map(str, c.ops)) for c in cells],
        "hash": [space.key(c) for c in cells],
        "train_time_108_s": np.full(len(cells), 1000.0),
        "params": [int(space.size_features(c)["params"]) for c in cells],
    }
    return pd.DataFrame(rows | {f"valid_{e}": np.linspace(0.8, 0.9, len(cells)) for e in EPOCHS})


def nb101_pool(frame, tmp_path, suffix=".parquet"):
    path = tmp_path / f"pool{suffix}"
    frame.to_parquet(path) if suffix == ".parquet" else frame.to_csv(path, index=False)
    return get_oracle("nb101-pool", path=path)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_pool_of_a_few_cells_answers(pool, tmp_path, suffix):
    cell = get_space("nb101").parse("101 maxpool3x3")
    if suffix == ".csv":
        pool = pool.iloc[1:]  # in csv the empty list of operations would read as nothing
    assert nb101_pool(pool, tmp_path, suffix).query(cell).value == pytest.approx(100 * (0.8 + 0.1 / 3))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (put("valid_36", 1, NAN), r"column 'valid_36' has 1 values that are no finite number \(row 1: nothing\)"),
        (put("params", 1, None), "column 'params' has 1 values"),
        (put("train_time_108_s", 1, -2.0), "negative training seconds"),
        (put("hash", 1, None), "1 bad genotypes of nb101: row 1: no genotype"),
        (put("adj_upper", 1, None), "row 1: no genotype"),
        (put("adj_upper", 1, "10"), "row 1: 3 nodes need 3 edge bits"),
        (put("adj_upper", 1, "100"), "row 1: disconnected nb101 cell"),
        (put("ops", 1, "7"), "row 1: unknown operation 7"),
        (put("ops", 1, "x"), "row 1: a cell has edge bits, operation digits"),
        (lambda f: f.assign(hash=f["hash"].iloc[[0, 1, 1, 3]].to_list()), "row 2: the same architecture as row 1"),
        (lambda f: f.drop(columns="valid_4"), "no column 'valid_4'"),
        (lambda f: f.iloc[:0], "has no rows"),
    ],
)
def test_a_pool_of_nb101_with_a_hole(pool, tmp_path, spoil, message):
    refused(rf"pool\.parquet.*{message}", lambda: nb101_pool(spoil(pool), tmp_path))


# -- NAS-Bench-Graph -----------------------------------------------------------------------------------------------


@pytest.fixture
def graphs(tmp_path, monkeypatch):
    """Writes the table of a data set and opens its oracle."""
    (tmp_path / "light").mkdir()
    asset = SimpleNamespace(path=tmp_path, sha256="0" * 64)
    monkeypatch.setattr("core.nas.oracles.nasbench_graph.resolve", lambda name: asset)

    def open_with(data, dataset="proteins"):
        (tmp_path / "light" / f"{dataset}.bench").write_bytes(pickle.dumps(data))
        return get_oracle("nasbench-graph", dataset=dataset)

    return open_with


def graph_rows(numbers):
    return {n: {"valid_perf": 0.8, "perf": 0.7, "latency": 0.01, "para": 0.1} for n in numbers}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: d[1].update(valid_perf=NAN), r"'valid_perf' has 1 values that are no finite number \(row 1: nan\)"),
        (lambda d: d[1].update(perf=None), r"'perf' has 1 values .*\(row 1: None\)"),
        (lambda d: d[1].update(para="much"), "row 1: 'much'"),
        (lambda d: d[1].pop("latency"), r"1 rows lack one of valid_perf, .* \(row 1\)"),
        (lambda d: d.update({99_0000: d[1]}), "row 3: a nasbench-graph number is"),
        (lambda d: d.update({8888: d[1]}), "of skips alone computes nothing"),
        (lambda d: d.update({1000: d[1]}), "row 3: the same architecture as row 0"),
    ],
)
def test_a_graph_table_with_a_hole(graphs, spoil, message):
    data = graph_rows([1, 2, 3])
    spoil(data)
    refused(rf"proteins\.bench.*{message}", lambda: graphs(data))


def test_a_graph_table_that_lacks_architectures(graphs):
    assert len(graphs(graph_rows([1, 2, 3])).pool()) == 3  # on proteins only some were trained
    refused(
        r"cora\.bench: .* 26,206 architectures of nasbench-graph, got 3; missing are 0,0,0,0 gat,gat,gat,gat;",
        lambda: graphs(graph_rows([1, 2, 3]), "cora"),
    )


# -- DARTS ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def darts(tmp_path):
    """A table of three cells, and a folder that looks like a surrogate's."""
    space, rng = get_space("darts"), np.random.default_rng(0)
    for name in ("new_model.onnx", "encoding.json", "cat_names_order.json"):
        (tmp_path / name).write_text("{}")
    texts = [space.format(space.sample(rng)) for _ in range(3)]
    return pd.DataFrame({"compact": texts, "yahpo_val_acc_ep98": [90.0, 91, 92], "yahpo_runtime_s_ep98": [5.0, 6, 7]})


def surrogate(frame, tmp_path):
    frame.to_parquet(tmp_path / "table.parquet")
    return get_oracle("darts-surrogate", path=tmp_path, table=tmp_path / "table.parquet")


def test_a_table_of_darts_answers(darts, tmp_path):
    oracle = surrogate(darts, tmp_path)
    assert oracle.query(oracle.pool()[1]).value == 91
    (tmp_path / "encoding.json").unlink()
    refused(r"no surrogate .*encoding\.json", lambda: surrogate(darts, tmp_path))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (put("yahpo_val_acc_ep98", 1, NAN), r"'yahpo_val_acc_ep98' has 1 values .*\(row 1: nothing\)"),
        (put("yahpo_runtime_s_ep98", 1, -1.0), "negative training seconds"),
        (put("compact", 1, None), "1 bad genotypes of darts: row 1: no genotype"),
        (put("compact", 1, "no cell"), "row 1: darts cells are written"),
        (lambda f: f.assign(compact=f["compact"].iloc[[0, 1, 0]].to_list()), "row 2: the same architecture as row 0"),
        (lambda f: f.drop(columns="compact"), "no column 'compact'"),
    ],
)
def test_a_table_of_darts_with_a_hole(darts, tmp_path, spoil, message):
    refused(rf"table\.parquet.*{message}", lambda: surrogate(spoil(darts), tmp_path))


# -- the official files --------------------------------------------------------------------------------------------


def nb101_official(tmp_path, records):
    path = tmp_path / "nb101.tfrecord"
    path.write_bytes(b"".join(records))
    return get_oracle("nb101-official", path=str(path))


def test_an_official_file_of_nb101_with_a_run_that_is_no_number(tmp_path, home, monkeypatch):
    space = get_space("nb101")
    cells = [space.parse(text) for text in files.CELLS_101]
    whole = [files.nb101_record(cell, run) for run in range(3) for cell in cells]
    assert len(nb101_official(tmp_path, whole).pool()) == 4
    key = space.key(cells[3])
    cut = rf"nb101\.tfrecord: valid at 108 epochs: 1 rows lack a finite training run \(row {key}: .*nan\)"
    refused(cut, lambda: nb101_official(tmp_path, whole[:-1]))  # three runs of each other cell, two of the last
    exact = files.metrics
    monkeypatch.setattr(files, "metrics", lambda valid, test, seconds, params: exact(valid, NAN, seconds, params))
    spoiled = [*whole[:-1], files.nb101_record(cells[3], 2)]
    refused(rf"nb101\.tfrecord: test at 108 epochs: .*{key}", lambda: nb101_official(tmp_path, spoiled))
    monkeypatch.setattr(files, "metrics", lambda valid, test, seconds, params: exact(valid, test, -seconds, params))
    spoiled = [*whole[:-1], files.nb101_record(cells[3], 2)]
    refused("negative training seconds", lambda: nb101_official(tmp_path, spoiled))


def test_an_official_record_of_nb101_that_is_no_cell(tmp_path, home, monkeypatch):
    monkeypatch.setattr(files, "matrix_of", lambda cell: np.ones((cell.nodes, cell.nodes), int))
    record = files.nb101_record(get_space("nb101").parse("101 maxpool3x3"), 0)
    with pytest.raises(RecordError, match=r"nb101\.tfrecord: a record with the adjacency 1{9} .*cyclic"):
        nb101_official(tmp_path, [record] * 3)


@pytest.fixture
def nb201_official(tmp_path, home):
    """Writes an official file after a change of its dictionary and opens its oracle."""
    import torch

    def open_with(spoil, **more):
        path = files.nb201_file(tmp_path / "nb201.pth")
        data = torch.load(path, weights_only=False)
        spoil(data["arch2infos"])
        torch.save(data, path)
        return get_oracle("nb201-official", path=str(path), **more)

    return open_with


def results(infos, architecture, dataset, seed=777, kind="full"):
    return infos[architecture][kind]["all_results"][dataset, seed]


def without(infos, dataset, architectures):
    for number in architectures:
        record = infos[number]["full"]
        record["dataset_seed"].pop(dataset)
        record["all_results"] = {k: v for k, v in record["all_results"].items() if k[0] != dataset}


FIRST = r"\|avg_pool_3x3~0\|"  # of 421211, the first cell of the file


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda i: results(i, 0, "cifar10-valid")["eval_acc1es"].update({"x-valid@199": NAN}),
            f"validation on cifar10 at 200 epochs: 1 rows lack a finite training run .row {FIRST}.*nan, 60.888",
        ),
        (
            lambda i: results(i, 0, "cifar10-valid")["train_times"].update({5: NAN}),
            f"training seconds on cifar10 at 200 epochs: 1 rows lack .*{FIRST}",
        ),
        (
            lambda i: results(i, 0, "cifar10")["eval_acc1es"].update({"ori-test@199": float("inf")}),
            f"'test on cifar10 at 200 epochs' has 1 values that are no finite number .row {FIRST}.*inf",
        ),
        (lambda i: without(i, "cifar10", [0]), "'test on cifar10 at 200 epochs' has 1 values"),
        (lambda i: i[0]["full"].pop("all_results"), "architecture 0 has no record of NAS-Bench-201 .KeyError"),
        (lambda i: i[2].pop("less"), "architecture 2 has no record of NAS-Bench-201 .KeyError: 'less'"),
        (
            lambda i: results(i, 3, "cifar10-valid")["eval_acc1es"].pop("x-valid@199"),
            "architecture 3 has no record of NAS-Bench-201",
        ),
    ],
)
def test_an_official_file_of_nb201_with_a_hole(nb201_official, spoil, message):
    refused(rf"nb201\.pth.*{message}", lambda: nb201_official(spoil))


def test_an_official_file_of_nb201_without_any_test_has_no_reference_of_it(nb201_official):
    oracle = nb201_official(lambda infos: without(infos, "cifar10", range(4)))
    assert set(oracle.reference(oracle.pool()[0])) == {"valid_mean", "valid_unqueried"}
    refused("has no reference 'test'", lambda: oracle.references("test"))


# -- what is asked of a table --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ops", [[[0.5] * 6], [["a"] * 6], [[0] * 6, [0] * 5], [[True] * 6], None, [[0] * 5]])
def test_operations_of_the_wrong_type_are_refused_uncharged(nb201, tmp_path, ops):
    oracle = nb201_table(nb201, tmp_path)
    refused("integers", lambda: oracle.lookup(ops))
    assert oracle.queries == 0
    refused("rows are integers", lambda: oracle.values([0.5]))
    assert oracle.queries == 0
