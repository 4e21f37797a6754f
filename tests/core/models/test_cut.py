import copy

import pytest
import torch
from transformers import Qwen2Config, Qwen2Model

from core.models.cut import LayerCut, cut, shape_of
from core.models.layers import first_layers
from tests import tiny_models

BERT, LLAMA = tiny_models.encoder(), tiny_models.causal()


def outputs(encoder):
    return encoder.embed(tiny_models.TEXTS, dtype="float32")


def logits(model):
    ids = torch.arange(5, 17).reshape(2, 6)
    with torch.no_grad():
        return model(input_ids=ids, use_cache=True).logits


def test_the_whole_cut_is_the_original():
    whole = [LayerCut(i, 2, 32) for i in range(3)]
    small = cut(BERT.backbone, whole)
    ids = torch.arange(5, 17).reshape(2, 6)
    with torch.no_grad():
        assert torch.equal(small(ids).last_hidden_state, BERT.backbone(ids).last_hidden_state)
    assert torch.equal(logits(cut(LLAMA.model, whole)), logits(LLAMA.model))


def test_the_original_is_not_changed():
    before = copy.deepcopy(BERT.backbone.state_dict())
    cut(BERT.backbone, [LayerCut(0, 1, 8), LayerCut(2, 2, 16)])
    after = BERT.backbone.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert shape_of(BERT.backbone.config)[0] == 3


def test_a_cut_has_the_stated_shape_and_runs():
    small = cut(BERT.backbone, [LayerCut(0, 1, 8), LayerCut(2, 2, 16)])
    first, second = small.encoder.layer
    assert first.attention.self.query.weight.shape == (8, 16)
    assert first.intermediate.dense.weight.shape == (8, 16)
    assert first.output.dense.weight.shape == (16, 8)
    assert second.attention.output.dense.weight.shape == (16, 16)
    assert small.config.num_hidden_layers == 2
    out = small(torch.arange(5, 17).reshape(2, 6)).last_hidden_state
    assert out.shape == (2, 6, 16)
    out.sum().backward()
    assert all(p.grad is not None for p in small.encoder.parameters())


def test_a_decoder_keeps_key_value_groups_whole():
    small = cut(LLAMA.model, [LayerCut(1, 2, 8), LayerCut(2, 2, 32)])
    assert small.model.layers[0].mlp.gate_proj.weight.shape == (8, 16)
    assert [layer.self_attn.layer_idx for layer in small.model.layers] == [0, 1]
    assert torch.isfinite(logits(small)).all()
    with pytest.raises(ValueError, match="multiples of 2"):
        cut(LLAMA.model, [LayerCut(1, 1, 8)])


def test_neurons_and_heads_without_weight_go_first():
    """Cutting what has no effect changes nothing."""
    model = copy.deepcopy(BERT.backbone)
    layer = model.encoder.layer[1]
    with torch.no_grad():
        layer.output.dense.weight[:, 1::2] = 0
        layer.attention.output.dense.weight[:, :8] = 0
    small = cut(model, [LayerCut(0, 2, 32), LayerCut(1, 1, 16), LayerCut(2, 2, 32)])
    ids = torch.arange(5, 17).reshape(2, 6)
    with torch.no_grad():
        torch.testing.assert_close(small(ids).last_hidden_state, model(ids).last_hidden_state)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "at least one"),
        ([LayerCut(2, 2, 8), LayerCut(0, 2, 8)], "ascending"),
        ([LayerCut(0, 2, 8), LayerCut(0, 2, 8)], "ascending"),
        ([LayerCut(3, 2, 8)], r"0\.\.2"),
        ([LayerCut(0, 3, 8)], "3 heads"),
        ([LayerCut(0, 2, 33)], "33 feed-forward neurons"),
    ],
)
def test_impossible_cuts_name_the_rule(layers, message):
    with pytest.raises(ValueError, match=message):
        cut(BERT.backbone, layers)


def test_unknown_families_are_refused():
    model = copy.deepcopy(BERT.backbone)
    model.config.model_type = "mpnet"
    with pytest.raises(ValueError, match="'mpnet' cannot be cut"):
        cut(model, [LayerCut(0, 2, 8)])


def test_what_a_configuration_lists_of_each_layer_is_cut_too(tmp_path):
    """Qwen2 chooses each layer's attention mask by such a list, and its configuration is refused where it is longer."""
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4}
    config = Qwen2Config(
        **sizes,
        num_attention_heads=2,
        num_key_value_heads=2,
        use_sliding_window=True,
        sliding_window=2,
        max_window_layers=2,
    )
    torch.manual_seed(0)
    model = Qwen2Model(config).eval()
    small = cut(model, [LayerCut(1, 2, 32), LayerCut(3, 2, 32)])
    assert small.config.layer_types == ["full_attention", "sliding_attention"]
    ids = torch.arange(5, 17).reshape(1, 12)
    skipped = copy.deepcopy(model)
    for unused in (0, 2):
        skipped.layers[unused].forward = lambda hidden_states, *args, **kwargs: hidden_states
    with torch.no_grad():
        assert torch.allclose(small(ids).last_hidden_state, skipped(ids).last_hidden_state, atol=1e-6)
    small.save_pretrained(tmp_path)
    with torch.no_grad():
        read = Qwen2Model.from_pretrained(tmp_path).eval()
        assert torch.allclose(read(ids).last_hidden_state, small(ids).last_hidden_state, atol=1e-6)


def test_first_layers_keep_the_first_of_what_is_listed():
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    config = Qwen2Config(num_hidden_layers=4, use_sliding_window=True, max_window_layers=1, **sizes)
    small = first_layers(Qwen2Model(config), 2)
    assert small.config.layer_types == config.layer_types[:2]
    assert len(config.layer_types) == 4
    assert Qwen2Config(**small.config.to_dict()).num_hidden_layers == 2
