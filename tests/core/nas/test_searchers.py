"""What every registered searcher promises, on a pool of NAS-Bench-201 cells with made-up accuracies."""

from typing import ClassVar

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from core.evolve.protocol import Told
from core.nas.arena import Arena
from core.nas.encoder import Corpus, EncoderConfig, train_latent_space
from core.nas.oracles import TableOracle
from core.nas.oracles.runs import RunsTable
from core.nas.ranked import ranked_search
from core.nas.search import incumbent, search_architectures
from core.nas.searchers import SEARCHERS, Knowledge, get_searcher
from core.nas.searchers.pareto import front
from core.nas.source import learn_source
from core.nas.spaces import get_space
from core.nas.spaces.nb201 import NB201Cell
from core.state import Cache
from core.transfer.budget import Budget

NAMES = SEARCHERS.names()


class Made(TableOracle):
    """Accuracy grows with convolutions; a pool of 300 cells."""

    name, dataset, noise = "made", "made", "none"

    def __init__(self, limit, seed=0):
        super().__init__(Budget("queries", limit), seed)
        self.space = get_space("nb201")
        rng = np.random.default_rng(0)
        cells = list(self.space.enumerate())
        self.cells = [cells[i] for i in rng.permutation(len(cells))[:300]]
        self.answers = np.array([c.ops.count(3) + 0.6 * c.ops.count(2) - 0.3 * c.ops.count(0) for c in self.cells])
        self.seconds = np.ones(300)
        self.rows = {self.space.key(c): i for i, c in enumerate(self.cells)}

    def index(self, g):
        return self.rows[self.space.key(g)]


@pytest.fixture(scope="module")
def world():
    oracle = Made(1)
    arena = Arena(oracle.space, oracle.pool())
    source = learn_source("made source", arena, oracle.cells, oracle.answers)
    tiny = EncoderConfig(width=16, feedforward=16, heads=2, layers=1, latent=4, steps=3, rank_steps=0, every=3)
    latent = train_latent_space([Corpus(oracle.space, oracle.cells)], tiny)
    return arena, Knowledge((source,), True, False, {"nb201": latent})


def run(world, name, queries, seed=3):
    arena, knowledge = world
    oracle = Made(queries)
    searcher = get_searcher(name, arena, seed, knowledge)
    return oracle, searcher, search_architectures(oracle, searcher)


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_search_whatever_the_global_generator_does(world, name):
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    first = [t.candidate for t in run(world, name, 20)[2].trials]
    assert (np.random.get_state()[1] == before).all()
    np.random.seed(2)
    assert [t.candidate for t in run(world, name, 20)[2].trials] == first


def test_another_seed_is_another_search(world):
    for name in ("random", "ga", "rea", "local_search", "predictor_onehot", "target_latent"):
        first, second = ([t.candidate for t in run(world, name, 12, seed)[2].trials] for seed in (1, 2))
        assert first != second, name


@pytest.mark.parametrize("name", NAMES)
def test_queries_are_counted_exactly_and_duplicates_not_charged(world, name):
    oracle, _, result = run(world, name, 23)
    keys = [oracle.space.key(t.candidate) for t in result.trials]
    assert oracle.budget.spent == 23 == oracle.queries == len(set(keys))
    oracle.query(result.trials[0].candidate)
    assert oracle.queries == 23


@pytest.mark.parametrize("name", NAMES)
def test_state_continues_identically(world, name):
    arena, knowledge = world
    oracle, other = Made(100), Made(100)
    searcher = get_searcher(name, arena, 5, knowledge)
    for _ in range(6):
        asked = searcher.ask(3)
        searcher.tell([Told(c, oracle.query(c).value) for c in asked])
    twin = get_searcher(name, arena, 99, knowledge)
    twin.load_state_dict(searcher.state_dict())
    for _ in range(4):
        a, b = searcher.ask(3), twin.ask(3)
        assert a == b
        searcher.tell([Told(c, oracle.query(c).value) for c in a])
        twin.tell([Told(c, other.query(c).value) for c in b])


