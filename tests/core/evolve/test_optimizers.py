"""Contract of every registered optimizer, and the behaviour of each."""

import json

import numpy as np
import pytest

from core.evolve.mixed import Mixed
from core.evolve.optimizers import OPTIMIZERS
from core.evolve.protocol import Told
from core.evolve.space import Box

NAMES = OPTIMIZERS.names()


class Bits:
    """Bit strings of length 12 (tuples): a finite, discrete space."""

    length = 12

    def sample(self, rng):
        return tuple(int(b) for b in rng.integers(0, 2, self.length))

    def mutate(self, candidate, rng):
        i = int(rng.integers(self.length))
        return (*candidate[:i], 1 - candidate[i], *candidate[i + 1 :])

    def crossover(self, a, b, rng):
        cut = int(rng.integers(1, self.length))
        return (*a[:cut], *b[cut:])

    def key(self, candidate):
        return "".join(map(str, candidate))

    def to_json(self, candidate):
        return list(candidate)

    def from_json(self, value):
        return tuple(value)


TARGET = np.array([0.3, -0.4, 0.1, 0.8, 0.0])


def make(name, seed=3):
    kind, box = OPTIMIZERS.entry(name).facts["space"], Box(-np.ones(5), np.ones(5))
    if kind == "box":
        return OPTIMIZERS.get(name)(box, seed=seed)
    if kind == "mixed":
        return OPTIMIZERS.get(name)(Mixed(box, (3, 2)), seed=seed)
    return OPTIMIZERS.get(name)(Bits(), seed=seed)


def score(candidate):
    if isinstance(candidate, np.ndarray):
        return -float(((candidate[:5] - TARGET) ** 2).sum() + (candidate[5:] != 1).sum())
    return float(sum(candidate))


def run(optimizer, generations, shake=False):
    asked = []
    for _ in range(generations):
        if shake:
            np.random.seed(0)
        batch = optimizer.ask(optimizer.batch)
        asked += [optimizer.space.to_json(c) for c in batch]
        optimizer.tell([Told(c, score(c)) for c in batch])
    return asked


@pytest.mark.parametrize("name", NAMES)
def test_seeded_whatever_the_global_rng_does(name):
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    first = run(make(name), 8)
    assert (np.random.get_state()[1] == before).all()
    assert first == run(make(name), 8, shake=True)
    assert first != run(make(name, seed=4), 8)


