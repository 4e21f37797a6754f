import pytest
from transformers import AutoModel

from core.chain.structures import SMALLEST, equal_size, first_layers, weights, widths_space
from core.models.cut import cut
from core.nas.spaces.transformer_student import TransformerStudent
from tests import tiny_models as tiny


class MiniLM:
    """The numbers of MiniLM-L6's configuration."""

    model_type = "bert"
    num_hidden_layers, num_attention_heads, hidden_size, intermediate_size, vocab_size = 6, 12, 384, 1536, 30_522


def test_all_are_as_large_as_the_first_layers_and_no_larger():
    space = widths_space(MiniLM)
    cells = equal_size(space, 3)
    reference = weights(space, first_layers(space, 3))
    assert cells[0] == first_layers(space, 3)
    assert len(set(cells)) == len(cells) == 20 + 15 + 6 + 1  # three, four, five and six of six layers
    assert all(SMALLEST * reference <= weights(space, c) <= reference for c in cells)
    assert {len([x for x in c.layers if x]) for c in cells} == {3, 4, 5, 6}
    for cell in cells:
        space.check(cell)


def test_structures_open_with_transformers_alone(tmp_path):
    model = tiny.encoder().backbone
    space = widths_space(model.config)
    for number, cell in enumerate(equal_size(space, 2)):
        small = cut(model, space.cuts(cell))
        small.config.intermediate_size = next(layer[1] for layer in cell.layers if layer)
        small.save_pretrained(tmp_path / str(number))
        again = AutoModel.from_pretrained(tmp_path / str(number), add_pooling_layer=False)
        assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in small.named_parameters()}


@pytest.mark.parametrize("keep", [0, 6, 9])
def test_a_size_that_is_no_part_of_the_original_is_refused(keep):
    with pytest.raises(ValueError, match="the original has 6 layers; give 1 to 5"):
        first_layers(widths_space(MiniLM), keep)


def test_families_that_cannot_be_cut_are_refused():
    class Other(MiniLM):
        model_type = "mpnet"

    with pytest.raises(ValueError, match="'mpnet' cannot be cut"):
        widths_space(Other)


def test_the_space_is_the_registered_one():
    assert isinstance(widths_space(MiniLM), TransformerStudent)
