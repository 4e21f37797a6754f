"""One contract for every registered loss: finite, seeded, falling, inputs and global RNG untouched."""

import numpy as np
import pytest
import torch

from core.distill.distiller import DistillConfig, distill
from core.distill.interface import LOSSES, Batch, Context, LossSpec, Teaching, needed, total
from core.distill.layers import PRESETS, layer_map
from core.distill.losses.embedding import ridge
from core.distill.methods import METHODS
from core.distill.signals import Signals, answer_states, compute_signals
from core.distill.transfer_set import TransferSet
from core.models.prompt import Prompt, prompted
from core.models.score import score
from core.models.train import TrainConfig
from tests import tiny_models as tiny

PROMPT = Prompt(
    masked="{text} . it was {answer} .",
    causal="review : {text} . in summary , the movie was {answer}",
    words=[["bad"], ["good"]],
    phrase="a {answer} movie",
)
POOL = [f"{a} {b} {c}" for a in ("a", "the") for b in ("good", "bad", "dull", "fun") for c in ("film", "plot", "actor")]
DATA = TransferSet([*tiny.TEXTS, *POOL], None, np.array([*tiny.LABELS, *[-1] * len(POOL)], dtype=np.int64))
STEPS = TrainConfig(lr=5e-3, steps=12, batch_size=8, precision="float32")
STUDENTS = {"masked": tiny.masked, "causal": tiny.causal, "encoder": tiny.encoder}


def teacher_signals(seed, answers=True):
    model = prompted(tiny.encoder(width=24, layers=4, seed=seed), PROMPT)
    return compute_signals(model, DATA.texts, layers=range(5), answers=answers, dtype="float32")


@pytest.fixture(scope="module")
def signals():
    return {"tuned": teacher_signals(1), "pretrained": teacher_signals(2), "teacher_width": 24, "teacher_depth": 4}


def student(kind="encoder", seed=0):
    return prompted(STUDENTS[kind](seed=seed), PROMPT)


def run(name, signals, seed=3, kind="encoder", steps=12, **spec):
    model = student(kind)
    config = DistillConfig(
        losses=(LossSpec(name=name, **spec),), train=STEPS.model_copy(update={"steps": steps, "dropout": False})
    )
    report = distill(model, DATA, config, seed=seed, **signals)
    return model, report


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("name", LOSSES.names())
def test_falls_and_is_seeded_and_leaves_the_world_alone(name, signals):
    before = {k: s.logits.copy() for k, s in signals.items() if isinstance(s, Signals)}
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first, report = run(name, signals, steps=30)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(12)
    second, _ = run(name, signals, steps=30)
    assert torch.equal(weights(first), weights(second))
    assert np.isfinite(report.losses).all()
    if name != "cpd_literal":  # with uniform negatives its expected gradient is zero: it need not fall
        assert np.mean(report.losses[-8:]) < np.mean(report.losses[:8])
    for which, logits in before.items():
        np.testing.assert_array_equal(logits, signals[which].logits)


@pytest.mark.parametrize("name", LOSSES.names())
@pytest.mark.parametrize("kind", sorted(STUDENTS))
def test_every_student_kind(name, kind, signals):
    model, report = run(name, signals, kind=kind, steps=2)
    assert np.isfinite(report.losses).all()
    assert not torch.equal(weights(model), weights(student(kind)))


@pytest.mark.parametrize("name", LOSSES.names())
def test_needs_are_declared(name, signals):
    """Only the declared signals are given; nothing else may be read."""
    spec = LossSpec(name=name)
    wanted = needed((spec,), 3, 4)
    given = {}
    for which in ("tuned", "pretrained"):
        if which in wanted:
            full, layers = signals[which], tuple(sorted(wanted[which]["layers"]))
            answers = full.answers if wanted[which]["answers"] else None
            given[which] = Signals(full.logits, full.hidden[:, list(layers)], layers, answers)
    config = DistillConfig(losses=(spec,), train=STEPS.model_copy(update={"steps": 2}))
    report = distill(student(), DATA, config, seed=1, **given, teacher_width=24, teacher_depth=4)
    assert np.isfinite(report.losses).all()
    for which in wanted:
        with pytest.raises(ValueError, match=f"signals of the {which} teacher"):
            distill(student(), DATA, config, seed=1, **{k: v for k, v in given.items() if k != which}, teacher_depth=4)