@pytest.mark.parametrize("name", NAMES)
def test_the_incumbent_was_asked_and_failures_do_not_stop_a_search(world, name):
    arena, knowledge = world
    searcher = get_searcher(name, arena, 1, knowledge)
    for i in range(12):
        searcher.tell([Told(c, float("-inf") if i % 2 else float(i)) for c in searcher.ask(1)])
    _, searcher, result = run(world, name, 15)
    kept = incumbent(searcher, result)
    assert kept in [t.candidate for t in result.trials]


def test_injected_cells_are_asked_first(world):
    arena, knowledge = world
    for name in ("transfer", "random", "ga", "local_search"):
        searcher = get_searcher(name, arena, 0, knowledge)
        searcher.inject([arena.cells[7]])
        assert searcher.ask(1) == [arena.cells[7]]


def test_a_good_source_finds_a_top_cell_at_once_and_a_false_one_does_not_prevent_it(world):
    arena, _ = world
    oracle, _, result = run(world, "transfer", 5)
    assert result.best.score >= np.sort(oracle.answers)[-5]
    false = learn_source("false", arena, arena.cells, -oracle.answers)
    searcher = get_searcher("transfer", arena, 0, Knowledge((false,), False, False))
    result = search_architectures(Made(60), searcher)
    assert result.best.score >= np.sort(oracle.answers)[-3]


def test_parameters_first_goes_by_size_with_ties_in_random_order(world):
    arena, knowledge = world
    orders = []
    for seed in (0, 1):
        cells = get_searcher("parameters_first", arena, seed, knowledge).ask(40)
        sizes = [arena.space.size_features(c)["params"] for c in cells]
        assert sizes == sorted(sizes, reverse=True)
        orders.append(cells)
    assert orders[0] != orders[1]


def test_two_sources_of_one_name_and_missing_knowledge_are_refused(world):
    arena, knowledge = world
    with pytest.raises(ValueError, match="different names"):
        get_searcher("transfer", arena, 0, Knowledge(knowledge.sources * 2))
    with pytest.raises(ValueError, match="needs a source"):
        get_searcher("bridge", arena, 0, Knowledge())
    with pytest.raises(ValueError, match="latent space"):
        get_searcher("target_latent", arena, 0, Knowledge())
    with pytest.raises(ValueError, match="did you mean 'transfer'"):
        get_searcher("transfr", arena)


def test_a_decoder_without_fault_does_not_end_the_search_of_latents(world):
    arena, _ = world

    class Exact:
        """One coordinate an operation, so that small steps decode to the cell they began at."""

        def encode(self, space, cells):
            return np.array([np.eye(5)[list(c.ops)].ravel() for c in cells])

        def decode(self, space, z):
            return [NB201Cell(tuple(ops)) for ops in z.reshape(len(z), 6, 5).argmax(-1).tolist()]

    searcher = get_searcher("target_latent", arena, 0, Knowledge(latents={"nb201": Exact()}))
    asked = []
    for _ in range(12):
        cells = searcher.ask(5)
        searcher.tell([Told(c, float(sum(o == 3 for o in c.ops))) for c in cells])
        asked += cells
    assert len({arena.key(c) for c in asked}) == 60


