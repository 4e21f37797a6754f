import numpy as np
import pytest

from core.nas.draw import draw, positions, save
from core.nas.spaces import SPACES, get_space


@pytest.mark.parametrize("name", SPACES.names())
def test_cells_of_every_space_are_drawn(name, tmp_path):
    space, rng = get_space(name), np.random.default_rng(2)
    cells = [space.sample(rng) for _ in range(2)]
    path = save(tmp_path / f"{name}.png", space, cells, ["first", "second"])
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 5_000


@pytest.mark.parametrize("name", SPACES.names())
def test_arrows_run_to_the_right_and_boxes_do_not_overlap(name):
    space, rng = get_space(name), np.random.default_rng(3)
    for _ in range(10):
        graph = space.graph(space.sample(rng))
        layout = positions(graph)
        assert set(layout) == set(graph)
        assert len(set(layout.values())) == len(graph)
        assert all(layout[a][0] < layout[b][0] for a, b in graph.edges)
        assert positions(graph) == layout


def test_a_figure_names_operations_and_titles():
    space = get_space("nb201")
    figure = draw(space, [space.parse("421211")], ["93.4 %"])
    texts = {t.get_text() for t in figure.axes[0].texts}
    assert {"input", "output", "+", "avgpool3x3", "conv1x1", "skip"} <= texts
    assert figure.axes[0].get_title() == "93.4 %"


def test_bad_requests_are_refused(tmp_path):
    space = get_space("nb201")
    with pytest.raises(ValueError, match="0 cells"):
        draw(space, [])
    with pytest.raises(ValueError, match="1 cells and 2 titles"):
        draw(space, [space.parse("421211")], ["a", "b"])
    with pytest.raises(ValueError, match=r"\.png, \.svg or \.pdf"):
        save(tmp_path / "cell.bmp", space, [space.parse("421211")])
