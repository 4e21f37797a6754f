import numpy as np
import pandas as pd
import pytest

from core.nas.oracles import get_oracle
from core.nas.oracles.runs import chosen_runs, others_mean
from core.nas.spaces import get_space
from core.transfer.budget import Budget, BudgetExhausted

NB201 = get_space("nb201")


def test_archive_has_the_published_optima():
    best = {
        d: get_oracle("nb201", dataset=d).references("valid_mean").max() for d in ("cifar10", "cifar100", "imagenet16")
    }
    assert best["cifar10"] == pytest.approx(91.61, abs=0.01)
    assert best["cifar100"] == pytest.approx(73.49, abs=0.01)
    assert best["imagenet16"] == pytest.approx(46.73, abs=0.01)


def test_a_single_run_is_one_of_the_runs_and_seeds_choose_differently():
    a, b, mean = (get_oracle("nb201", **s) for s in ({"seed": 0}, {"seed": 1}, {"noise": "mean"}))
    assert (a.measured == a.answers[:, None]).any(1).all()
    assert 0.3 < (a.answers != b.answers).mean() < 0.9
    np.testing.assert_allclose(mean.answers, np.nanmean(a.measured, axis=1))
    assert (mean.seconds >= a.seconds).all()


def test_unqueried_runs_leave_the_answering_run_out():
    runs = np.array([[1.0, 2.0, 4.0], [1.0, 2.0, np.nan], [3.0, np.nan, np.nan]])
    value, column = chosen_runs(runs, seed=0)
    rest = others_mean(runs, column)
    assert value[2] == 3
    assert np.isnan(rest[2])
    for row in (0, 1):
        others = [v for i, v in enumerate(runs[row]) if i != column[row] and not np.isnan(v)]
        assert rest[row] == pytest.approx(np.mean(others))


def test_vectorised_look_up_counts_each_architecture_once():
    oracle = get_oracle("nb201", budget=Budget("queries", 3))
    ops = np.array([[4, 2, 1, 2, 1, 1], [0, 0, 0, 0, 0, 0], [4, 2, 1, 2, 1, 1]])
    values = oracle.lookup(ops)
    assert values[0] == values[2] == oracle.query(NB201.parse("421211")).value
    assert oracle.budget.spent == 2
    with pytest.raises(BudgetExhausted):
        oracle.lookup(np.array([[1, 1, 1, 1, 1, 1], [2, 2, 2, 2, 2, 2]]))
    assert oracle.budget.spent == 2
    with pytest.raises(ValueError, match=r"0\.\.4"):
        oracle.lookup(np.array([[0, 0, 0, 0, 0, 5]]))


def test_a_budget_of_seconds_limits_too():
    oracle = get_oracle("nb201", budget=Budget("simulated_seconds", 2000))
    oracle.query(NB201.parse("421211"))  # 1,444 s
    with pytest.raises(BudgetExhausted):
        oracle.query(NB201.parse("334131"))
    assert oracle.budget.counts["queries"] == 1


def test_unknown_data_sets_name_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'cifar100'"):
        get_oracle("nb201", dataset="cifar-100")
    with pytest.raises(ValueError, match="did you mean 'pubmed'"):
        get_oracle("nasbench-graph", dataset="pubmet")


def test_graph_table_answers_any_form_of_a_cell():
    oracle, space = get_oracle("nasbench-graph", dataset="cora"), get_space("nasbench-graph")
    assert len(oracle.pool()) == 26_206
    cell = space.parse("0,1,2,1 gcn,gin,fc,cheb")
    assert oracle.query(cell).value == oracle.query(space.parse("0,1,1,2 gcn,gin,cheb,fc")).value
    assert oracle.queries == 1
    assert set(oracle.reference(cell)) == {"valid", "test"}


def test_proteins_has_only_some_of_the_cells():
    oracle = get_oracle("nasbench-graph", dataset="proteins")
    assert len(oracle.pool()) == 2_021
    with pytest.raises(ValueError, match="only 2021 of"):
        oracle.query(get_space("nasbench-graph").parse("0,1,2,1 gat,gin,fc,cheb"))
    assert oracle.queries == 0


@pytest.mark.shared
def test_local_parquet_agrees_with_the_archive(shared_data):
    archive, local = get_oracle("nb201", dataset="cifar100"), get_oracle("nb201-table", dataset="cifar100")
    np.testing.assert_allclose(archive.answers, local.answers, atol=1e-4)
    assert (archive.ops == local.ops).all()
    assert local.references("test").max() == pytest.approx(73.51, abs=0.01)
    short = get_oracle("nb201-table", dataset="cifar100", epochs=12)
    np.testing.assert_allclose(short.seconds, 0.06 * local.seconds)
    assert short.answers.max() < local.answers.max()


