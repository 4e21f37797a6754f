"""Portable sources, latent spaces, maps, the trusted process."""

import numpy as np
import pytest
import torch

from core.nas.arena import Arena
from core.nas.encoder import Corpus, EncoderConfig, LatentSpace, kendall, train_latent_space
from core.nas.experts import size_expert, source_expert
from core.nas.mapping import MAPPINGS
from core.nas.predictors.forest import Forest
from core.nas.predictors.gaussian import Hypothesis, TrustedProcess
from core.nas.source import Source, learn_source
from core.nas.spaces import get_space
from core.state import StateError, save_checkpoint

TINY = EncoderConfig(width=32, feedforward=32, heads=2, layers=1, latent=8, steps=20, rank_steps=10, every=10, lr=3e-3)


@pytest.fixture(scope="module")
def arena():
    space = get_space("nb201")
    cells = list(space.enumerate())[::50]
    return Arena(space, cells)


@pytest.fixture(scope="module")
def labels(arena):
    return np.array([float(sum(o == 3 for o in c.ops)) for c in arena.cells])


def test_exported_trees_predict_like_scikit_learn(arena, labels):
    from sklearn.ensemble import ExtraTreesRegressor

    ours = Forest.fit(arena.raw, labels, seed=3, trees=10)
    model = ExtraTreesRegressor(10, min_samples_leaf=10, max_features=0.2, random_state=3).fit(arena.raw, labels)
    assert np.allclose(ours.predict(arena.raw), model.predict(arena.raw), atol=1e-5)


def test_a_source_is_one_file_that_says_the_same_elsewhere(arena, labels, tmp_path):
    source = learn_source("s", arena, arena.cells, labels)
    source.save(tmp_path / "source")
    read = Source.load(tmp_path / "source")
    assert (read.key, read.elites, read.scores) == (source.key, source.elites, source.scores)
    other = Arena(get_space("nb101"), sample=40)
    assert np.array_equal(
        source_expert(read, other).population, source_expert(source, Arena(other.space, other.cells)).population
    )
    damaged = bytearray((tmp_path / "source").read_bytes())
    damaged[200] ^= 1
    (tmp_path / "source").write_bytes(bytes(damaged))
    with pytest.raises(StateError, match="damaged"):
        Source.load(tmp_path / "source")


def test_a_source_of_a_space_with_settings_is_read_back(tmp_path):
    space = get_space("transformer-student", layers=4, heads=(1, 2), neurons=(16, 32), width=32)
    arena = Arena(space, sample=40)
    values = np.array([space.size_features(c)["params"] for c in arena.cells])
    learn_source("students", arena, arena.cells, values).save(tmp_path / "source")
    read = Source.load(tmp_path / "source")
    assert read.elites[0] == arena.cells[int(np.argmax(values))]
    assert get_space(read.space, **read.settings).size_features(read.elites[0])["params"] == values.max()


def test_a_source_ranks_another_space_as_it_learned(arena, labels):
    """More 3x3 convolutions were better in nb201; so they are expected to be in nb101."""
    other = Arena(get_space("nb101"), sample=150)
    rank = source_expert(learn_source("s", arena, arena.cells, labels), other).population
    convolutions = np.array([c.ops.count(0) for c in other.cells])
    assert np.corrcoef(rank, convolutions)[0, 1] > 0.6


def test_bad_labels_are_refused(arena, labels):
    with pytest.raises(ValueError, match="labels"):
        learn_source("s", arena, arena.cells, labels[:-1])
    broken = labels.copy()
    broken[3] = np.nan
    with pytest.raises(ValueError, match="1 labels that are not finite"):
        learn_source("s", arena, arena.cells, broken)
    with pytest.raises(ValueError, match="at least 20"):
        learn_source("s", arena, arena.cells[:5], labels[:5])


def test_scores_of_new_cells_agree_with_the_population(arena):
    expert = size_expert("params", arena)
    again = expert.of(arena.raw, arena.ranks)
    assert np.corrcoef(again, expert.scores)[0, 1] > 0.999


def test_the_linear_map_recovers_a_linear_relation_and_others_do_their_part():
    rng = np.random.default_rng(0)
    z, true = rng.standard_normal((200, 5)), rng.standard_normal((5, 3))
    target = z @ true + [1.0, 2.0, 3.0]
    new = rng.standard_normal((4, 5))
    assert np.allclose(MAPPINGS.get("linear")(z, target, 0)(new), new @ true + [1, 2, 3], atol=1e-4)
    assert np.array_equal(MAPPINGS.get("none")(z, target, 0)(new), new[:, :3])
    for name in MAPPINGS.names():
        same = MAPPINGS.get(name)(z, z + 1, 0)(new)
        assert same.shape == (4, 5)
        assert np.array_equal(same, MAPPINGS.get(name)(z, z + 1, 0)(new))
        with pytest.raises(ValueError, match="equally many"):
            MAPPINGS.get(name)(z, z[:-1], 0)