@pytest.mark.parametrize("mapping", ["linear", "none", "random", "shared"])
def test_bridge_carries_elites_between_the_sub_networks_of_two_models(mapping):
    """Two spaces of one name: each has its own latent space, and nothing is taken for the default settings."""
    origin = get_space("transformer-student", layers=4, heads=(1, 2), neurons=(16, 32), width=32)
    target = get_space("transformer-student", layers=2, heads=(2, 4, 8), neurons=(8, 64), width=64)
    tiny = EncoderConfig(width=16, feedforward=16, heads=2, layers=1, latent=4, steps=60, rank_steps=0, every=60)
    known, arenas = {}, []
    for space in (origin, target):
        arenas.append(Arena(space))
        known[space.full_name] = train_latent_space([Corpus(space, arenas[-1].cells)], tiny)
    labels = arenas[0].raw[:, -1]
    source = learn_source("students", arenas[0], arenas[0].cells, labels)
    searcher = get_searcher("bridge", arenas[1], 0, Knowledge((source,), latents=known), mapping=mapping)
    asked = []
    for _ in range(3):
        cells = searcher.ask(10)
        searcher.tell([Told(c, target.size_features(c)["params"]) for c in cells])
        asked += cells
    for cell in [*asked, *searcher.transferred]:
        target.check(cell)
    assert searcher.transferred
    with pytest.raises(ValueError, match=r"the latent space of 'transformer-student\(.*layers=4.*has those of nb201"):
        get_searcher("bridge", arenas[1], 0, Knowledge((source,), latents={"nb201": None}))
    with pytest.raises(ValueError, match=r"'target_latent' needs the latent space of .*it has none"):
        get_searcher("target_latent", arenas[1], 0, Knowledge((source,)))


def test_the_pareto_front_is_what_no_other_point_beats():
    values, costs = [1.0, 3.0, 2.0, 3.0, float("-inf")], [1.0, 5.0, 2.0, 4.0, 0.0]
    assert front(values, costs) == [0, 2, 3]


def test_an_open_arena_grows_beyond_its_population():
    space = get_space("darts")
    arena = Arena(space, sample=60)
    searcher = get_searcher("predictor_eager", arena, 0)
    for i in range(8):
        searcher.tell([Told(c, float(i)) for c in searcher.ask(1)])
    assert len(searcher.field.cells) > 60
    assert len(arena.cells) == 60


def test_a_ranked_search_asks_the_ranker_so_often_and_returns_its_favourites(world):
    class BySize:
        calls = 0

        def encode(self, space, cells):
            self.calls += len(cells)
            return np.array([space.size_features(c)["params"] for c in cells], dtype=float)

        def rank(self, z):
            return z

    ranker, arena = BySize(), world[0]
    found = ranked_search(arena.space, ranker, get_searcher("ga", arena, 0, Knowledge()), 60)
    sizes = [arena.space.size_features(c)["params"] for c in found]
    assert ranker.calls == len(found) == 60
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_table_no_larger_than_the_budget_is_asked_whole(world, name):
    """Rounds ask several cells at a time; none may be lost between them."""
    _, knowledge = world
    oracle = Made(60)
    oracle.cells = oracle.cells[:60]
    arena = Arena(oracle.space, oracle.pool())
    result = search_architectures(oracle, get_searcher(name, arena, 3, knowledge))
    assert len({arena.key(t.candidate) for t in result.trials}) == 60
    assert result.best.score == oracle.answers[:60].max()


@pytest.mark.parametrize("name", ["random", "rea", "ga", "local_search", "predictor"])
def test_a_budget_of_seconds_ends_the_search_and_keeps_what_it_found(world, name, tmp_path):
    arena, knowledge = world
    oracle = Made(10)
    oracle.budget, oracle.seconds = Budget("simulated_seconds", 10.5), np.full(300, 2.0)
    searcher = get_searcher(name, arena, 3, knowledge)
    result = search_architectures(oracle, searcher, checkpoint=tmp_path / "search", key="k")
    assert [t.score > -np.inf for t in result.trials] == [True] * 5
    assert (oracle.budget.spent, oracle.queries) == (10.0, 5)
    again = Made(10)
    again.budget, again.seconds = Budget("simulated_seconds", 10.5), np.full(300, 2.0)
    searcher = get_searcher(name, arena, 3, knowledge)
    resumed = search_architectures(again, searcher, checkpoint=tmp_path / "search", key="k")
    assert [t.candidate for t in resumed.trials] == [t.candidate for t in result.trials]


