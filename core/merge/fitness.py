"""Fitness of a recipe without disk: merge in memory, score on cached mini-batches, count task-examples.

Scores are means over a mini-batch of per-example hits smoothed by the margin, divided by the individual expert's score
(so 1 is "as good as the expert of the task"), averaged over tasks with weights. All candidates of a round see the same
examples. The per-example scores of one reference recipe, known on all validation examples, are subtracted as a control
variate: candidates of different rounds become comparable and most of the sampling noise is gone.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from core.merge.align import Aligned, Head, align, embed
from core.merge.candidate import InMemoryModel
from core.merge.objectives import EncoderObjective, Objective, Scored, judge, mixed_batches, score_all, score_encoder


@dataclass(frozen=True)
class Answer:
    """What an evaluation of a recipe says.

    Attributes:
        tasks: names, in order; the arrays below follow it.
        score: normalised score per task (estimate for the whole validation set).
        hits: share of right answers per task on the examples seen.
        variance: of the estimate in ``score``, per task.
        cost: task-examples.
        stopped: racing dropped the candidate before its last part.
    """

    tasks: tuple[str, ...]
    score: np.ndarray
    hits: np.ndarray
    variance: np.ndarray
    cost: int
    stopped: bool = False

    @property
    def mean(self) -> float:
        return float(self.score.mean())


@dataclass
class Clock:
    """CPU seconds spent on merging and on scoring, and how many candidates."""

    merging: float = 0.0
    scoring: float = 0.0
    candidates: int = 0

    def add(self, other: "Clock") -> None:
        """Count what another clock has counted."""
        self.merging += other.merging
        self.scoring += other.scoring
        self.candidates += other.candidates

    @property
    def merging_share(self) -> float:
        return self.merging / max(self.merging + self.scoring, 1e-12)


@dataclass
class Fitness:
    """Scores recipes on validation tasks.

    Args:
        model: the in-memory model.
        objectives: task -> objective; its ``reference`` normalises the score.
        batch: validation examples a task in a mini-batch (an int, or task -> int).
        seed: order of the validation examples.
        smooth: use margin-smoothed hits; plain hits otherwise.
        blocks: a candidate's fitness is the median of the means over this many parts of its mini-batch.
        targets: task -> its expert's own logits [n, C] on all examples; then heads are aligned (encoder tasks).

    Raises:
        ValueError: no task, or a mini-batch larger than a task's validation set.
    """

    model: InMemoryModel
    objectives: Mapping[str, Objective]
    batch: int | Mapping[str, int] = 48
    seed: int = 0
    smooth: bool = True
    blocks: int = 1
    clock: Clock = field(default_factory=Clock)
    targets: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.objectives:
            raise ValueError("no task to score on")
        self.tasks = tuple(self.objectives)
        self.sizes = {t: self._size(t) for t in self.tasks}
        for task, size in self.sizes.items():
            if not 1 <= size <= self.objectives[task].size:
                have = self.objectives[task].size
                raise ValueError(f"task {task!r}: mini-batch of {size}, the validation set has {have} examples")
        rng = np.random.default_rng(self.seed)
        self.order = {t: rng.permutation(self.objectives[t].size) for t in self.tasks}
        self.control: dict[str, np.ndarray] = {}
        self.own = {t: Head(self.objectives[t].weight, self.objectives[t].bias) for t in self.targets}
        self._batches: dict[tuple, list] = {}

    def _size(self, task: str) -> int:
        size = self.batch if isinstance(self.batch, int) else self.batch[task]
        return min(size, self.objectives[task].size)

    @property
    def price(self) -> int:
        """Task-examples of one full mini-batch."""
        return sum(self.sizes.values())

    @property
    def validation_size(self) -> int:
        """Task-examples of the whole validation data."""
        return sum(o.size for o in self.objectives.values())

    def indices(self, task: str, round_: int) -> np.ndarray:
        """The examples of ``task`` in round ``round_``: consecutive pieces of its shuffled order, round and round."""
        size, total = self.sizes[task], self.objectives[task].size
        at = (round_ * size + np.arange(size)) % total
        return self.order[task][at]

    def pieces(self, round_: int, parts: int) -> list[dict[str, np.ndarray]]:
        """Task -> indices for each of ``parts`` pieces of the round's mini-batch."""
        split = {t: np.array_split(self.indices(t, round_), parts) for t in self.tasks}
        return [{t: s[n] for t, s in split.items()} for n in range(parts)]

    def in_pieces(
        self, candidates: Sequence[np.ndarray], round_: int, parts: int
    ) -> Iterable[Iterable[dict[str, Scored]]]:
        """Scores of each candidate on one piece of the round's mini-batch after the other.

        Read candidates and their pieces in order: here a candidate is merged, and a piece scored, when it is read.
        """
        pieces = self.pieces(round_, parts)
        return (self._piece_by_piece(c, pieces, round_) for c in candidates)

    def _piece_by_piece(
        self, candidate: np.ndarray, pieces: Sequence[Mapping[str, np.ndarray]], round_: int
    ) -> Iterator[dict[str, Scored]]:
        started = time.perf_counter()
        network = self.model.write(candidate)
        self.clock.merging += time.perf_counter() - started
        self.clock.candidates += 1
        for number, wanted in enumerate(pieces):
            started = time.perf_counter()
            scored = self._scored(network, wanted, (round_, "piece", number, len(pieces)))
            self.clock.scoring += time.perf_counter() - started
            yield scored

    def forward(self, coefficients: np.ndarray, wanted: Mapping[str, np.ndarray], key: tuple | None = None) -> dict:
        """Merge and score: task -> :class:`Scored`; ``key`` names a set of examples whose batches are kept."""
        started = time.perf_counter()
        network = self.model.write(coefficients)
        self.clock.merging += time.perf_counter() - started
        started = time.perf_counter()
        scored = self._scored(network, wanted, key)
        self.clock.scoring += time.perf_counter() - started
        self.clock.candidates += 1
        return scored

    def _scored(self, network: Any, wanted: Mapping[str, np.ndarray], key: tuple | None) -> dict[str, Scored]:
        if key is None or not all(isinstance(self.objectives[t], EncoderObjective) for t in wanted):
            return score_all(network, self.objectives, wanted)
        if key not in self._batches:
            if len(self._batches) > 64:
                self._batches.clear()
            self._batches[key] = mixed_batches(self.objectives, wanted, network.device)
        return score_encoder(network, self.objectives, wanted, self._batches[key])

    def values(self, scored: Scored) -> np.ndarray:
        """The per-example values that fitness averages."""
        return scored.soft if self.smooth else scored.correct

    def set_control(self, coefficients: np.ndarray) -> Answer:
        """Score the reference recipe on all validation examples; later answers are differences to it plus its mean."""
        found = self._aligned(coefficients) if self.targets else None
        answer, scored = self._full(coefficients, found)
        if found is not None:
            self.use({t: aligned.head for t, (_, aligned) in found.items()})
            labels = {t: self.objectives[t].labels for t in found}
            scored |= {t: judge(aligned.head.logits(x), labels[t]) for t, (x, aligned) in found.items()}
        self.control = {t: self.values(scored[t]) for t in self.tasks}
        return answer

    def full(self, coefficients: np.ndarray) -> Answer:
        """Score a recipe on all validation examples (finalists), by plain hits."""
        return self._full(coefficients)[0]

    def heads(self, coefficients: np.ndarray) -> dict[str, Head]:
        """The aligned heads of a recipe; none where the experts' own logits are not known."""
        found = self._aligned(coefficients) if self.targets else {}
        return {t: aligned.head for t, (_, aligned) in found.items()}

    def use(self, heads: Mapping[str, Head]) -> None:
        """Score mini-batches with these heads from now on."""
        for task, head in heads.items():
            self.objectives[task].weight, self.objectives[task].bias = head.weight, head.bias

    def _aligned(self, coefficients: np.ndarray) -> dict[str, tuple[np.ndarray, Aligned]]:
        """Task -> its embeddings [n, H] under a recipe, and the head aligned on them."""
        network, key = self.model.write(coefficients), ("embed",)
        if key not in self._batches:
            everything = {t: np.arange(self.objectives[t].size) for t in self.targets}
            self._batches[key] = mixed_batches(self.objectives, everything, network.device)
        embedded = embed(network, {t: self.objectives[t] for t in self.targets}, self._batches[key])
        return {t: (x, align(x, self.targets[t], self.own[t], self.seed)) for t, x in embedded.items()}

    def _full(self, coefficients: np.ndarray, found: dict | None = None) -> tuple[Answer, dict[str, Scored]]:
        wanted = {t: np.arange(self.objectives[t].size) for t in self.tasks}
        if self.targets:
            found = found or self._aligned(coefficients)
            scored = {t: judge(a.held_out, self.objectives[t].labels) for t, (_, a) in found.items()}
            others = {t: indices for t, indices in wanted.items() if t not in scored}
            if others:  # a score function of the user's: it has no head to align
                scored |= self.forward(coefficients, others, ("full",))
        else:
            scored = self.forward(coefficients, wanted, ("full",))
        hits = np.array([scored[t].correct.mean() for t in self.tasks])
        reference = np.array([self.objectives[t].reference for t in self.tasks])
        sizes = np.array([self.objectives[t].size for t in self.tasks])
        variance = hits * (1 - hits) / sizes / reference**2
        return Answer(self.tasks, hits / reference, hits, variance, int(sizes.sum())), scored

    def evaluate(self, coefficients: np.ndarray, round_: int, tasks: Sequence[str] | None = None) -> Answer:
        """Score a recipe on the round's mini-batch of ``tasks`` (all when None). NaN scores stay NaN."""
        tasks = self.tasks if tasks is None else tuple(tasks)
        wanted = {t: self.indices(t, round_) for t in tasks}
        scored = self.forward(coefficients, wanted, (round_, *tasks) if self._repeats(round_) else None)
        return self.summary(tasks, scored, wanted)

    def _repeats(self, round_: int) -> bool:
        return True

    def summary(self, tasks: Sequence[str], scored: Mapping[str, Scored], wanted: Mapping[str, np.ndarray]) -> Answer:
        """Normalised estimates from per-example scores of some examples."""
        rows = [self._estimate(t, scored[t], wanted[t]) for t in tasks]
        score, hits, variance = (np.array(c) for c in zip(*rows, strict=True))
        return Answer(tuple(tasks), score, hits, variance, sum(len(wanted[t]) for t in tasks))

    def _estimate(self, task: str, scored: Scored, indices: np.ndarray) -> tuple[float, float, float]:
        values, reference = self.values(scored), self.objectives[task].reference
        offset = 0.0
        if task in self.control:
            values, offset = values - self.control[task][indices], float(self.control[task].mean())
        parts = np.array_split(values, min(self.blocks, len(values)))
        mean = float(np.median([p.mean() for p in parts])) + offset
        spread = max(float(values.var(ddof=1)) if len(values) > 1 else 0.25, 1e-4)
        total = self.objectives[task].size
        variance = spread / len(values) * max(1.0 - len(values) / total, 0.02)
        return mean / reference, float(scored.correct.mean()), variance / reference**2


