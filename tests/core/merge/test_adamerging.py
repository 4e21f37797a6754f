"""AdaMerging: it lowers entropy, counts its budget, resumes identically, and its file merges."""

import numpy as np
import pytest
import torch
from torch import nn

from core.merge import adamerging
from core.merge.adamerging import Coefficients, layer_of, learn_coefficients, read_coefficients
from core.merge.operators import ArraySource, make_group, merge_group
from core.state import StateError
from core.transfer.budget import Budget


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.utils.skip_init(nn.Linear, 4, 4) for _ in range(2))
        g = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in self.parameters():
                p.normal_(0, 0.5, generator=g)

    def forward(self, batch):
        h = batch["x"]
        for layer in self.layers:
            h = torch.tanh(layer(h))
        return h


def setting():
    g = torch.Generator().manual_seed(1)
    body = Body()
    deltas = [{n: 0.5 * torch.randn(p.shape, generator=g) for n, p in body.named_parameters()} for _ in range(2)]
    heads = [torch.randn(4, 3, generator=g) for _ in range(2)]

    def batches(step, task):
        return {"x": torch.randn(8, 4, generator=torch.Generator().manual_seed(100 * step + task))}

    return body, deltas, batches, lambda merged, task, batch: merged(batch) @ heads[task]


def learn(**kw):
    body, deltas, batches, forward = setting()
    return learn_coefficients(body, deltas, batches, forward, tasks=2, learning_rate=0.02, **kw)


@pytest.mark.parametrize(("granularity", "distinct"), [("task", 1), ("layer", 2), ("tensor", 4)])
def test_entropy_falls_and_budget_is_counted(granularity, distinct):
    budget = Budget("task_examples")
    learnt = learn(granularity=granularity, steps=60, budget=budget)
    assert np.mean(learnt.entropies[-10:]) < np.mean(learnt.entropies[:10]) - 0.05
    assert budget.spent == 60 * 2 * 8
    assert len({tuple(v) for v in learnt.values.values()}) == distinct


def test_a_killed_run_continues_identically(tmp_path, monkeypatch):
    monkeypatch.setattr(adamerging, "CHECKPOINT_EVERY", 7)
    whole = learn(steps=30)
    path = tmp_path / "state"
    body, deltas, batches, forward = setting()

    def killed(step, task):
        if step == 17:
            raise KeyboardInterrupt
        return batches(step, task)

    with pytest.raises(KeyboardInterrupt):
        learn_coefficients(body, deltas, killed, forward, tasks=2, learning_rate=0.02, steps=30, checkpoint=path)
    torch.manual_seed(9)  # the global state does not matter
    resumed = learn(steps=30, checkpoint=path)
    assert resumed == whole
    with pytest.raises(StateError, match="another set"):
        learn(steps=30, checkpoint=path, granularity="task")


def test_the_model_is_not_changed_and_bad_settings_are_named():
    body, deltas, batches, forward = setting()
    before = [p.detach().clone() for p in body.parameters()]
    learn_coefficients(body, deltas, batches, forward, tasks=2, steps=2)
    assert all(torch.equal(a, b) for a, b in zip(before, body.parameters(), strict=True))
    with pytest.raises(ValueError, match="allowed: task, layer, tensor"):
        learn_coefficients(body, deltas, batches, forward, tasks=2, granularity="row")
    with pytest.raises(ValueError, match="no delta"):
        learn_coefficients(body, [{}], batches, forward, tasks=2)


def test_learnt_file_merges(tmp_path):
    path = tmp_path / "c.json"
    Coefficients({"tensor": [0.5, -1.0]}, []).save(path)
    assert read_coefficients(path) == {"tensor": [0.5, -1.0]}
    base = np.zeros(3)
    experts = [ArraySource(np.array([2.0, 4.0, 6.0])), ArraySource(np.array([1.0, 1.0, 1.0]))]
    group = make_group("adamerging", experts, ArraySource(base), shared={"coefficients": str(path)})
    assert merge_group("adamerging", group).tolist() == [0.0, 1.0, 2.0]
    with pytest.raises(ValueError, match="coefficients for"):
        make_group("adamerging", experts[:1], ArraySource(base), shared={"coefficients": str(path)})
    path.write_text("[]")
    with pytest.raises(ValueError, match="no AdaMerging coefficients"):
        make_group("adamerging", experts, ArraySource(base), shared={"coefficients": str(path)})


def test_layer_names():
    assert layer_of("encoder.layer.3.attention.self.query.weight") == "encoder.layer.3"
    assert layer_of("embeddings.word_embeddings.weight") == "other"