@pytest.mark.parametrize("name", [n for n in LOSSES.names() if n != "task_ce"])
def test_rows_that_a_term_sees(name, signals):
    """A term on labelled rows gives no gradient where a batch has none."""
    spec = LossSpec(name=name, on="labelled")
    states = torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logits = states[-1, :, :2] * 1.0
    rows = np.arange(8, 14)  # all unlabelled
    states_before = score(student(), student().tokenize(DATA.texts), hidden=True)[1]
    context = Context(2, 16, 3, 24, 4, DATA.labels, signals["tuned"], signals["pretrained"], 0, states_before)
    loss = LOSSES.get(name)(spec, context)

    def teaching(s):
        return Teaching(*(torch.tensor(np.asarray(a[rows], dtype=np.float32)) for a in (s.logits, s.hidden, s.answers)))

    labels = torch.from_numpy(DATA.labels[rows])
    batch = Batch(rows, labels, logits, states, teaching(signals["tuned"]), teaching(signals["pretrained"]))
    value = total(torch.nn.ModuleList([loss]), batch)
    value.backward()
    assert float(value) == 0.0
    assert float(states.grad.abs().sum()) == 0.0


def test_embedding_starts_at_the_least_squares_map(signals):
    """A student that is a linear image of its teacher has nothing left to match."""
    teacher = np.asarray(signals["tuned"].hidden[:, 4], dtype=np.float32)
    teacher = teacher / np.linalg.norm(teacher, axis=1, keepdims=True)
    basis = np.linalg.svd(teacher - teacher.mean(0), full_matrices=False)[2][:16]
    image = ((teacher - teacher.mean(0)) @ basis.T).astype(np.float32)
    before = np.zeros((len(DATA), 4, 16), dtype=np.float32)
    before[:, 3] = image
    context = Context(2, 16, 3, 24, 4, DATA.labels, signals["tuned"], None, 0, before)
    loss = LOSSES.get("embedding")(LossSpec(name="embedding"), context)
    scale = np.linalg.norm(image, axis=1).mean()
    weight, bias = ridge(image, teacher - teacher.mean(0), 1e-6)
    np.testing.assert_allclose(image @ weight + bias, image @ basis, atol=1e-3 * scale)
    rows = np.arange(8)
    teach = Teaching(
        *(
            torch.tensor(np.asarray(a[rows], dtype=np.float32))
            for a in (signals["tuned"].logits, signals["tuned"].hidden)
        )
    )
    states = torch.from_numpy(before[rows]).swapaxes(0, 1)
    batch = Batch(rows, torch.from_numpy(DATA.labels[rows]), states[-1, :, :2], states, teach, Teaching())
    started = float(loss(batch))
    torch.nn.init.normal_(loss.project[0].weight, generator=torch.Generator().manual_seed(0))
    assert started < 0.25 < float(loss(batch))


def test_kd_moves_the_student_towards_its_teacher(signals):
    model, _ = run("kd_tuned", signals, steps=80)
    answer = score(model, model.tokenize(DATA.texts), dtype="float32")[0].argmax(1)
    assert (answer == signals["tuned"].logits.argmax(1)).mean() > 0.85


def test_temperature_divides_logits_and_scales_the_loss():
    logits, target = torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0, 0.0]])
    context = Context(2, 4, 1, 4, 1, np.array([-1]), None, None, 0)
    loss = LOSSES.get("kd_tuned")(LossSpec(name="kd_tuned", temperature=4.0), context)
    batch = Batch(np.array([0]), torch.tensor([-1]), logits, None, Teaching(target), Teaching())
    expected = -16 * (torch.softmax(target / 4, 1) * torch.log_softmax(logits / 4, 1)).sum()
    assert float(loss(batch)) == pytest.approx(float(expected), rel=1e-6)