@pytest.mark.shared
def test_pool_refuses_cells_it_does_not_have(shared_data):
    oracle, space = get_oracle("nb101-pool"), get_space("nb101")
    assert len(oracle.pool()) == 30_001
    rng = np.random.default_rng(0)
    known = set(oracle.row_of)
    stranger = next(c for c in (space.sample(rng) for _ in range(100)) if space.key(c) not in known)
    with pytest.raises(ValueError, match="not among the 30001"):
        oracle.query(stranger)
    assert get_oracle("nb101-pool", epochs=4).answers.mean() < oracle.answers.mean()


@pytest.mark.shared
def test_surrogate_agrees_with_its_table_and_flags_what_it_cannot_know(shared_data):
    from core.nas.oracles.darts import surrogate
    from core.nas.spaces.darts import DartsCells

    oracle = get_oracle("darts-surrogate")
    for row in (0, 5000, 11_220):
        assert surrogate(oracle.folder, oracle.cells[row], 98)[0] == pytest.approx(oracle.table_values[row], abs=1e-4)
    skips = DartsCells(*[tuple((s, 2) for s in (0, 1) * 4)] * 2)
    answer = oracle.query(skips)
    assert answer.value > 95  # absurd, hence the flag
    assert "extrapolates" in answer.flag
    assert not oracle.query(oracle.cells[0]).flag
    best = oracle.cells[int(oracle.table_values.argmax())]
    assert oracle.reference(best)["regret"] == pytest.approx(0)
    assert oracle.reference(best)["percentile"] == 0


@pytest.fixture
def frame():
    cells = ["421211", "334131", "000000"]
    return pd.DataFrame({"genotype": cells, "accuracy": [80.0, 90.0, 10.0], "test": [79.0, 91.0, 10.0], "s": [5, 6, 7]})


def table(frame, tmp_path, suffix=".parquet", **more):
    path = tmp_path / f"mine{suffix}"
    frame.to_parquet(path) if suffix == ".parquet" else frame.to_csv(path, index=False)
    return get_oracle("table", path=str(path), space="nb201", metric="accuracy", **more)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_user_table_answers(frame, tmp_path, suffix):
    frame["genotype"] = [NB201.format(NB201.parse(t)) for t in frame["genotype"]]
    oracle = table(frame, tmp_path, suffix, reference=["test"], cost="s")
    assert oracle.query(NB201.parse("334131")).value == 90
    assert oracle.budget.counts == {"queries": 1, "simulated_seconds": 6}
    assert oracle.reference(NB201.parse("334131")) == {"test": 91}


def test_a_smaller_is_better_metric_is_negated(frame, tmp_path):
    assert table(frame, tmp_path, minimise=True).query(NB201.parse("000000")).value == -10


def test_digits_survive_parquet_and_missing_rows_are_refused(frame, tmp_path):
    oracle = table(frame, tmp_path)
    with pytest.raises(ValueError, match="no row for"):
        oracle.query(NB201.parse("111111"))
    assert oracle.queries == 0


def change(column, row, value):
    def apply(frame):
        frame = frame.astype({column: object})
        frame.loc[row, column] = value
        return frame

    return apply


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (change("accuracy", 1, None), r"column 'accuracy' has 1 values that are no finite number \(row 1: nothing\)"),
        (change("accuracy", 2, "many"), "'many'"),
        (change("accuracy", 2, float("inf")), r"no finite number \(row 2: inf\)"),
        (change("genotype", 1, None), "1 bad genotypes of nb201: row 1: no genotype; correct or drop the rows"),
        (change("genotype", 2, "0"), r"column 'genotype' \(.*\) lost leading zeros \(0 for 000000\); save it as text"),
        (change("genotype", 0, "999999"), "row 0: unknown operation 9"),
        (change("genotype", 0, "0,1,2,1 gcn,gin,fc,cheb"), "row 0: an nb201 cell has 3 nodes"),
        (change("genotype", 2, "421211"), "row 2: the same architecture as row 0"),
        (lambda f: f.rename(columns={"accuracy": "acuracy"}), "no column 'accuracy', did you mean 'acuracy'"),
        (lambda f: f.iloc[:0], "no rows"),
    ],
)
def test_bad_tables_name_the_rule(frame, tmp_path, spoil, message):
    with pytest.raises(ValueError, match=message):
        table(spoil(frame), tmp_path, ".csv")


def test_digits_saved_as_numbers_are_read_or_name_their_lost_zeros(frame, tmp_path):
    whole = frame[:2].assign(genotype=[421211, 334131])
    assert table(whole, tmp_path).query(NB201.parse("334131")).value == 90
    with pytest.raises(ValueError, match=r"\(int64\) lost leading zeros .*\['genotype'\].astype\(str\).str.zfill\(6\)"):
        table(frame.assign(genotype=[421211, 334131, 0]), tmp_path)
    with pytest.raises(ValueError, match=r"2 bad .* row 1: no genotype.*\(float64\) lost .*\.astype\('Int64'\)"):
        table(frame.assign(genotype=[421211, None, 0]), tmp_path)


