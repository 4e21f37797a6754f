"""The stages of the transfer flow on a tiny encoder and a task of one csv, without servers."""

import json

import numpy as np
import pytest

from core.data.examples import Examples, Splits
from core.data.tasks import load_task
from core.state import seal
from core.transfer.experience import Experience
from core.transfer.experiment import DataSteps, traced
from core.transfer.experiment import test_of as examples_of
from core.transfer.history import read_history, record
from core.transfer.recommend import Forecast, Recommendation
from core.transfer.sources import open_source
from core.transfer.strategies import StrategyConfig
from core.transfer.target import Target
from flows.transfer import TransferForm, curve_sizes, problem
from tasks.adapt import AdaptConfig, adapt
from tasks.rank_sources import RankConfig, faults_of, rank
from tasks.report_transfer import ReportTransferConfig, _data, _why, report_transfer
from tasks.sources import modality_of, opened
from tasks.stage import Artifact, Output
from tasks.train_source import TrainSourceConfig, train_on
from tasks.try_strategies import handful
from tests.core.transfer import tiny

STEPS = DataSteps()
QUICK = StrategyConfig(examples=64, max_epochs=2, min_epochs=1, precision="float32")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("transfer")


@pytest.fixture(scope="module")
def task(place):
    """A task file over a csv with one duplicate and one conflict."""
    examples = tiny.texts(120)
    lines = ["text,label", *(f"{t},{['no', 'yes'][y]}" for t, y in zip(examples.texts, examples.labels))]
    lines += [lines[1], "the a was film on,no", "the a was film on,yes"]
    (place / "toy.csv").write_text("\n".join(lines) + "\n")
    path = place / "toy.yaml"
    path.write_text("kind: single\nsource: {path: toy.csv}\nlabels: ['no', 'yes']\nmetric: accuracy\n")
    return str(path)


def run(stage, folder, config, **inputs) -> Artifact:
    """Run a stage's body as the flow would, without Prefect and MLflow."""
    folder.mkdir(parents=True)
    stage.body(Output(folder), config, **inputs)
    return Artifact(name=stage.name, path=str(folder), sha256=seal(folder))


@pytest.fixture(scope="module")
def model(place):
    folder = tiny.build("bert", place / "model")
    (folder / "asset.json").write_text(json.dumps({"name": "tiny"}))
    return Artifact(name="load-model", path=str(folder), sha256=seal(folder))


@pytest.fixture(scope="module")
def data(place):
    (place / "data").mkdir()
    return Artifact(name="load-data", path=str(place / "data"), sha256=seal(place / "data"))


@pytest.fixture(scope="module")
def trained(place, task, model, data):
    config = TrainSourceConfig(task=task, examples=40, max_length=16)
    return run(train_on, place / "trained", config, base=model, data=data)


def rank_config(task, history, **changes):
    values = {
        "target": task,
        "modality": "text",
        "examples": 40,
        "seed": 0,
        "steps": STEPS,
        "score": "logme",
        "strategies": ("share", "linear_probe", "full", "scratch"),
        "max_length": 16,
        "history": str(history),
        "history_sha256": "",
    }
    return RankConfig(**(values | changes))


def adapt_config(task, strategy, **changes):
    values = {
        "strategy": strategy,
        "source": "tiny",
        "target": task,
        "modality": "text",
        "sizes": (20, 40),
        "seeds": (0, 1),
        "test_examples": 20,
        "steps": STEPS,
        "training": QUICK,
        "max_length": 16,
    }
    return AdaptConfig(**(values | changes))


def test_ranking_finds_faults_and_recommends(place, task, model, trained, data):
    artifact = run(
        rank, place / "rank", rank_config(task, place / "none.jsonl"), sources={"tiny": model, "up": trained}, data=data
    )
    found = json.loads((artifact.folder / "ranking.json").read_text())
    assert sorted(name for name, _ in found["ranked"]) == ["tiny", "up"]
    assert found["ranked"][0][0] == "up", "a source trained on the same task comes first"
    assert found["sources"]["tiny"]["advice"]["confidence"] == 0, "no history yet"
    assert found["sources"]["up"]["situation"]["label_overlap"] == 1
    cleaned = json.loads((artifact.folder / "changes.json").read_text())[0]
    assert sum(cleaned["before"].values()) - sum(cleaned["after"].values()) >= 1
    assert {r.method for r in artifact.rows()} == {"before", "recommender"}