@pytest.mark.parametrize("name", NAMES)
def test_continues_identically_from_its_state_also_within_a_generation(name):
    one = make(name)
    run(one, 5)
    half = one.ask(max(1, one.batch // 2))
    one.tell([Told(c, score(c)) for c in half])
    one.inject([one.space.from_json(one.space.to_json(half[0]))])
    state = json.loads(json.dumps(one.state_dict()))
    other = make(name, seed=99)
    run(other, 2)
    other.load_state_dict(state)
    assert run(one, 6) == run(other, 6)
    assert json.dumps(one.state_dict()) == json.dumps(other.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_arguments_stay_unchanged(name):
    optimizer = make(name)
    batch = optimizer.ask(optimizer.batch)
    copies = [optimizer.space.to_json(c) for c in batch]
    results = [Told(c, score(c)) for c in batch]
    optimizer.tell(results)
    optimizer.inject(batch[:1])
    optimizer.ask(3)
    assert [optimizer.space.to_json(r.candidate) for r in results] == copies


@pytest.mark.parametrize("name", NAMES)
def test_injected_candidates_are_asked_first(name):
    optimizer = make(name)
    run(optimizer, 2)
    new = (
        np.append(np.full(5, 0.25), np.ones(optimizer.space.dimensions - 5))
        if isinstance(optimizer.space, Box)
        else (1, 0) * 6
    )
    optimizer.inject([new])
    assert optimizer.space.key(optimizer.ask(2)[0]) == optimizer.space.key(new)


@pytest.mark.parametrize("name", NAMES)
def test_failed_candidates_do_not_stop_it(name):
    optimizer = make(name)
    for g in range(6):
        batch = optimizer.ask(optimizer.batch)
        optimizer.tell([Told(c, -np.inf if g < 2 or i % 2 else score(c)) for i, c in enumerate(batch)])
    assert all(np.isfinite(np.asarray(c, dtype=float)).all() for c in optimizer.ask(3))


@pytest.mark.parametrize("name", [n for n in NAMES if OPTIMIZERS.entry(n).facts["space"] == "operators"])
def test_no_candidate_is_asked_twice_and_a_finite_space_ends(name):
    optimizer = make(name)
    optimizer.space.length = 3
    seen = run(optimizer, 40)
    assert len(seen) == len({tuple(s) for s in seen}) == 8
    assert optimizer.ask(4) == []


@pytest.mark.parametrize("name", ["ga", "regularized_evolution"])
def test_evolution_beats_random_on_one_max(name):
    def best(method):
        space = Bits()
        space.length = 40
        values = []
        for seed in range(5):
            optimizer = OPTIMIZERS.get(method)(space, seed=seed)
            asked = 0
            top = 0.0
            while asked < 400:
                batch = optimizer.ask(min(optimizer.batch, 400 - asked))
                asked += len(batch)
                optimizer.tell([Told(c, score(c)) for c in batch])
                top = max(top, max(map(score, batch)))
            values.append(top)
        return np.mean(values)

    assert best(name) > best("random") + 2


@pytest.mark.parametrize("diagonal", [False, True])
def test_cma_finds_a_badly_scaled_optimum_within_bounds(diagonal):
    space = Box(-np.ones(5), np.ones(5), start=np.zeros(5), step=[0.2, 0.2, 0.2, 0.4, 0.2])
    optimizer = OPTIMIZERS.get("cma")(space, seed=1, diagonal=diagonal)
    weights = np.array([1, 100, 1, 10, 1])
    for _ in range(80):
        batch = optimizer.ask(optimizer.batch)
        assert all((c >= space.lower).all() and (c <= space.upper).all() for c in batch)
        optimizer.tell([Told(c, -float((weights * (c - TARGET) ** 2).sum())) for c in batch])
    assert np.abs(optimizer.mean - TARGET).max() < 0.02
    assert optimizer.covariance.shape == (5, 5)


def test_cat_cma_finds_numbers_and_choices_that_depend_on_each_other():
    """Which number is best depends on the choice: the wrong category has the nearer optimum, but a lower one."""
    found = []
    for seed in range(5):
        space = Mixed(Box(-np.ones(4), np.ones(4), start=np.zeros(4), step=0.3), (3, 3, 3, 3))
        optimizer = OPTIMIZERS.get("cat_cma")(space, seed=seed)
        for _ in range(120):
            batch = optimizer.ask(optimizer.batch)
            told = []
            for c in batch:
                right = c[4:] == [0, 1, 2, 1]
                told.append(Told(c, -float(np.where(right, (c[:4] - 0.6) ** 2, 0.5 + (c[:4] - 0.1) ** 2).sum())))
            optimizer.tell(told)
        found.append(optimizer.mean)
    assert np.mean([(m[4:] == [0, 1, 2, 1]).mean() for m in found]) > 0.9
    assert np.abs(np.median(found, axis=0)[:4] - 0.6).max() < 0.05


def test_cat_cma_starts_with_the_likely_choices_and_restarts_around_the_best():
    likely = np.array([[0.9, 0.1, 0.0], [0.02, 0.08, 0.9]])
    space = Mixed(Box(-np.ones(2), np.ones(2), step=0.4), (2, 3), likely)
    optimizer = OPTIMIZERS.get("cat_cma")(space, seed=0, restart_after=2)
    assert list(space.start[2:]) == [0, 2]
    drawn = np.array(optimizer.ask(400))[:, 2:]
    assert (drawn[:, 0] == 0).mean() > 0.8
    assert (drawn[:, 1] == 2).mean() > 0.8
    first = [np.array([0.5, -0.5, 1.0, 1.0]), *optimizer.ask(optimizer.batch - 1)]
    optimizer.tell([Told(c, 1.0 if i == 0 else 0.0) for i, c in enumerate(first)])
    for _ in range(2):
        optimizer.tell([Told(c, 0.5) for c in optimizer.ask(optimizer.batch)])
    assert optimizer.restarts == 1
    np.testing.assert_allclose(optimizer.mean, first[0])
    assert list(optimizer.likely[0]) == [0.25, 0.75, 0]


@pytest.mark.parametrize(
    ("categories", "likely", "message"),
    [
        ((), None, "two or more"),
        ((2, 1), None, "two or more"),
        ((2, 3), np.ones((2, 3)) / 3, "beyond"),
        ((2, 2), np.ones((2, 2)), "sum 1"),
        ((2, 2), np.eye(2), "above 0"),
        ((2, 2), np.ones((1, 2)) / 2, r"\[2, 2\]"),
    ],
)
def test_mixed_spaces_that_are_none_are_refused(categories, likely, message):
    with pytest.raises(ValueError, match=message):
        Mixed(Box(-np.ones(2), np.ones(2)), categories, likely)


def test_cma_restarts_at_the_best_point_with_half_the_step_on_a_stall():
    optimizer = OPTIMIZERS.get("cma")(Box(-np.ones(3), np.ones(3), step=0.4), seed=0, restart_after=2)
    first = optimizer.ask(optimizer.batch)
    optimizer.tell([Told(c, 1.0 if i == 0 else 0.0) for i, c in enumerate(first)])
    for _ in range(2):
        optimizer.tell([Told(c, 0.5) for c in optimizer.ask(optimizer.batch)])
    assert optimizer.restarts == 1
    np.testing.assert_allclose(optimizer.mean, first[0])
    np.testing.assert_allclose(np.diag(optimizer.covariance), 0.2**2)


def test_cma_warm_started_correlation_shapes_the_first_samples():
    correlation = np.full((4, 4), 0.95) + 0.05 * np.eye(4)
    optimizer = OPTIMIZERS.get("cma")(Box(-9 * np.ones(4), 9 * np.ones(4), step=1.0), seed=0, correlation=correlation)
    samples = np.array(optimizer.ask(400))
    assert np.corrcoef(samples.T)[0, 1] > 0.9


def test_cma_takes_a_far_injection_without_a_jump_of_the_step():
    optimizer = OPTIMIZERS.get("cma")(Box(-100 * np.ones(4), 100 * np.ones(4), start=np.zeros(4), step=0.1), seed=0)
    optimizer.inject([np.full(4, 90.0)])
    batch = optimizer.ask(optimizer.batch)
    optimizer.tell([Told(c, 1.0 if i == 0 else 0.0) for i, c in enumerate(batch)])
    assert np.sqrt(np.diag(optimizer.covariance)).max() < 1.0


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("cma", {"sigma": 0}, "sigma"),
        ("cma", {"population": 1}, "population"),
        ("cma", {"correlation": -np.eye(5)}, "positive definite"),
        ("cma", {"correlation": np.eye(3)}, r"\(5, 5\)"),
        ("ga", {"crossover": 2}, "probability"),
        ("regularized_evolution", {"tournament": 60}, "tournament"),
    ],
)
def test_wrong_settings_are_named(name, settings, message):
    with pytest.raises(ValueError, match=message):
        OPTIMIZERS.get(name)(Box(-np.ones(5), np.ones(5)), **settings)


def test_cat_cma_refuses_what_it_cannot_search():
    with pytest.raises(ValueError, match="Mixed"):
        OPTIMIZERS.get("cat_cma")(Box(-np.ones(5), np.ones(5)))
    with pytest.raises(ValueError, match="two real"):
        OPTIMIZERS.get("cat_cma")(Mixed(Box([0], [1]), (2,)))
    with pytest.raises(ValueError, match="population"):
        OPTIMIZERS.get("cat_cma")(Mixed(Box([0, 0], [1, 1]), (2,)), population=2)


def test_cma_refuses_a_space_without_vectors():
    with pytest.raises(ValueError, match="Box"):
        OPTIMIZERS.get("cma")(Bits())


@pytest.mark.parametrize(
    ("lower", "upper", "start", "step"),
    [
        ([0], [0], None, None),
        ([0, 0], [1], None, None),
        ([0], [1], [2], None),
        ([0], [1], None, 0),
        ([-np.inf], [1], None, 1),
    ],
)
def test_wrong_boxes_are_refused(lower, upper, start, step):
    with pytest.raises(ValueError, match=r"bound|start|step"):
        Box(lower, upper, start, step)
