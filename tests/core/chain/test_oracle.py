import pytest

from core.chain.oracle import SharedStructure, task_texts
from core.chain.structures import equal_size, widths_space
from core.data.tasks import load_task
from core.models.load import load_encoder
from core.nas.oracles.student import StudentSettings
from core.transfer.budget import Budget, BudgetExhausted
from tests import tiny_chain

QUICK = StudentSettings(epochs=1, batch_size=16, lr=1e-3, max_length=16)


@pytest.fixture
def make(tmp_path, home):
    base, files = tiny_chain.base_folder(tmp_path / "base"), tiny_chain.task_files(tmp_path / "tasks", rows=240)
    original = load_encoder(base, device="cpu")
    space = widths_space(original.backbone.config)
    texts = {n: task_texts(load_task(f), 8, 4, 32, 40, 0) for n, f in files.items()}

    def build(**more):
        cells = equal_size(space, 2)
        return SharedStructure(original, space, texts, cells, QUICK, **more)

    return build


def test_an_answer_is_the_mean_over_tasks_and_counts_its_texts(make):
    oracle = make(budget=Budget("queries", 1))
    first, second, *_ = oracle.pool()
    answer = oracle.query(first)
    assert answer.value == pytest.approx((answer.metrics["mood"] + answer.metrics["light"]) / 2)
    assert oracle.budget.counts["train_examples"] == oracle.examples == 64
    assert oracle.budget.counts["queries"] == 1
    assert not oracle.query(first).charged
    assert oracle.budget.counts["train_examples"] == 64
    with pytest.raises(BudgetExhausted):
        oracle.query(second)
    assert make().query(first).value == answer.value  # from the cache, and the same


def test_no_test_text_is_read(make, tmp_path):
    oracle = make()
    for part in oracle.parts:
        test = set(load_task(tmp_path / "tasks" / f"{part.dataset}.yaml").splits().test.folded())
        assert set(part.texts) == {"unlabelled", "labelled", "validation"}
        assert not any(test & set(examples.folded()) for examples in part.texts.values())
    assert oracle.reference(oracle.pool()[0]) == {}


def test_a_task_without_unlabelled_texts_is_refused(tmp_path, home):
    files = tiny_chain.task_files(tmp_path, rows=240)
    with pytest.raises(ValueError, match="no unlabelled text is left with k=8, n=0"):
        task_texts(load_task(files["mood"]), 8, 0, 32, 40, 0)