def test_a_latent_space_learns_saves_and_continues_after_a_kill(arena, labels, tmp_path):
    corpus = [Corpus(arena.space, arena.cells, labels)]
    before = torch.random.get_rng_state()
    whole = train_latent_space(corpus, TINY)
    assert torch.equal(before, torch.random.get_rng_state())
    assert whole.facts["reconstruction.nb201"] <= 1

    class Killed(Exception):
        pass

    from core.nas import encoder

    original, calls = encoder._Training._store, []

    def store(self):
        original(self)
        calls.append(1)
        if len(calls) == 2:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder._Training, "_store", store)
        with pytest.raises(Killed):
            train_latent_space(corpus, TINY, tmp_path / "training")
    resumed = train_latent_space(corpus, TINY, tmp_path / "training")
    assert all(np.array_equal(a, resumed.arrays()[k]) for k, a in whole.arrays().items())
    whole.save(tmp_path / "latent")
    read = LatentSpace.load(tmp_path / "latent")
    assert np.array_equal(read.encode(arena.space, arena.cells[:9]), whole.encode(arena.space, arena.cells[:9]))
    assert -1 <= kendall(read, arena.space, arena.cells[:50], labels[:50] + np.arange(50) / 100) <= 1


def test_reconstruction_and_ranking_improve_with_training(arena, labels):
    corpus = [Corpus(arena.space, arena.cells, labels)]
    config = TINY.model_copy(update={"steps": 200, "rank_steps": 100, "every": 200})
    trained = train_latent_space(corpus, config)
    cells = arena.cells[:100]
    rough = train_latent_space(corpus, TINY.model_copy(update={"steps": 1, "rank_steps": 0}))
    assert trained.reconstruction(arena.space, cells) > rough.reconstruction(arena.space, cells) + 0.1
    assert kendall(trained, arena.space, cells, labels[:100]) > 0.4


def test_a_latent_space_of_before_summaries_is_read_as_the_published_one(arena, tmp_path):
    steps = {"steps": 1, "rank_steps": 0, "every": 1}
    old = train_latent_space([Corpus(arena.space, arena.cells)], TINY.model_copy(update={**steps, "summary": "cls"}))
    config = old.config.model_dump(exclude={"summary"})
    payload = {"spaces": ["nb201"], "config": config, "facts": old.facts}
    save_checkpoint(tmp_path / "latent", payload, kind="nas-encoder", schema=1, arrays=old.arrays())
    read = LatentSpace.load(tmp_path / "latent")
    assert read.config.summary == "cls"
    assert np.array_equal(read.encode(arena.space, arena.cells[:9]), old.encode(arena.space, arena.cells[:9]))


def test_places_that_write_to_the_latent_themselves_are_rebuilt_sooner(arena):
    corpus = [Corpus(arena.space, arena.cells)]
    steps = {"steps": 150, "rank_steps": 0, "every": 150}
    own, shared = (
        train_latent_space(corpus, TINY.model_copy(update={**steps, "summary": how})) for how in ("places", "cls")
    )
    cells = arena.cells[:100]
    assert own.reconstruction(arena.space, cells) > shared.reconstruction(arena.space, cells) + 0.2


def test_ranks_are_learned_from_a_few_labels_and_cells_without_any_stay_rebuilt(arena, labels):
    few = np.where(np.arange(len(labels)) < 40, labels, np.nan)
    config = TINY.model_copy(update={"steps": 300, "rank_steps": 100, "every": 300, "beta": 0.5})
    made = train_latent_space([Corpus(arena.space, arena.cells, few)], config)
    assert all(np.isfinite(a).all() for a in made.arrays().values())
    assert kendall(made, arena.space, arena.cells[40:], labels[40:]) > 0.4
    assert made.reconstruction(arena.space, arena.cells[40:]) > 0.9


def test_one_encoder_over_two_spaces_decodes_each(arena):
    other = get_space("nb101")
    rng = np.random.default_rng(0)
    cells = [other.sample(rng) for _ in range(40)]
    latent = train_latent_space([Corpus(arena.space, arena.cells), Corpus(other, cells)], TINY)
    codec = latent.codec
    assert codec.decode(other, codec.encode(other, cells[:1])[0]) == cells[0]
    assert codec.decode(arena.space, codec.encode(other, cells[:1])[0]) is None
    assert latent.encode(other, cells).shape == (40, TINY.latent)


STUDENTS = {"layers": 3, "heads": (1, 2), "neurons": (16, 32, 64), "width": 32}


def students(**settings):
    """A space of sub-networks, and cells of it, each once."""
    space, rng = get_space("transformer-student", **settings), np.random.default_rng(0)
    return space, list({space.key(c): c for c in (space.sample(rng) for _ in range(200))}.values())[:60]


def test_a_latent_space_is_one_of_a_space_with_its_settings(tmp_path):
    space, cells = students(**STUDENTS)
    trained = train_latent_space([Corpus(space, cells)], TINY)
    assert trained.facts.keys() >= {f"reconstruction.{space.full_name}"}
    trained.save(tmp_path / "latent")
    read = LatentSpace.load(tmp_path / "latent")
    assert read.codec.spaces == (space,)
    z = read.encode(space, cells)
    assert np.array_equal(z, trained.encode(space, cells))
    assert read.decode(space, z) == trained.decode(space, z)
    other, strangers = students()
    for refused in (lambda: read.encode(other, strangers), lambda: read.decode(other, z)):
        with pytest.raises(ValueError, match=r"one of transformer-student\(.*\), not of transformer-student$"):
            refused()