def test_kept_features_are_those_of_the_spaces_settings(tmp_path):
    cells = [get_space("darts").sample(np.random.default_rng(0)) for _ in range(3)]
    for settings in ({}, {"channels": 16, "layers": 20}):
        space = get_space("darts", **settings)
        kept = Arena(space, cells, cache=Cache(tmp_path))
        assert np.array_equal(kept.raw, Arena(space, cells).raw)


def test_a_search_sums_on_one_thread_whatever_the_caller_has(world):
    """Sums of more threads round otherwise, and a search that is one rounding off asks other cells."""

    class Watched(Made):
        seen: ClassVar[set[int]] = set()

        def query(self, g):
            self.seen |= {lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"}
            return super().query(g)

    with threadpool_limits(2, user_api="blas"):
        search_architectures(Watched(3), get_searcher("random", world[0], 0))
        assert {lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"} == {2}
    assert Watched.seen == {1}


class Noisy(RunsTable):
    """The pool of ``Made``, with three training runs a cell that scatter around its accuracy."""

    name, dataset = "noisy", "made"

    def __init__(self, limit, scatter=1.0, seed=0):
        super().__init__(seed=seed, budget=Budget("queries", limit))
        made = Made(1)
        self.space, self.cells, self.rows, self.truth = made.space, made.cells, made.rows, made.answers
        runs = self.truth[:, None] + scatter * np.random.default_rng(7).standard_normal((300, 3))
        self.fill(runs, np.ones((300, 3)))

    def index(self, g):
        return self.rows[self.space.key(g)]


def noisy_search(world, oracle, seed=0, **places):
    arena, _ = world
    searcher = get_searcher("predictor", arena, seed, Knowledge(noisy=True, runs=oracle.runs))
    return searcher, search_architectures(oracle, searcher, **places)


def test_before_it_is_believed_the_leader_is_trained_again(world):
    oracle = Noisy(60)
    searcher, result = noisy_search(world, oracle)
    keys = [oracle.space.key(t.candidate) for t in result.trials]
    assert oracle.budget.spent == oracle.queries == len(keys) == 60
    times = {k: keys.count(k) for k in keys}
    assert len(set(keys[:16])) == 16, "the first answers all go to new cells"
    assert 3 <= sum(times.values()) - len(times) <= 20
    assert max(times.values()) <= 3
    kept = incumbent(searcher, result)
    assert times[oracle.space.key(kept)] > 1
    for key in (k for k, n in times.items() if n == 3):
        scores = sorted(t.score for t in result.trials if oracle.space.key(t.candidate) == key)
        row = oracle.index(next(t.candidate for t in result.trials if oracle.space.key(t.candidate) == key))
        assert scores == sorted(oracle.measured[row]), "each run answers once"


def test_trained_again_the_kept_cell_is_better_than_by_single_runs(world):
    arena, _ = world
    with_runs, single = [], []
    for seed in range(12):
        oracle = Noisy(60, seed=seed)
        searcher, result = noisy_search(world, oracle, seed)
        with_runs.append(oracle.truth[oracle.index(incumbent(searcher, result))])
        oracle = Noisy(60, seed=seed)
        plain = get_searcher("predictor", arena, seed, Knowledge(noisy=True))
        result = search_architectures(oracle, plain)
        single.append(oracle.truth[oracle.index(incumbent(plain, result))])
    assert np.mean(with_runs) > np.mean(single)


def test_a_search_that_trains_again_continues_identically(world, tmp_path):
    whole = [t.candidate for t in noisy_search(world, Noisy(50))[1].trials]
    file, calls = tmp_path / "search", []

    def stop(generation, trials):
        calls.append(generation)
        if len(calls) == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        noisy_search(world, Noisy(50), checkpoint=file, on_generation=stop)
    oracle = Noisy(50)
    _, result = noisy_search(world, oracle, checkpoint=file)
    assert [t.candidate for t in result.trials] == whole
    assert oracle.queries == 50
