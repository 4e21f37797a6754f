import numpy as np
import pytest
from transformers import AutoModel, ElectraConfig, LlamaConfig, Qwen2Config

from core.nas.oracles import get_oracle
from core.nas.spaces.transformer_student import StudentShape, TransformerStudent
from tests import tiny_models
from tests.core.nas.oracles.files import tiny_student

SIZES = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    return tiny_student(tmp_path_factory.mktemp("student"))


def test_space_follows_the_model():
    space = TransformerStudent.of(tiny_models.bert_config(), (0.5, 1), (0.25, 1))
    assert (space.layers, space.heads, space.neurons, space.width) == (3, (1, 2), (8, 32), 16)
    grouped = TransformerStudent.of(tiny_models.causal().model.config, (0.5, 1))
    assert grouped.heads == (2,)  # one key-value head with its two queries
    assert grouped.gated


def test_weights_are_counted_as_the_model_has_them():
    model = tiny_models.encoder().backbone
    space = TransformerStudent.of(model.config)
    matrices = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2 and "embeddings" not in n)
    words = model.embeddings.word_embeddings.weight.numel()
    assert space.size_features(space.whole())["params"] == matrices + words


@pytest.mark.parametrize(
    "config",
    [
        Qwen2Config(**SIZES, num_attention_heads=2, num_key_value_heads=2),  # gated, each head with its own keys
        LlamaConfig(**SIZES, num_attention_heads=2, num_key_value_heads=1, head_dim=16),  # wider inside than outside
        ElectraConfig(**SIZES, num_attention_heads=2, embedding_size=8),  # a map between words and layers
    ],
    ids=lambda config: config.model_type,
)
def test_weights_are_counted_in_every_family(config):
    model = AutoModel.from_config(config)
    space = TransformerStudent.of(config)
    tables = ("position_embeddings", "token_type_embeddings")
    counted = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2 and not any(t in n for t in tables))
    assert space.size_features(space.whole())["params"] == counted


def test_a_small_space_is_enumerated():
    space = TransformerStudent(2, (1, 2), (8, 16), 16)
    cells = list(space.enumerate())
    assert len({space.key(c) for c in cells}) == len(cells) == space.size == 24
    for cell in cells:
        space.check(cell)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (StudentShape((None,) * 6), "at least one layer"),
        (StudentShape(((12, 1536),)), "has 6 layers, the genotype describes 1"),
        (StudentShape((*[None] * 5, (5, 1536))), r"layer 5 is \(5, 1536\)"),
    ],
)
def test_bad_shapes_name_the_rule(shape, message):
    with pytest.raises(ValueError, match=message):
        TransformerStudent().check(shape)


def test_students_are_distilled_cut_by_cut(arguments, home):
    oracle = get_oracle("student", **arguments)
    whole, half = oracle.space.whole(), oracle.space.parse("- 1x8 2x32")
    best, small = oracle.query(whole), oracle.query(half)
    assert best.metrics["agreement"] == pytest.approx(1, abs=0.05)  # nothing was cut, nothing to learn
    assert small.metrics["agreement"] < best.metrics["agreement"]
    assert small.metrics["params"] < best.metrics["params"]
    reference = oracle.reference(half)
    assert set(reference) == {"valid", "test", "original_valid", "original_test"}
    with pytest.raises(ValueError, match="not queried"):
        oracle.reference(oracle.space.parse("- - 1x8"))


def test_distillation_brings_the_student_closer(arguments, home):
    more = {**arguments, "settings": {**arguments["settings"], "epochs": 12, "lr": 3e-3}}
    short, long = get_oracle("student", **arguments), get_oracle("student", **more)
    shape = short.space.parse("1x8 - 1x8")
    assert long.query(shape).metrics["agreement"] > short.query(shape).metrics["agreement"]


def test_models_that_cannot_be_cut_are_refused_before_work(arguments, home, tmp_path):
    from transformers import MPNetConfig, MPNetModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = MPNetConfig(vocab_size=60, max_position_embeddings=66, **sizes)
    model = MPNetModel(config, add_pooling_layer=False)
    model.save_pretrained(tmp_path)
    tiny_models.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'mpnet' cannot be cut"):
        get_oracle("student", **{**arguments, "model": str(tmp_path)})


def test_too_few_texts_are_refused(arguments, home):
    with pytest.raises(ValueError, match="train texts, 5030 are wanted"):
        get_oracle("student", **{**arguments, "settings": {**arguments["settings"], "unlabelled": 5000}})


def test_samples_of_texts_do_not_overlap(arguments, home):
    oracle = get_oracle("student", **arguments)
    keys = {name: set(part.folded()) for name, part in oracle.texts.items()}
    assert not keys["unlabelled"] & keys["labelled"]
    assert not (keys["unlabelled"] | keys["labelled"]) & (keys["validation"] | keys["test"])
    assert np.isfinite(oracle.query(oracle.space.parse("- - 1x8")).value)


def test_a_student_of_the_real_minilm(home):
    """The default model and task, end to end, on very few texts."""
    from core.data.assets import AssetError

    quick = {"unlabelled": 32, "labelled": 64, "judged": 60, "epochs": 1, "max_length": 32}
    try:
        oracle = get_oracle("student", settings=quick)
    except AssetError as error:
        pytest.skip(str(error))
    assert (oracle.space.layers, oracle.space.heads, oracle.space.neurons) == (6, (4, 8, 12), (384, 768, 1536))
    small = oracle.query(oracle.space.parse("8x768 - - 12x1536 - -"))
    assert 30 < small.value < 95
    assert 0.1 < small.metrics["agreement"] < 0.95
    assert oracle.reference(oracle.space.parse("8x768 - - 12x1536 - -"))["original_test"] > 40
