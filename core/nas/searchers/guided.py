"""Predictor-guided search: ask where the trusted process expects the largest improvement.

The frame of every model-based searcher here: with no expert it is the no-source predictor search of the BANANAS /
NPENAS kind (on one-hot or on generic features), with a size expert its variant with a parameters prior, and with
sources it is ours (:mod:`core.nas.searchers.transfer`). So the cross source {on, off} x prior {on, off} compares one
code with itself.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

import numpy as np
from scipy.stats import norm

from core.evolve.protocol import Told
from core.nas.arena import Arena, one_hot
from core.nas.experts import SIZES, Expert, size_expert
from core.nas.features import raw_features
from core.nas.predictors.gaussian import Hypothesis, TrustedProcess
from core.nas.searchers import SEARCHERS, Knowledge
from core.nas.spaces import Genotype

TOPS, NEAREST, RANDOM = 400, 300, 800  # candidates a round: best a priori, around the best so far, anywhere
OWN = 0.65  # how much of what one answer deviates from the process counts as the cell's own (the rest is noise)
NUGGETS = {True: (0.03, 0.3), False: (0.001, 0.03)}
ROUND = 8  # from 2 * ROUND answers on, an eighth of their number is asked at a time
UNAIDED = 0.5  # share of such a round asked as if there were no source
CHANCE, HEARD = 6, 4  # before: each 6th cell is random; where sizes speak, too, each 4th follows the source instead


class GuidedSearch:
    """Expected improvement under a mixture of Gaussian processes, in an open or closed arena.

    Args:
        experts: opinions that cost no query; hypotheses: what is believed of them.
        features: distances between cells on ``generic`` features or ``onehot`` tokens.
        initial: random cells asked first (only where no expert speaks).
        noisy: the oracle's answers are single runs; the incumbent is then shrunk towards the process, and trained again
            before it is believed: a query of each later round.
        runs: how many training runs of a cell the oracle can answer with.
        unaided: experts that half of every later round does without. Of the first cells each sixth is random; where
            other experts speak, they choose three of four. A source shows where to begin; a search that keeps asking
            only where the source points never learns that the best cells lie elsewhere.
    """

    repeats = True  # a cell asked again stands for another training run of it

    def __init__(
        self,
        arena: Arena,
        seed: int,
        experts: Sequence[Expert] = (),
        hypotheses: Sequence[Hypothesis] = (Hypothesis(1.0),),
        *,
        features: Literal["generic", "onehot"] = "generic",
        initial: int = 1,
        noisy: bool = True,
        runs: Callable[[Genotype], int] = lambda cell: 1,
        unaided: Collection[str] = (),
    ):
        if features not in ("generic", "onehot"):
            raise ValueError(f"features are 'generic' or 'onehot', got {features!r}")
        self.space = self.arena = arena
        self.rng = np.random.default_rng(seed)
        self.features, self.initial, self.unaided = features, max(1, initial), tuple(unaided)
        self.noisy, self.runs = noisy, runs
        self.experts, self.process = {e.name: e for e in experts}, TrustedProcess(hypotheses, NUGGETS[noisy])
        self.told: list[Told[Genotype]] = []
        self.rows: list[int] = []  # of the told cells in the field
        self.queue: list[Genotype] = []
        self.asked: set[str] = set()
        self.field = _Field(arena, self.experts, features)
        self.others = any(h.slopes and self._hears(h) for h in self.process.hypotheses)
        self._believe()

    @property
    def batch(self) -> int:
        """Cells asked at a time; rounds end at multiples of 25, where results are compared."""
        n = len(self.told)
        return 1 if n < 2 * ROUND else min(n // ROUND, 25 - n % 25)

    def _hears(self, hypothesis: Hypothesis) -> bool:
        """Whether a hypothesis does without the experts of ``unaided``."""
        return not any(name in self.unaided for name in hypothesis.slopes)

    def _believe(self) -> None:
        """What the experts say together before any answer, ``[field]``; and the same without those of ``unaided``."""
        self.first, self.first_unaided = np.zeros(len(self.field.cells)), np.zeros(len(self.field.cells))
        for h in self.process.hypotheses:
            said = sum(h.weight * slope * self.field.scores[name] for name, slope in h.slopes.items())
            self.first = self.first + said
            if self._hears(h):
                self.first_unaided = self.first_unaided + said

    def ask(self, n: int = 1) -> list[Genotype]:
        chosen: list[Genotype] = []
        while self.queue and len(chosen) < n:
            chosen += self._fresh([self.queue.pop(0)])
        while len(chosen) < n:
            got = self._round(n - len(chosen))
            if not got:
                break
            chosen += got
        return chosen

    def _fresh(self, cells: Sequence[Genotype]) -> list[Genotype]:
        """Those not asked before; they count as asked from here on, so all of them must be."""
        out = []
        for cell in cells:
            key = self.arena.key(cell)
            if key not in self.asked:
                self.asked.add(key)
                out.append(cell)
        return out

    def _round(self, n: int) -> list[Genotype]:
        """Up to ``n`` new cells from the present model."""
        speak = any(h.slopes for h in self.process.hypotheses)
        if not speak and len(self.told) < self.initial:
            return self._random(min(n, self.initial - len(self.told)))
        if speak and not self.arena.closed and not self.told:
            self._breed()
        late = len(self.told) >= 2 * ROUND
        if self.unaided and self.told and not late:
            if self.others and len(self.told) % HEARD:
                return self._largest_gain(n, self.unaided)
            if not self.others and len(self.told) % CHANCE == CHANCE - 1:
                return self._random(n)
        chosen = self._unconfirmed() if late else []
        n -= len(chosen)
        unaided = round(UNAIDED * n) if self.unaided and late else 0
        if n > unaided:
            chosen += self._largest_gain(n - unaided)
        return chosen + self._largest_gain(unaided, self.unaided) if unaided else chosen

    def _unconfirmed(self) -> list[Genotype]:
        """The cell that would be kept, to be trained again, while the oracle has runs of it that were not asked."""
        if not self.noisy:
            return []
        rows, shrunk, counts = self._shrunk()
        leader = int(np.argmax(shrunk))
        cell = self.field.cells[rows[leader]]
        return [cell] if counts[leader] < self.runs(cell) else []

    def _largest_gain(self, n: int, without: Collection[str] = ()) -> list[Genotype]:
        """Up to ``n`` new cells of the largest acquisition (before any answer: of the experts' belief)."""
        candidates = self._candidates()
        if not len(candidates):
            return self._random(n)
        value = self._acquisition(candidates, without) if self.told else self.first[candidates]
        value = value + 1e-9 * self.rng.standard_normal(len(candidates))
        order = candidates[np.argsort(-value, kind="stable")]
        chosen: list[Genotype] = []
        for i in order:
            if len(chosen) == n:
                break
            chosen += self._fresh([self.field.cells[i]])
        return chosen or self._random(n)

    def _random(self, n: int) -> list[Genotype]:
        out: list[Genotype] = []
        for _ in range(300):
            out += self._fresh([self.arena.sample(self.rng)])
            if len(out) == n:
                break
        return out

    def _candidates(self) -> np.ndarray:
        """Rows of the field worth scoring this round, none of them asked before."""
        total = len(self.field.cells)
        parts = [self.rng.choice(total, min(RANDOM, total), replace=False)]
        if self.experts:
            parts.append(_largest(self.first, TOPS))
        if self.unaided and self.others:
            parts.append(_largest(self.first_unaided, TOPS))
        if self.told:
            best = self._best_rows(3)
            if not self.arena.closed:
                self.field.add([self.arena.mutate(self.field.cells[i], self.rng) for i in best for _ in range(8)])
                self._believe()
                parts.append(np.arange(total, len(self.field.cells)))
            parts.append(_largest(-self.field.square(best).min(0), NEAREST))
        rows = np.unique(np.concatenate(parts))
        return rows[[self.field.keys[i] not in self.asked for i in rows]]

    def _breed(self, rounds: int = 3, parents: int = 60) -> None:
        """Evolve cells of an open space under the experts' belief alone, before the first query."""
        for _ in range(rounds):
            best = np.argsort(-self.first, kind="stable")[:parents]
            self.field.add([self.arena.mutate(self.field.cells[i], self.rng) for i in best])
            self._believe()

    def _acquisition(self, rows: np.ndarray, without: Collection[str] = ()) -> np.ndarray:
        """Expected improvement of cells over the best mean asked."""
        asked, mean_asked, _ = self._condition()
        if without:
            mean_asked = self.process.predict(self.field.opinions(asked), self.field.square(asked, asked), without)[0]
        mean, deviation = self.process.predict(self.field.opinions(rows), self.field.square(asked, rows), without)
        gain = (mean - mean_asked.max()) / deviation
        return deviation * (gain * norm.cdf(gain) + norm.pdf(gain))

    def _condition(self, first: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Fit the process to the (first) answers, a cell's runs as their mean.

        Returns:
            rows of the cells asked, the process' mean there, and how many runs each had.
        """
        told = self.told[:first]
        finite = [t.score for t in told if np.isfinite(t.score)]
        lowest = min(finite, default=0.0)
        y = np.array([t.score if np.isfinite(t.score) else lowest for t in told])
        rows, place = _distinct(self.rows[:first])
        counts = np.bincount(place)
        opinions, square = self.field.opinions(rows), self.field.square(rows, rows)
        self.process.fit(opinions, square, np.bincount(place, weights=y) / counts)
        return rows, self.process.predict(opinions, square)[0], counts

    def _shrunk(self, first: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows of the cells asked, what to believe of each (-inf where a run failed), and how many runs each had.

        The belief is the process' mean plus a share of the answers' deviation from it, since the luckiest run is rarely
        the best cell. Of one run the share is ``OWN``; it grows with further runs as their noise averages out.
        """
        rows, mean, counts = self._condition(first)
        share = counts * OWN / (counts * OWN + 1 - OWN)
        shrunk = mean + share * (self.process.target - mean)
        failed = {row for row, t in zip(self.rows[:first], self.told, strict=False) if not np.isfinite(t.score)}
        return rows, np.where([row in failed for row in rows], -np.inf, shrunk), counts

    def _best_rows(self, count: int) -> np.ndarray:
        rows = np.array(self.rows)[np.argsort([-t.score for t in self.told], kind="stable")]
        return _distinct(rows)[0][:count]

    def incumbent(self, first: int | None = None) -> Genotype | None:
        """The cell to keep after the first ``first`` answers (all by default): of noise-free answers the best, of
        training runs the one to believe in (:meth:`_shrunk`)."""
        told = self.told[:first]
        if not any(np.isfinite(t.score) for t in told):
            return None
        if not self.noisy:
            return max(told, key=lambda t: t.score).candidate
        rows, shrunk, _ = self._shrunk(first)
        return self.field.cells[rows[int(np.argmax(shrunk))]]

    def trust(self) -> dict[str, float]:
        """What the answers so far support: posterior weight of each hypothesis."""
        if not self.told:
            total = sum(h.weight for h in self.process.hypotheses)
            return {h.name: h.weight / total for h in self.process.hypotheses}
        self._condition()
        return self.process.trust()

    def tell(self, results: Sequence[Told[Genotype]]) -> None:
        grown = len(self.field.cells)
        self.told += results
        self.rows += self.field.add([r.candidate for r in results])
        self.asked.update(self.field.keys[i] for i in self.rows[-len(results) :])
        if len(self.field.cells) > grown:
            self._believe()

    def inject(self, candidates: Sequence[Genotype]) -> None:
        self.queue += list(candidates)

    def state_dict(self) -> dict[str, Any]:
        to_json = self.arena.to_json
        return {
            "rng": self.rng.bit_generator.state,
            "told": [[to_json(t.candidate), t.score, list(t.parts)] for t in self.told],
            "queue": [to_json(c) for c in self.queue],
            "asked": sorted(self.asked),
            "grown": [to_json(c) for c in self.field.cells[len(self.arena.cells) :]],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        parse = self.arena.from_json
        self.rng.bit_generator.state = state["rng"]
        self.told = [Told(parse(c), float(s), tuple(p)) for c, s, p in state["told"]]
        self.queue, self.asked = [parse(c) for c in state["queue"]], set(state["asked"])
        self.field = _Field(self.arena, self.experts, self.features)
        self.field.add([parse(c) for c in state["grown"]])
        self.rows = self.field.add([t.candidate for t in self.told])
        self._believe()


class _Field:
    """The arena's population plus the cells a search has added: features, opinions, distances by row."""

    def __init__(self, arena: Arena, experts: dict[str, Expert], features: str):
        self.arena, self.experts, self.features = arena, experts, features
        self.cells, self.keys, self.row_of = arena.cells, arena.keys, arena.row_of
        self.points = arena.points if features == "generic" else arena.tokens
        self.norms = (self.points**2).sum(1)
        self.scores = {name: e.scores for name, e in experts.items()}

    def add(self, cells: Sequence[Genotype]) -> list[int]:
        """Rows of ``cells``; unknown ones join."""
        keys = [self.arena.key(c) for c in cells]
        new = {k: c for k, c in zip(keys, cells, strict=True) if k not in self.row_of}
        if new:
            added, start = list(new.values()), len(self.cells)
            raw = raw_features(self.arena.space, added)
            ranks = self.arena.scale.ranks(raw)
            generic = self.features == "generic"
            points = self.arena.scale.distances(raw) if generic else one_hot(self.arena.space, added)
            self.cells, self.keys = [*self.cells, *added], [*self.keys, *new]
            self.row_of = self.row_of | {k: start + i for i, k in enumerate(new)}
            self.points = np.concatenate([self.points, points])
            self.norms = (self.points**2).sum(1)
            self.scores = {n: np.concatenate([self.scores[n], e.of(raw, ranks)]) for n, e in self.experts.items()}
        return [self.row_of[k] for k in keys]

    def opinions(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {name: s[rows] for name, s in self.scores.items()}

    def square(self, a: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
        """Squared distances ``[len(a), len(b)]``, b all rows by default."""
        right, norms = (self.points, self.norms) if b is None else (self.points[b], self.norms[b])
        return np.maximum(self.norms[a][:, None] + norms - 2 * self.points[a] @ right.T, 0)


def _distinct(rows: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct rows in the order they came first, and the place of every row among them."""
    places = {row: i for i, row in enumerate(dict.fromkeys(int(r) for r in rows))}
    return np.array(list(places)), np.array([places[int(r)] for r in rows])


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Places of the ``count`` largest values, in no order."""
    return np.argpartition(-values, count)[:count] if count < len(values) else np.arange(len(values))


def size_hypotheses(knowledge: Knowledge, weight: float) -> list[Hypothesis]:
    """Parameters and FLOPs as competing experts where the knowledge allows them."""
    return [Hypothesis(weight / 2, {name: 0.6}) for name in SIZES] if knowledge.prior else []


def size_experts(arena: Arena, knowledge: Knowledge) -> list[Expert]:
    return [size_expert(name, arena) for name in SIZES] if knowledge.prior else []


@SEARCHERS.register("predictor", "Predictor-guided search without source, generic features", uses="sizes")
def predictor_generic(arena: Arena, seed: int, knowledge: Knowledge, initial: int = 10, features: str = "generic"):
    """Gaussian process on the target alone after ten random cells; with ``knowledge.prior`` the sizes are experts."""
    hypotheses = [Hypothesis(0.2), *size_hypotheses(knowledge, 0.8)]
    experts = size_experts(arena, knowledge)
    noise = {"noisy": knowledge.noisy, "runs": knowledge.runs}
    return GuidedSearch(arena, seed, experts, hypotheses, features=features, initial=initial, **noise)


@SEARCHERS.register("predictor_onehot", "Predictor-guided search without source, one-hot tokens", uses="sizes")
def predictor_onehot(arena: Arena, seed: int, knowledge: Knowledge, initial: int = 10):
    """As ``predictor`` with distances on one-hot tokens, as published predictor searches encode a cell."""
    return predictor_generic(arena, seed, knowledge, initial, "onehot")


@SEARCHERS.register("predictor_eager", "As predictor, by expected improvement from the second query on", uses="sizes")
def predictor_eager(arena: Arena, seed: int, knowledge: Knowledge):
    """No random design: expected improvement starts at the corners of feature space, where the large cells are."""
    return predictor_generic(arena, seed, knowledge, initial=1)
