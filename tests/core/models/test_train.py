import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from core.models.train import TrainConfig, TrainingDiverged, epoch_batches, learning_rate_factor, train
from core.state import StateError
from core.transfer.budget import Budget

X = torch.linspace(-1, 1, 40).unsqueeze(1).repeat(1, 3)
Y = (X[:, 0] > 0).long()
LENGTHS = np.arange(40) % 7


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.3), nn.Linear(8, 2))


def loss(model, indices):
    return nn.functional.cross_entropy(model(X[indices]).float(), Y[indices])


def state(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


CONFIG = TrainConfig(lr=1e-2, epochs=4, batch_size=8, precision="float32")


def test_learns_counts_and_leaves_the_global_rng():
    model, budget = network(), Budget("train_steps")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    report = train(model, loss, LENGTHS, CONFIG.model_copy(update={"epochs": 30}), seed=1, budget=budget)
    assert torch.equal(before, torch.get_rng_state())
    assert report.losses[-1] < 0.5 * report.losses[0]
    assert budget.counts["train_steps"] == 150
    assert budget.counts["train_examples"] == 30 * 40 == report.examples


def test_same_seed_same_model_whatever_the_global_rng():
    models = [network(), network(), network()]
    for model, seed, noise in zip(models, (1, 1, 2), (0, 99, 0)):
        torch.manual_seed(noise)
        train(model, loss, LENGTHS, CONFIG, seed=seed)
    assert torch.equal(state(models[0]), state(models[1]))
    assert not torch.equal(state(models[0]), state(models[2]))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("stop_at", [3, 5, 8])  # in an epoch, at its end, in the next one
def test_continues_identically_from_a_checkpoint(tmp_path, optimizer, stop_at):
    config = CONFIG.model_copy(update={"optimizer": optimizer, "checkpoint_s": 0.0})
    whole = network()
    train(whole, loss, LENGTHS, config, seed=3)

    class Killed(Exception):
        pass

    calls = {"n": 0}

    def killed(model, indices):
        calls["n"] += 1
        if calls["n"] > stop_at:
            raise Killed
        return loss(model, indices)

    path = tmp_path / "run.ckpt"
    with pytest.raises(Killed):
        train(network(), killed, LENGTHS, config, seed=3, checkpoint=path)
    again, budget = network(seed=7), Budget("train_steps")  # its weights come from the checkpoint
    report = train(again, loss, LENGTHS, config, seed=3, checkpoint=path, budget=budget)
    assert budget.counts == {"train_steps": 20, "train_examples": report.examples}  # as of a run that was not killed
    assert torch.equal(state(whole), state(again))
    assert report.steps == 20
    assert len(report.losses) == 20


def test_checkpoint_of_another_run_or_damaged_is_refused(tmp_path):
    path = tmp_path / "run.ckpt"
    train(network(), loss, LENGTHS, CONFIG, seed=3, checkpoint=path)
    with pytest.raises(ValueError, match="belongs to another training"):
        train(network(), loss, LENGTHS, CONFIG, seed=4, checkpoint=path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(StateError, match="damaged"):
        train(network(), loss, LENGTHS, CONFIG, seed=3, checkpoint=path)


def test_nan_loss_stops_says_where_and_keeps_the_last_good_state():
    model, good = network(), network()
    train(good, loss, LENGTHS, CONFIG.model_copy(update={"schedule": "constant", "warmup": 0.0}), seed=1)
    seen = []

    def poisoned(net, indices):
        seen.append(state(net).clone())
        return loss(net, indices) * (float("nan") if len(seen) == 7 else 1.0)

    with pytest.raises(TrainingDiverged, match=r"step 7 of 20 \(epoch 2.*after step 6"):
        train(model, poisoned, LENGTHS, CONFIG, seed=1)
    assert torch.equal(state(model), seen[6])
    assert torch.isfinite(state(model)).all()


def test_infinite_gradient_is_caught_before_the_step():
    model = network()

    def exploding(net, indices):
        return (net(X[indices]).sum() * 1e38) * 1e38 * 0 + (net[0].weight * 1e30).pow(2).sum().sqrt() * 1e30

    with pytest.raises(TrainingDiverged, match="step 1"):
        train(model, exploding, LENGTHS, CONFIG, seed=1)
    assert torch.equal(state(model), state(network()))


def test_accumulated_gradient_equals_whole_batch():
    one, parts = network(), network()
    config = CONFIG.model_copy(update={"dropout": False})
    train(one, loss, LENGTHS, config, seed=1)
    train(parts, loss, LENGTHS, config.model_copy(update={"accumulate": 4}), seed=1)
    assert torch.allclose(state(one), state(parts), atol=1e-6)


def test_modes_are_restored_and_frozen_parameters_stay():
    model = network().eval()
    model[0].requires_grad_(False)
    first = model[0].weight.clone()
    train(model, loss, LENGTHS, CONFIG, seed=1)
    assert not model.training
    assert not model[1].training
    assert torch.equal(first, model[0].weight)
    for p in model.parameters():
        p.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        train(model, loss, LENGTHS, CONFIG, seed=1)


def test_batches_cover_an_epoch_and_are_of_similar_length():
    lengths = np.arange(1000) % 97
    batches = epoch_batches(lengths, 10, (1, 2))
    assert sorted(np.concatenate(batches)) == list(range(1000))
    assert np.mean([np.ptp(lengths[b]) for b in batches]) < 10


@pytest.mark.parametrize(("schedule", "end"), [("constant", 1.0), ("linear", 1 / 90), ("cosine", 0.0003)])
def test_schedules(schedule, end):
    config = TrainConfig(steps=100, schedule=schedule)
    factors = [learning_rate_factor(s, 100, config) for s in range(100)]
    assert factors[0] == pytest.approx(1 / 11)
    assert max(factors) == factors[10] == 1.0
    assert factors[-1] == pytest.approx(end, abs=1e-3)


def test_configuration_errors():
    with pytest.raises(ValueError, match="exactly one of epochs and steps"):
        TrainConfig()
    with pytest.raises(ValueError, match="did you mean 'batch_size'"):
        TrainConfig(epochs=1, batchsize=3)
    with pytest.raises(ValueError, match="no examples"):
        train(network(), loss, 0, CONFIG, seed=1)


PROCESS = """
import sys
import torch
from tests.core.models.test_train import CONFIG, LENGTHS, loss, network, state
from core.models.train import train
model = network()
report = train(model, loss, LENGTHS, CONFIG.model_copy(update={"dropout": False, "batch_size": 9}), seed=1)
torch.save((state(model), report.losses), sys.argv[1])
"""


def test_two_processes_take_the_steps_of_one(tmp_path):
    """Each process takes half of every batch (the last one is odd); losses and weights are those of one process."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    together = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    workers = []
    for rank in ("0", "1"):
        env = os.environ | together | {"RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", PROCESS, str(tmp_path / rank)]
        workers.append(subprocess.Popen(command, env=env, cwd=Path(__file__).parents[3]))
    assert [w.wait(timeout=280) for w in workers] == [0, 0]
    alone = network()
    report = train(alone, loss, LENGTHS, CONFIG.model_copy(update={"dropout": False, "batch_size": 9}), seed=1)
    for rank in ("0", "1"):
        weights, losses = torch.load(tmp_path / rank, weights_only=True)
        assert torch.allclose(weights, state(alone), atol=1e-6)
        np.testing.assert_allclose(losses, report.losses, atol=1e-6)