@dataclass
class Racing:
    """Drops clearly losing candidates of a generation after part of their mini-batch.

    Rule: the mini-batch is scored in ``parts`` pieces. A candidate is dropped after a piece when its mean difference to
    the ``keep``-th best finished candidate of the generation, example by example on the pieces both have seen, lies
    more than ``z`` standard errors below zero. Dropped candidates keep the score of what they have seen.
    """

    parts: int = 3
    keep: int = 4
    z: float = 1.65

    def __post_init__(self) -> None:
        if self.parts < 1 or self.keep < 1 or self.z <= 0:
            raise ValueError(f"racing needs parts >= 1, keep >= 1, z > 0; got {self.parts}, {self.keep}, {self.z}")


def race(fitness: Fitness, candidates: Sequence[np.ndarray], round_: int, rule: Racing | None) -> list[Answer]:
    """Answers of a generation on one round's mini-batch, with early dropping when ``rule`` is given."""
    parts = 1 if rule is None else min(rule.parts, *fitness.sizes.values())  # no piece is empty
    pieces = fitness.pieces(round_, parts)
    finished: list[tuple[float, list[np.ndarray]]] = []
    answers = []
    for told in fitness.in_pieces(candidates, round_, parts):
        seen: list[dict[str, Scored]] = []
        values: list[np.ndarray] = []
        stopped = False
        for scored in told:
            seen.append(scored)
            values.append(_weighted(fitness, scored))
            if len(seen) < parts and _loses(values, finished, rule):
                stopped = True
                break
        wanted = {t: np.concatenate([p[t] for p in pieces[: len(seen)]]) for t in fitness.tasks}
        joined = {
            t: Scored(np.concatenate([s[t].correct for s in seen]), np.concatenate([s[t].soft for s in seen]))
            for t in fitness.tasks
        }
        answer = fitness.summary(fitness.tasks, joined, wanted)
        answers.append(Answer(**{**vars(answer), "stopped": stopped}))
        if not stopped and np.isfinite(answer.mean):
            finished.append((float(np.concatenate(values).mean()), values))
    return answers


def _weighted(fitness: Fitness, scored: Mapping[str, Scored]) -> np.ndarray:
    """Per-example values scaled so that their mean is the normalised score of the piece."""
    total = sum(len(scored[t].soft) for t in fitness.tasks)
    out = []
    for t in fitness.tasks:
        v = fitness.values(scored[t])
        out.append(v * (total / len(fitness.tasks) / len(v) / fitness.objectives[t].reference))
    return np.concatenate(out)


def _loses(values: list[np.ndarray], finished: list[tuple[float, list[np.ndarray]]], rule: Racing) -> bool:
    if len(finished) < rule.keep:
        return False
    rival = sorted(finished, key=lambda f: -f[0])[rule.keep - 1][1]
    difference = np.concatenate(values) - np.concatenate(rival[: len(values)])
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    return bool(difference.mean() < -rule.z * max(error, 1e-12))