def test_settings_that_are_unknown_or_absent_are_named(frame, tmp_path):
    with pytest.raises(ValueError, match=r"no setting 'metrik', did you mean 'metric'\? Allowed: path, space, metric,"):
        get_oracle("table", path="mine.csv", space="nb201", metrik="accuracy")
    with pytest.raises(ValueError, match="needs path, space, metric; not given: space, metric"):
        get_oracle("table", path="mine.csv")
    with pytest.raises(ValueError, match="no setting 'minimize', did you mean 'minimise'"):
        table(frame, tmp_path, minimize=True)


def test_files_that_are_no_tables_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no file"):
        get_oracle("table", path=str(tmp_path / "none.csv"), space="nb201", metric="a")
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match="cannot be read as parquet"):
        get_oracle("table", path=str(broken), space="nb201", metric="a")
    (tmp_path / "table.xml").write_text("<a/>")
    with pytest.raises(ValueError, match="parquet or"):
        get_oracle("table", path=str(tmp_path / "table.xml"), space="nb201", metric="a")


def test_rows_with_a_field_too_many_are_refused_and_not_shifted(frame, tmp_path):
    path = tmp_path / "table.csv"
    frame[["genotype", "accuracy"]].to_csv(path, index=False)
    head, *rows = path.read_text().splitlines()
    path.write_text("\n".join([head, *(f"{row},remark" for row in rows)]))
    with pytest.raises(ValueError, match=r"cannot be read as csv: .*[Ll]ength of header"):
        get_oracle("table", path=str(path), space="nb201", metric="accuracy")


def test_a_table_of_a_space_with_settings(tmp_path):
    path, settings = tmp_path / "students.csv", {"layers": 2, "heads": [1, 2], "neurons": [8, 16], "width": 16}
    path.write_text("genotype,accuracy\n1x8 2x16,80\n- 2x16,70\n1x8 -,60\n")
    oracle = get_oracle(
        "table", path=str(path), space="transformer-student", metric="accuracy", space_settings=settings
    )
    assert oracle.query(oracle.space.parse("- 2x16")).value == 70
    with pytest.raises(ValueError, match="no setting 'layer', did you mean 'layers'"):
        get_oracle("table", path=str(path), space="transformer-student", metric="accuracy", space_settings={"layer": 2})
    with pytest.raises(ValueError, match="nb201 has none"):
        get_oracle("table", path=str(path), space="nb201", metric="accuracy", space_settings={"layers": 2})


def test_another_run_of_a_cell_is_another_query_until_none_is_left():
    oracle = get_oracle("nb201", seed=3, budget=Budget("queries", 10))
    row = int(np.flatnonzero((~np.isnan(oracle.measured)).all(1))[0])
    cell = oracle.cells[row]
    with pytest.raises(ValueError, match="was not queried before"):
        oracle.again(cell)
    assert oracle.reference(cell)["valid_unqueried"] == oracle.references("valid_unqueried")[row]
    asked = [oracle.query(cell).value, oracle.again(cell).value]
    (left,) = set(oracle.measured[row]) - set(asked)
    assert oracle.reference(cell)["valid_unqueried"] == left
    asked.append(oracle.again(cell).value)
    assert sorted(asked) == sorted(oracle.measured[row])
    assert "valid_unqueried" not in oracle.reference(cell)
    assert oracle.runs(cell) == oracle.queries == oracle.budget.spent == 3
    assert oracle.query(cell).value == asked[0], "asking as before is free and gives the first run"
    with pytest.raises(ValueError, match="all 3 runs"):
        oracle.again(cell)
    resumed = get_oracle("nb201", seed=3, budget=Budget("queries", 10))
    resumed.load_state_dict(oracle.state_dict())
    assert resumed.queries == 3
    with pytest.raises(ValueError, match="all 3 runs"):
        resumed.again(cell)


def test_where_the_mean_answers_there_is_no_other_run():
    oracle = get_oracle("nb201", noise="mean", budget=Budget("queries", 10))
    cell = oracle.cells[0]
    oracle.query(cell)
    assert oracle.runs(cell) == 1
    with pytest.raises(ValueError, match="all 1 runs"):
        oracle.again(cell)


def test_a_run_asked_again_needs_its_budget():
    oracle = get_oracle("nb201", budget=Budget("queries", 1))
    cell = oracle.cells[0]
    oracle.query(cell)
    with pytest.raises(BudgetExhausted):
        oracle.again(cell)
    assert oracle.queries == 1