def test_literal_contrast_is_as_printed_and_pulls_little_between_balanced_classes(signals):
    """The trap: each row is as often the negative as the anchor, so the terms cancel to first order."""
    before = score(student(), student().tokenize(DATA.texts), hidden=True)[1]
    context = Context(2, 16, 3, 24, 4, DATA.labels, signals["tuned"], None, 0, before)
    loss = LOSSES.get("cpd_literal")(LossSpec(name="cpd_literal"), context)
    states = torch.from_numpy(before[:8]).swapaxes(0, 1).clone().requires_grad_()
    teach = Teaching(torch.tensor(np.asarray(signals["tuned"].logits[:8], dtype=np.float32)))
    batch = Batch(np.arange(8), torch.tensor(tiny.LABELS), states[-1, :, :2], states, teach, Teaching())
    value = loss(batch)
    value.backward()
    assert loss.layers == [1, 2]
    assert loss.teacher.shape == (len(DATA), 2)
    logits = torch.einsum("lbh,lch->lbc", states[loss.layers].float(), loss.weights) + loss.biases[:, None]
    f = torch.exp((loss.teacher[:8] * torch.softmax(logits, -1).mean(0)).sum(-1))
    other = [next(j % 8 for j in range(i + 1, i + 9) if tiny.LABELS[j % 8] != tiny.LABELS[i]) for i in range(8)]
    assert float(value) == pytest.approx(float(-(f / f[other]).mean()), rel=1e-5)
    assert float(states.grad.mean(1).abs().max()) < 0.05


def test_published_terms_are_means_over_their_own_rows_without_the_squared_temperature():
    """l1 (mean over X + mean over X~): sixteen labelled rows weigh as much as the pool."""
    rng = torch.Generator().manual_seed(0)
    logits, tuned, before = (torch.randn(22, 2, generator=rng) for _ in range(3))
    labels = torch.tensor([0, 1] + [-1] * 20)
    batch = Batch(np.arange(22), labels, logits, None, Teaching(tuned), Teaching(before))
    context = Context(2, 4, 1, 4, 1, labels.numpy(), None, None, 0)
    specs = {
        "task_ce": LossSpec(name="task_ce", scale="published"),
        "kd_tuned": LossSpec(name="kd_tuned", weight=0.2, temperature=10.0, on="labelled", scale="published"),
        "kd_pretrained": LossSpec(
            name="kd_pretrained", weight=0.2, temperature=10.0, on="unlabelled", scale="published"
        ),
    }

    def kd(target, rows):
        soft = torch.softmax(target[rows] / 10, 1)
        return -(soft * torch.log_softmax(logits[rows] / 10, 1)).sum(1).mean()

    expected = {
        "task_ce": torch.nn.functional.cross_entropy(logits[:2], labels[:2]),
        "kd_tuned": 0.2 * kd(tuned, slice(0, 2)),
        "kd_pretrained": 0.2 * kd(before, slice(2, 22)),
    }
    for name, spec in specs.items():
        term = torch.nn.ModuleList([LOSSES.get(name)(spec, context)])
        assert float(total(term, batch)) == pytest.approx(float(expected[name]), rel=1e-5), name
    unlabelled = Batch(np.arange(20), labels[2:], logits[2:], None, Teaching(tuned[2:]), Teaching(before[2:]))
    assert float(total(torch.nn.ModuleList([LOSSES.get("task_ce")(specs["task_ce"], context)]), unlabelled)) == 0


def test_the_paper_preset_has_the_published_scale():
    assert {spec.scale for spec in METHODS["paper"].distill.losses} == {"published"}
    assert {
        spec.scale for name, m in METHODS.items() if m.distill and name != "paper" for spec in m.distill.losses
    } == {"batch"}


