import numpy as np
import pytest
import torch

from core.nas.networks import NETWORKS, Macro, build_network
from core.nas.networks.darts import DartsModule
from core.nas.networks.nb101 import NB101Module
from core.nas.networks.nb201 import NB201Module
from core.nas.spaces import get_space
from core.nas.spaces.darts import _cell, _preprocess
from core.nas.spaces.nb101 import NB101, _module_weights, matrix_of

SMALL = Macro(width=8, stages=2, cells=1)
NAMES = ("darts", "nb101", "nb201")


def weights(module):
    return sum(p.numel() for p in module.parameters())


def samples(name, count=12):
    space, rng = get_space(name), np.random.default_rng(5)
    return space, [space.sample(rng) for _ in range(count)]


def test_the_three_image_spaces_have_networks():
    assert set(NAMES) <= set(NETWORKS.names())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", [8, 9])
def test_any_cell_becomes_a_network_that_learns(name, side):
    space, cells = samples(name, 6)
    images = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(0))
    for cell in cells:
        network = build_network(space, cell, SMALL, channels=3, classes=5, seed=0)
        logits = network(images)
        assert logits.shape == (4, 5)
        logits.square().mean().backward()
        head = list(network.classifier.parameters())
        assert all(p.grad is not None for p in head)
        assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", NAMES)
def test_weights_come_from_the_seed_alone(name):
    space, (cell, *_) = samples(name)
    torch.manual_seed(123)
    state = torch.random.get_rng_state()
    a, b, c = (build_network(space, cell, SMALL, 1, 3, seed) for seed in (7, 7, 8))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))
    assert any(not torch.equal(x, y) for x, y in zip(a.state_dict().values(), c.state_dict().values()))


def test_nb101_modules_have_the_weights_that_the_benchmark_counts():
    _, cells = samples("nb101", 40)
    for cell in cells:
        for into, out in ((16, 16), (16, 33)):
            module = NB101Module(cell, into, out)
            assert weights(module) == sum(_module_weights(matrix_of(cell), cell.ops, into, out))
            assert module(torch.randn(2, into, 4, 4)).shape == (2, out, 4, 4)


def test_nb101_sums_projections_and_states():
    """input -> max-pool -> output, and input -> output: the output is their sum."""
    cell = NB101().parse("111 maxpool3x3")
    module = NB101Module(cell, 4, 4).eval()
    images = torch.randn(1, 4, 5, 5)
    pooled = torch.nn.functional.max_pool2d(module.projections["1"](images), 3, 1, 1)
    torch.testing.assert_close(module(images), pooled + module.projections["2"](images))


def test_nb201_cell_computes_its_string():
    space = get_space("nb201")
    images = torch.randn(2, 4, 6, 6)
    skip_all = NB201Module(space.parse("111111"), 4)
    torch.testing.assert_close(skip_all(images), 4 * images)  # node 3 = x + x + (x + x)
    assert torch.equal(NB201Module(space.parse("000000"), 4)(images), torch.zeros_like(images))
    mixed = NB201Module(space.parse("200413"), 4).eval()  # 1<-0 conv1x1; 3<-0 pool; 3<-1 skip; 3<-2 conv3x3 of nothing
    first = mixed.operations[0](images)
    pooled = torch.nn.functional.avg_pool2d(images, 3, 1, 1, count_include_pad=False)
    torch.testing.assert_close(mixed(images), pooled + first + mixed.operations[3](torch.zeros_like(images)))


@pytest.mark.parametrize(("reduction", "after"), [(False, False), (True, False), (False, True)])
def test_darts_cells_have_the_weights_that_the_space_counts(reduction, after):
    _, cells = samples("darts", 10)
    for cell in cells:
        edges = cell.reduce if reduction else cell.normal
        module = DartsModule(edges, 12, 20, 8, reduction, after)
        expected = _preprocess(12, 20, 8, 8, after)[0] + _cell(edges, 8, 8, reduction)[0]
        assert weights(module) == expected
        before = torch.randn(2, 12, 16, 16) if after else torch.randn(2, 12, 8, 8)
        side = 4 if reduction else 8
        assert module(before, torch.randn(2, 20, 8, 8)).shape == (2, 32, side, side)


def test_images_too_small_for_the_stages_are_refused():
    with pytest.raises(ValueError, match=r"4 stages need images .* at least 16 pixels"):
        Macro(stages=4).check_images((1, 8, 8))


def test_spaces_without_a_network_are_refused():
    space, (cell, *_) = samples("nasbench-graph")
    with pytest.raises(ValueError, match="unknown cell network 'nasbench-graph'"):
        build_network(space, cell, SMALL, 1, 2, 0)