def test_a_strategy_that_a_source_cannot_do_is_told_before_the_others_train(place, task, data):
    mpnet = tiny.build("mpnet", place / "mpnet")
    source = Artifact(name="load-model", path=str(mpnet), sha256=seal(mpnet))
    config = rank_config(task, place / "n.jsonl", strategies=("full", "prefix_tuning"))
    with pytest.raises(ValueError, match=r"prefix_tuning cannot be used with source m: .*; leave it out of strategies"):
        run(rank, place / "rank-mpnet", config, sources={"m": source}, data=data)


def test_a_sequence_to_sequence_source_reads_no_classes(place, task, data):
    t5 = tiny.build("t5", place / "t5")
    source = Artifact(name="load-model", path=str(t5), sha256=seal(t5))
    with pytest.raises(ValueError, match="is a sequence-to-sequence model"):
        run(rank, place / "rank-t5", rank_config(task, place / "n.jsonl"), sources={"t": source}, data=data)


@pytest.mark.parametrize(("classes", "expected"), [(2, 8), (5, 8), (0, 8)])
def test_a_handful_is_the_longest_examples_of_two_classes(classes, expected):
    labels = [i % classes if classes else float(i) for i in range(60)]
    rows = Examples([f"word {'long ' * i}" for i in range(60)], None, labels)
    kind = "classification" if classes else "regression"
    small = handful(Target("t", rows, kind, "text", classes, "accuracy"))
    assert len(small.train) == expected
    assert min(len(t) for t in small.train.texts) > len(rows.texts[30])
    assert small.classes == (2 if classes else 0)


def test_whole_chain_reports_and_learns(place, task, model, data):
    history = place / "history.jsonl"
    sources = {"tiny": model}
    ranking = run(rank, place / "rank1", rank_config(task, history), sources=sources, data=data)
    strategies = ("share", "linear_probe", "full", "scratch")
    runs = {
        f"tiny / {s}": run(adapt, place / f"adapt-{s}", adapt_config(task, s), source=model, data=data)
        for s in strategies
    }
    why = json.loads((runs["tiny / full"].folder / "why.json").read_text())
    assert len(why["layers"]) == 3
    assert 0 < why["layers"][-1] <= 1
    assert set(why["changed_input"]) == {"as it is", "10 % of words dropped", "30 % of words dropped"}
    config = ReportTransferConfig(target="toy", metric="accuracy", without="scratch", examples=40, history=str(history))
    artifact = run(report_transfer, place / "report", config, ranking=ranking, runs=runs)
    page = (artifact.folder / "report.html").read_text()
    for words in ("Transfer effect", "Data efficiency", "Advice and what happened", "Why", "What moved", "Data"):
        assert words in page
    row = page[page.index("predicted regret") :].split("</tr>")[1]
    assert row.count("undefined") == 6, "without history nothing is predicted, what happened is known"
    assert "linear_probe, a default: no past transfer to learn from yet (confidence 0)" in page
    assert "estimated as CPU seconds" in page or "measured on" in page, "the figure of energy says where it is from"
    assert page.count('<img alt="scratch, first seed') == 1, "the confusion picture of the run without transfer"
    marked = tiny.texts(120).texts[0]
    assert marked not in page, "no example's text is quoted"
    effect = json.loads((artifact.folder / "effect.json").read_text())
    assert [m["method"] for m in effect["methods"]] == ["share", "linear_probe", "full"]
    assert effect["methods"][0]["pairs"] == 2
    assert {e.strategy for e in read_history(history)} == set(strategies)
    again = run(rank, place / "rank2", rank_config(task, history), sources=sources, data=data)
    assert (again.folder / "ranking.json").read_text() == (ranking.folder / "ranking.json").read_text()
    other = run(rank, place / "rank3", rank_config(task, history, examples=30), sources=sources, data=data)
    learned = json.loads((other.folder / "ranking.json").read_text())["sources"]["tiny"]["advice"]
    assert learned["confidence"] > 0, "advice at another size knows the first run"

    three = ("share", "full", "scratch")
    without_probe = rank_config(task, history, examples=20, strategies=three)
    ranking = run(rank, place / "rank4", without_probe, sources=sources, data=data)
    config = ReportTransferConfig(target="toy", metric="accuracy", without="scratch", examples=20, history=str(history))
    runs = {k: v for k, v in runs.items() if k.rsplit(" / ", 1)[1] in three}
    artifact = run(report_transfer, place / "report2", config, ranking=ranking, runs=runs)
    met = json.loads((artifact.folder / "predicted_and_realised.json").read_text())
    assert {(c["strategy"], c["quantity"]) for c in met} == {(s, q) for s in three for q in ("regret", "gain")}
    assert {c["over"] for c in met if c["quantity"] == "gain"} == {"scratch"}, "no probe was run"
    scores = {e.strategy: e.score for e in read_history(history) if e.cell.split("/")[-2] == "20"}
    best = max(scores.values())
    for c in met:
        got = scores[c["strategy"]]
        expected = best - got if c["quantity"] == "regret" else got - scores["scratch"]
        assert c["realised"] == pytest.approx(expected)
    page = (artifact.folder / "report.html").read_text()
    assert "3 predictions of regret" in page
    assert "of 1 picks were within one point" in page
    forecast = json.loads((ranking.folder / "ranking.json").read_text())["sources"]["tiny"]["advice"]["forecasts"]
    assert all(f["seconds"] > 0 for f in forecast)


