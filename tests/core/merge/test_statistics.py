"""Gram matrices and Fisher diagonals: collected from a model, saved, merged by."""

import numpy as np
import pytest
import torch
from torch import nn

from core.merge.operators import ArraySource, make_group, merge_group
from core.merge.statistics import Statistics, check_statistics, fisher_diagonal, gram_matrices, read_statistic


class Tiny(nn.Module):
    def __init__(self, seed):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.embed = nn.utils.skip_init(nn.Embedding, 11, 6)
        self.body = nn.utils.skip_init(nn.Linear, 6, 5)
        self.head = nn.utils.skip_init(nn.Linear, 5, 3)
        with torch.no_grad():
            for p in self.parameters():
                p.normal_(generator=g)

    def forward(self, input_ids, attention_mask):
        h = torch.tanh(self.body(self.embed(input_ids))) * attention_mask.unsqueeze(-1)
        return self.head(h.sum(1))


def batches(seed=0, n=3):
    g = torch.Generator().manual_seed(seed)
    for _ in range(n):
        ids = torch.randint(0, 11, (4, 5), generator=g)
        mask = (torch.arange(5) < torch.randint(1, 6, (4, 1), generator=g)).long()
        yield {"input_ids": ids, "attention_mask": mask}


def test_gram_counts_real_tokens_only():
    model = Tiny(0)
    got = gram_matrices(model, batches())
    rows = torch.cat([model.embed(b["input_ids"])[b["attention_mask"].bool()] for b in batches()])
    assert got.examples == 12
    assert np.allclose(got.tensors["body.weight"], (rows.T @ rows / len(rows)).detach().numpy(), atol=1e-5)
    assert set(got.tensors) == {"body.weight", "head.weight"}
    assert got.tensors["head.weight"].shape == (5, 5)  # pooled inputs: as wide as the texts are long, yet not masked
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_fisher_is_exact_against_its_closed_form():
    model, batch = Tiny(1).double(), next(batches(n=1))
    got = fisher_diagonal(model, [batch], forward=lambda m, b: m(**b)).tensors["head.bias"]
    p = model(**batch).softmax(-1)
    expected = (p * (1 - p)).mean(0)  # sum_y p_y (1[c = y] - p_c)^2
    assert np.allclose(got, expected.detach().numpy(), rtol=1e-5)


def test_sampled_fisher_approaches_the_exact_one_and_is_seeded():
    model = Tiny(1)
    kw = {"forward": lambda m, b: m(**b)}
    exact = fisher_diagonal(model, batches(), **kw)
    many = fisher_diagonal(model, batches(), draws=300, seed=1, **kw)
    assert abs(many.norm / exact.norm - 1) < 0.2
    torch.manual_seed(5)
    again = fisher_diagonal(model, batches(), draws=2, seed=3, **kw)
    torch.manual_seed(6)
    assert again.norm == fisher_diagonal(model, batches(), draws=2, seed=3, **kw).norm
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_regmean_solves_the_least_squares_problem(tmp_path):
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((40, 6)) for _ in range(3)]
    weights = [rng.standard_normal((4, 6)).astype(np.float32) for _ in range(3)]
    each = []
    for i, x in enumerate(inputs):
        Statistics("gram", {"tensor": x.T @ x / len(x)}, 40).save(tmp_path / f"{i}.safetensors")
        each.append({"statistics": str(tmp_path / f"{i}.safetensors")})
    sources = [ArraySource(w) for w in weights]
    group = make_group("regmean", sources, per_model=each, shared={"off_diagonal": 1.0})
    a = np.concatenate(inputs)
    b = np.concatenate([x @ w.T for x, w in zip(inputs, weights, strict=True)])
    expected = np.linalg.lstsq(a, b, rcond=None)[0].T
    assert np.allclose(merge_group("regmean", group), expected, atol=1e-5)  # statistics are float32
    only_diagonal = make_group("regmean", sources, per_model=each, shared={"off_diagonal": 0.0})
    d = np.stack([np.square(x).mean(0) for x in inputs])
    expected = sum(w * g for w, g in zip(weights, d, strict=True)) / d.sum(0)
    assert np.allclose(merge_group("regmean", only_diagonal), expected, atol=1e-5)


def test_regmean_of_equal_models_is_the_model_even_where_no_input_reaches(tmp_path):
    x = np.zeros((5, 6))
    x[:, :2] = 1.0
    path = tmp_path / "s.safetensors"
    Statistics("gram", {"tensor": x.T @ x}, 5).save(path)
    w = np.arange(24, dtype=np.float32).reshape(4, 6)
    group = make_group("regmean", [ArraySource(w), ArraySource(w)], per_model=[{"statistics": str(path)}] * 2)
    assert np.allclose(merge_group("regmean", group), w)


def test_fisher_weights_and_missing_statistics(tmp_path):
    path = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    Statistics("fisher", {"tensor": np.array([3.0, 0.0])}, 1).save(path[0])
    Statistics("fisher", {"tensor": np.array([1.0, 0.0])}, 1).save(path[1])
    each = [{"statistics": str(p)} for p in path]
    sources = [ArraySource(np.array([1.0, 1.0])), ArraySource(np.array([5.0, 3.0]))]
    shared = {"normalize_fisher": False}
    assert np.allclose(merge_group("fisher", make_group("fisher", sources, per_model=each, shared=shared)), [2.0, 2.0])
    other = make_group("fisher", sources, per_model=each, name="not there")
    assert merge_group("fisher", other).tolist() == [3.0, 2.0]


def test_statistics_files_are_checked(tmp_path):
    path = tmp_path / "f.safetensors"
    Statistics("fisher", {"w": np.ones(2)}, 1).save(path)
    check_statistics(path, "fisher")
    assert read_statistic(path, "w").tolist() == [1.0, 1.0]
    assert read_statistic(path, "v") is None
    with pytest.raises(ValueError, match="expected 'gram'"):
        make_group("regmean", [ArraySource(np.ones(2))], per_model=[{"statistics": str(path)}])
    (tmp_path / "torn").write_bytes(path.read_bytes()[:20])
    for broken in (tmp_path / "torn", tmp_path / "absent"):
        with pytest.raises(ValueError, match="cannot be read"):
            check_statistics(broken, "gram")