def test_labels_must_be_there_for_the_term_that_learns_from_them(signals):
    none = TransferSet(POOL, None, np.full(len(POOL), -1))
    with pytest.raises(ValueError, match="task_ce learns from labels, and there are none"):
        distill(student(), none, DistillConfig(losses=(LossSpec(name="task_ce"),), train=STEPS), seed=0)


@pytest.mark.parametrize("kind", sorted(STUDENTS))
def test_the_filled_answer_is_read_behind_a_long_text_too(kind):
    """Cut off, every answer is the same text, and what contrasts them has nothing to tell apart."""
    model = student(kind)
    for words in (3, 200):
        states = answer_states(model, ["the movie was " + "fun " * words], None, "float32")
        assert np.abs(states[0, 0] - states[0, 1]).max() > 1e-4, words


def test_layer_maps():
    assert layer_map("uniform", 3, 12) == [(0, 0), (1, 4), (2, 8), (3, 12)]
    assert layer_map("skip", 3, 12) == [(1, 4), (2, 8)]
    assert layer_map("top", 3, 12) == [(1, 10), (2, 11)]
    assert layer_map("last", 6, 12) == [(6, 12)]
    assert layer_map("all-but-last", 3, 5) == [(1, 2), (2, 4)]
    for preset in PRESETS:
        assert all(0 <= a <= 6 and 0 <= b <= 12 for a, b in layer_map(preset, 6, 12))
    with pytest.raises(ValueError, match="unknown layer map 'lost'"):
        layer_map("lost", 3, 3)
    with pytest.raises(ValueError, match="outside: student layers are 0-3"):
        layer_map([(4, 1)], 3, 3)
    with pytest.raises(ValueError, match="twice"):
        layer_map([(1, 1), (1, 2)], 3, 3)
    with pytest.raises(ValueError, match="empty"):
        layer_map("skip", 1, 3)


def test_faults_are_named_before_training(signals):
    config = DistillConfig(losses=(LossSpec(name="kd_tuned"),), train=STEPS)
    three = Signals(np.zeros((len(DATA), 3), np.float16), np.zeros((len(DATA), 0, 4), np.float16), ())
    with pytest.raises(ValueError, match="answers 3 labels, the student 2"):
        distill(student(), DATA, config, seed=0, tuned=three)
    with pytest.raises(ValueError, match="must be of the same texts"):
        distill(student(), DATA, config, seed=0, tuned=signals["tuned"].take([0, 1]))
    pkd = config.model_copy(update={"losses": (LossSpec(name="pkd", layers=[(1, 9)]),)})
    with pytest.raises(ValueError, match="teacher layers 0-4"):
        distill(student(), DATA, pkd, seed=0, **signals)
    with pytest.raises(ValueError, match="did you mean 'kd_tuned'"):
        distill(student(), DATA, config.model_copy(update={"losses": (LossSpec(name="kd_tund"),)}), seed=0)


def test_distilling_continues_identically(tmp_path, signals):
    losses = (LossSpec(name="task_ce"), LossSpec(name="kd_tuned"), LossSpec(name="infonce", weight=0.3))
    config = DistillConfig(losses=losses, train=STEPS.model_copy(update={"steps": 10, "checkpoint_s": 0.0}))
    whole = student()
    distill(whole, DATA, config, seed=3, **signals)

    class Killed(Exception):
        pass

    victim, calls = student(), []
    plain = victim.encoder.forward

    def forward(*args, **kwargs):
        calls.append(1)
        if len(calls) > 6:
            raise Killed
        return plain(*args, **kwargs)

    victim.encoder.forward = forward
    with pytest.raises(Killed):
        distill(victim, DATA, config, seed=3, checkpoint=tmp_path / "c", **signals)
    again = student(seed=5)
    words = student().encoder.backbone.get_input_embeddings()  # those that do not occur come from the model itself
    again.encoder.backbone.get_input_embeddings().load_state_dict(words.state_dict())
    distill(again, DATA, config, seed=3, checkpoint=tmp_path / "c", **signals)
    assert torch.equal(weights(whole), weights(again))