def test_advice_for_images_ignores_what_happened_to_texts(place, task, data):
    history = place / "texts.jsonl"
    texts = [Experience({"agreement": 0.5, "mean_words": 7.0}, s, v, 1.0, "other", "s/other/16/x")
             for s, v in (("full", 0.9), ("scratch", 0.5))]  # fmt: skip
    record(history, texts)
    vit = tiny.build("vit", place / "vit-advice")
    source = Artifact(name="load-model", path=str(vit), sha256=seal(vit))
    config = rank_config("digits", history, modality="image", examples=60, strategies=("scratch", "full"))
    ranked = run(rank, place / "rank-texts", config, sources={"v": source}, data=data)
    advice = json.loads((ranked.folder / "ranking.json").read_text())["sources"]["v"]["advice"]
    assert (advice["confidence"], advice["pick"]) == (0, "full")
    config = rank_config(task, history, strategies=("scratch", "full"))
    model = tiny.build("bert", place / "model-advice")
    source = Artifact(name="load-model", path=str(model), sha256=seal(model))
    ranked = run(rank, place / "rank-texts2", config, sources={"t": source}, data=data)
    assert json.loads((ranked.folder / "ranking.json").read_text())["sources"]["t"]["advice"]["confidence"] > 0


def test_every_fault_is_reported_also_what_stays():
    """A duplicate that nobody chose to remove, and one in the test split, which is never cleaned."""
    twice, once = Examples(["a", "a", "b"], None, [0, 0, 1]), Examples(["c"], None, [0])
    splits = Splits(twice, once, Examples(["d", "d"], None, [1, 1]))
    found = faults_of(splits, splits)
    assert found["train"]["duplicates"] == found["test"]["duplicates"] == {"found": 1, "left": 1}
    assert found["validation"]["duplicates"] == {"found": 0, "left": 0}
    cleaned = Splits(twice.take([0, 2]), once, splits.test)
    assert faults_of(splits, cleaned)["train"]["duplicates"] == {"found": 1, "left": 0}


def test_the_page_shows_faults_that_stay():
    faults = {"train": {"outliers": {"found": 3, "left": 2}, "empty": {"found": 0, "left": 0}}}
    section = _data([], faults)
    assert section.tables[-1].rows == [["outliers", "train", 3, 2]]


def test_what_the_advice_rests_on_is_shown_largest_first():
    advice = Recommendation("full", True, 0.5, [Forecast("full", regret=0.0)], {"a": 0.01, "b": -0.2, "c": 0.1})
    config = ReportTransferConfig(target="t", metric="accuracy", without="scratch", examples=4, history="")
    assert _why({}, "s", advice, config, []).tables[0].rows == [("b", -0.2), ("c", 0.1), ("a", 0.01)]


