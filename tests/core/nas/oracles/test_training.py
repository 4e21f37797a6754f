import numpy as np
import pytest
import torch

from core.nas.oracles import get_oracle
from core.nas.oracles import training as module
from core.nas.oracles.training import TrainingOracle, _Best

QUICK = {"epochs": 3, "train_examples": 120, "macro": {"width": 4, "stages": 1}}


@pytest.fixture
def oracle(home):
    return get_oracle("training", space="nb201", settings=QUICK)


def test_a_cell_learns_digits(home):
    more = {"epochs": 10, "train_examples": 600, "patience": 10, "batch_size": 32, "lr": 0.1, "macro": {"width": 8}}
    oracle = get_oracle("training", space="nb201", settings=more)
    answer = oracle.query(oracle.space.parse("333333"))
    assert answer.value > 60  # 10 is chance
    assert abs(oracle.reference(oracle.space.parse("333333"))["test"] - answer.value) < 12
    assert answer.cost_seconds > 0
    assert answer.metrics["params"] > 1000


def test_the_same_cell_is_trained_once(oracle, monkeypatch):
    cell = oracle.space.parse("303131")
    value = oracle.query(cell)
    monkeypatch.setattr(TrainingOracle, "_train", lambda *a: pytest.fail("trained again"))
    again = get_oracle("training", space="nb201", settings=QUICK)
    cached = again.query(cell)
    assert (cached.value, cached.cost_seconds) == (value.value, value.cost_seconds)
    assert again.queries == again.budget.spent == 1  # still a query of that run


def test_trained_again_a_cell_starts_from_other_weights_and_is_reported_by_the_mean(oracle):
    cell = oracle.space.parse("323131")
    first, second = oracle.query(cell), oracle.again(cell)
    assert oracle.queries == oracle.budget.spent == 2
    assert (first.value, first.metrics["train_accuracy"]) != (second.value, second.metrics["train_accuracy"])
    assert oracle.reference(cell)["valid"] == pytest.approx((first.value + second.value) / 2)
    oracle.again(cell)
    with pytest.raises(ValueError, match="all 3 runs"):
        oracle.again(cell)


def test_a_killed_training_continues_identically(oracle, monkeypatch):
    cell = oracle.space.parse("323131")
    whole = get_oracle("training", space="nb201", settings=QUICK).query(cell)
    for folder in (oracle.cache.root / "nas-training").glob("*"):
        if folder.is_dir():
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
    calls = []
    original = _Best.__call__

    def killed(self, epoch):
        calls.append(epoch)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, epoch)

    from core.models import train as loop

    monkeypatch.setattr(_Best, "__call__", killed)
    plain = loop.TrainConfig
    monkeypatch.setattr(loop, "TrainConfig", lambda **more: plain(**{**more, "checkpoint_s": 0}))
    with pytest.raises(KeyboardInterrupt):
        oracle.query(cell)
    assert oracle.queries == 0
    resumed = oracle.query(cell)
    assert calls[0] == 1
    assert 1 not in calls[2:]  # the first epoch was not repeated
    assert (resumed.value, resumed.metrics["train_accuracy"]) == (whole.value, whole.metrics["train_accuracy"])


def test_early_stopping_answers_with_the_best_epoch():
    network = torch.nn.Linear(2, 2)
    hook = _Best(network, (torch.randn(6, 2), torch.zeros(6, dtype=torch.long)), patience=2)
    losses = iter([1.0, 0.5, 0.7, 0.6])
    states = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_evaluate", lambda *a: (next(losses), 0.0))
        for epoch in range(1, 5):
            with torch.no_grad():
                network.weight.fill_(epoch)
            states.append(hook(epoch))
    assert states == [False, False, False, True]
    hook.restore()
    assert (network.weight == 2).all()


def test_the_rest_of_the_training_images_is_validated_on(oracle):
    plain = get_oracle("training", space="nb201", settings={**QUICK, "train_examples": None})
    total = len(plain.parts["train"][1]) + len(plain.parts["validation"][1])
    assert len(oracle.parts["train"][1]) == 120
    assert len(oracle.parts["validation"][1]) == total - 120
    assert np.array_equal(oracle.parts["test"][1], plain.parts["test"][1])


def test_own_images_from_a_folder_description(tmp_path, home):
    from PIL import Image

    rng = np.random.default_rng(0)
    rows = ["image,label"]
    for i in range(60):
        pixels = rng.integers(0, 60, (12, 12, 3), dtype=np.uint8)
        pixels[:, :6] += np.uint8(150 * (i % 2))
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        rows.append(f"{tmp_path / f'{i}.png'},{'ab'[i % 2]}")
    (tmp_path / "images.csv").write_text("\n".join(rows))
    task = tmp_path / "mine.yaml"
    task.write_text(
        f"version: 1\nkind: image\nsource: {{path: {tmp_path / 'images.csv'}}}\nlabels: [a, b]\nmetric: accuracy\n"
        "image_shape: [3, 8, 8]\nsplits: {validation: 0.2, test: 0.2}\n"
    )
    oracle = get_oracle(
        "training", space="nb201", data=str(task), settings={"epochs": 8, "batch_size": 8, "macro": {"width": 8}}
    )
    answer = oracle.query(oracle.space.parse("333131"))
    assert answer.value > 70
    assert oracle.dataset == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": "wine"}, "of kind table; training cells needs images"),
        ({"data": "digit"}, "did you mean 'digits'"),
        ({"settings": {"macro": {"stages": 5}}}, "5 stages need images"),
        ({"settings": {"train_examples": 5000}}, "5000 training images of a query, but digits has"),
        ({"settings": {"epoch": 3}}, "did you mean 'epochs'"),
        ({"space": "nasbench-graph"}, "no cell network|unknown cell network"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_work(home, arguments, message):
    with pytest.raises(ValueError, match=message):
        get_oracle("training", **arguments)


@pytest.mark.gpu
def test_the_same_code_trains_on_a_gpu(home):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    oracle = get_oracle("training", space="nb101", settings={**QUICK, "device": "cuda"})
    assert oracle.query(oracle.space.parse("101 conv3x3-bn-relu")).value > 5