def test_one_encoder_over_the_sub_networks_of_two_models():
    (left, ours), (right, theirs) = students(**STUDENTS), students(layers=2)
    latent = train_latent_space([Corpus(left, ours), Corpus(right, theirs)], TINY)
    codec = latent.codec
    assert codec.decode(left, codec.encode(left, ours[:1])[0]) == ours[0]
    assert codec.decode(right, codec.encode(right, theirs[:1])[0]) == theirs[0]
    assert codec.decode(right, codec.encode(left, ours[:1])[0]) is None
    with pytest.raises(ValueError, match="a codec has each space once"):
        train_latent_space([Corpus(left, ours), Corpus(left, ours)], TINY)


def test_a_source_knows_its_space_with_its_settings():
    space, cells = students(**STUDENTS)
    source = learn_source("students", Arena(space, cells), cells, np.arange(len(cells), dtype=float))
    assert source.home == space != get_space("transformer-student")


def test_cells_of_another_space_are_refused_where_a_space_is_worked_on(arena):
    _, strangers = students()
    with pytest.raises(ValueError, match="genotype of another space: nb201 takes NB201Cell, got StudentShape"):
        train_latent_space([Corpus(arena.space, strangers)], TINY)
    with pytest.raises(ValueError, match="genotype of another space"):
        Arena(arena.space, strangers)


def test_a_checkpoint_of_other_spaces_is_refused(arena, tmp_path):
    steps = {"steps": 2, "rank_steps": 2, "every": 1}
    config, (space, cells) = TINY.model_copy(update=steps), students()
    train_latent_space([Corpus(arena.space, arena.cells)], config, tmp_path / "training")
    with pytest.raises(ValueError, match="other settings or spaces; remove it"):
        train_latent_space([Corpus(space, cells)], config, tmp_path / "training")


def test_a_step_computes_where_the_network_is(arena, labels):
    """On the device that has no numbers, an operation on tensors of two devices is an error."""
    from core.nas import encoder

    latent = train_latent_space([Corpus(arena.space, arena.cells)], TINY)
    latent.network.to("meta")
    training = encoder._Training(latent, [Corpus(arena.space, arena.cells, labels)], None)
    rows = np.arange(20)
    loss = training._loss(training.tokens[rows].to(training.device), rows)
    assert loss.device.type == training.device.type == latent.device.type == "meta"
    training._one_step()
    training.phase = "rank"
    with pytest.raises(NotImplementedError):  # all is on one device, up to which pairs there are
        training._one_step()


def test_a_device_may_be_named_and_is_the_one_there_is(arena):
    corpus = [Corpus(arena.space, arena.cells)]
    named, found = train_latent_space(corpus, TINY, device="cpu"), train_latent_space(corpus, TINY)
    assert named.device.type == "cpu"
    assert found.device.type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.gpu
def test_on_a_device_a_latent_space_is_trained_and_says_the_same_as_elsewhere(arena, labels, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    config = TINY.model_copy(update={"steps": 200, "rank_steps": 100, "every": 100})
    corpus = [Corpus(arena.space, arena.cells, labels)]
    made = train_latent_space(corpus, config, tmp_path / "training")
    assert made.device.type == "cuda"
    assert train_latent_space(corpus, config, tmp_path / "training").device.type == "cuda"  # read back
    made.save(tmp_path / "latent")
    here, there = (LatentSpace.load(tmp_path / "latent", device) for device in ("cpu", "cuda"))
    assert (here.device.type, there.device.type) == ("cpu", "cuda")
    z = here.encode(arena.space, arena.cells)
    assert np.allclose(there.encode(arena.space, arena.cells), z, atol=1e-3)
    assert np.allclose(there.rank(z), here.rank(z), atol=1e-3)
    same = [a == b for a, b in zip(there.decode(arena.space, z), here.decode(arena.space, z), strict=True)]
    assert np.mean(same) > 0.95
    assert kendall(made, arena.space, arena.cells[:100], labels[:100]) > 0.4


def test_evidence_finds_the_expert_that_is_right():
    rng = np.random.default_rng(0)
    good, bad = rng.standard_normal((2, 30))
    square = 2 * (1 - np.eye(30))
    y = 90 + 3 * good + 0.3 * rng.standard_normal(30)
    process = TrustedProcess([Hypothesis(0.4), Hypothesis(0.3, {"good": 0.75}), Hypothesis(0.3, {"bad": 0.75})])
    process.fit({"good": good, "bad": bad}, square, y)
    trust = process.trust()
    assert np.isclose(sum(trust.values()), 1)
    assert trust["good"] > 0.9 > 0.05 > trust["bad"]
    mean, deviation = process.predict({"good": np.array([2.0, -2.0]), "bad": np.zeros(2)}, np.full((30, 2), 2.0))
    assert mean[0] > mean[1]
    assert (deviation > 0).all()