def test_of_several_sources_gain_and_items_are_of_the_first_ranked(place, task, model, trained, data):
    history = place / "two.jsonl"
    sources = {"tiny": model, "up": trained}
    ranking = run(rank, place / "rank-two", rank_config(task, history), sources=sources, data=data)
    runs = {}
    for name, source in sources.items():
        for s in ("share", "scratch"):
            config = adapt_config(task, s, source=name, sizes=(40,))
            runs[f"{name} / {s}"] = run(adapt, place / f"two-{name}-{s}", config, source=source, data=data)
    config = ReportTransferConfig(target="toy", metric="accuracy", without="scratch", examples=40, history=str(history))
    artifact = run(report_transfer, place / "report-two", config, ranking=ranking, runs=runs)
    found = json.loads((artifact.folder / "effect.json").read_text())["methods"][0]
    assert found["pairs"] == 2, "two seeds of one source, not of both"
    assert found["gain"]["mean"] == pytest.approx(found["gain_items"]["mean"])
    row = next(r for r in artifact.rows() if r.metric == "gain over scratch")
    assert (row.settings["source"], row.value) == ("up", pytest.approx(found["gain"]["mean"]))
    page = (artifact.folder / "report.html").read_text()
    assert "All of this is of up, the source ranked first. Gains from the others: tiny (share" in page


def test_trained_source_comes_back_with_head_and_forgets(place, task, trained, data):
    source = opened(trained, "text", 16)
    assert source.name.startswith("tiny + ")
    assert source.head.weight.shape == (2, 32)
    assert source.labels == ("no", "yes")
    assert source.train is not None
    config = adapt_config(task, "full", sizes=(20,), seeds=(0,))
    rows = run(adapt, place / "forget", config, source=trained, data=data).rows()
    values = {r.metric: r.value for r in rows}
    assert 0 <= values["source_after"] <= 1
    assert values["source_before"] >= 0.9


def test_a_kept_model_answers_again(place, task, model, data):
    config = adapt_config(task, "full", sizes=(40,), seeds=(0,), keep_model=True)
    artifact = run(adapt, place / "kept", config, source=model, data=data)
    again = open_source(artifact.folder / "model", max_length=16)
    test = examples_of(task, STEPS, 20)
    right = again.probabilities(test).argmax(axis=1) == np.array(test.labels)
    assert right.mean() == pytest.approx(next(r.value for r in artifact.rows() if r.metric == "accuracy"), abs=0.051)
    with pytest.raises(ValueError, match="keep_model writes"):
        run(adapt, place / "kept2", adapt_config(task, "lora", keep_model=True), source=model, data=data)


def test_images_through_the_same_stages(place, data):
    """Scikit-learn's digits with a tiny vision transformer."""
    vit = tiny.build("vit", place / "vit")
    source = Artifact(name="load-model", path=str(vit), sha256=seal(vit))
    config = rank_config("digits", place / "n", modality="image", examples=60)
    ranked = run(rank, place / "rank-vit", config, sources={"v": source}, data=data)
    assert json.loads((ranked.folder / "ranking.json").read_text())["sources"]["v"]["situation"]["classes"] == 10
    config = adapt_config("digits", "full", modality="image", sizes=(60,), seeds=(0,), test_examples=50)
    rows = run(adapt, place / "adapt-vit", config, source=source, data=data).rows()
    assert {"accuracy", "seconds"} <= {r.metric for r in rows}
    why = json.loads((place / "adapt-vit" / "why.json").read_text())
    assert "rotated up to 15 degrees" in why["changed_input"]


def test_profile_writes_a_trace(place, task, model, data):
    config = adapt_config(task, "share", sizes=(20,), seeds=(0,), profile=True)
    artifact = run(adapt, place / "traced", config, source=model, data=data)
    assert "traceEvents" in json.loads((artifact.folder / "trace" / "trace.json").read_text())


@pytest.mark.parametrize(("there", "activities"), [(False, ["CPU"]), (True, ["CPU", "CUDA"])])
def test_a_trace_has_the_kernels_of_a_gpu(monkeypatch, there, activities):
    monkeypatch.setattr("torch.cuda.is_available", lambda: there)
    assert [a.name for a in traced()] == activities


def test_more_classes_than_examples_is_named(place, task, model, data):
    with pytest.raises(ValueError, match="2 classes but 1 training examples"):
        run(adapt, place / "few", adapt_config(task, "share", sizes=(1,)), source=model, data=data)


def test_form_and_problem(task):
    form = TransferForm(target=task, size="smoke").resolved()
    assert form.examples == 24
    assert "24 train_labels" in problem(form).budget
    assert curve_sizes(1000, 5) == (62, 125, 250, 500, 1000)
    assert curve_sizes(32, 1) == (32,)
    assert curve_sizes(6, 3) == (6,)
    assert modality_of(task) == "text"
    assert load_task(task).n_classes == 2
