"""The essential control: search the target's own latent space, no source at all."""

from collections.abc import Sequence

import numpy as np

from core.evolve.frame import OperatorOptimizer
from core.evolve.protocol import Told
from core.nas.arena import Arena
from core.nas.decoding import decoded_cells
from core.nas.searchers import SEARCHERS, Knowledge
from core.nas.spaces import Genotype

STEP, DRAWN, RIDGE = 0.3, 40, 1.0
WIDER = 3  # times that the step is doubled where nothing new is decoded: a good decoder gives the parents back


@SEARCHERS.register("target_latent", uses="encoder")
class TargetLatent(OperatorOptimizer[Genotype]):
    """Fit a ridge ranker on the latents of asked cells, decode the best of many latents around the best cells.

    Labels of the ranker are queries like all others. The first ``initial`` cells are random.
    """

    def __init__(self, arena: Arena, seed: int, knowledge: Knowledge, initial: int = 10):
        super().__init__(arena, seed, batch=5)
        self.latent, self.initial = knowledge.latent(arena.space, "target_latent"), initial
        self.waiting: list[Genotype] = []

    def propose(self) -> Genotype:
        if len(self.members) < self.initial:
            return self.space.sample(self.rng)
        if not self.waiting:
            self.waiting = self._decoded()
        return self.waiting.pop(0) if self.waiting else self.space.sample(self.rng)

    def _decoded(self) -> list[Genotype]:
        """Cells decoded from promising latents, best first."""
        told = sorted((m for m in self.members if np.isfinite(m.score)), key=lambda m: -m.score)
        z = self.latent.encode(self.space.space, [m.candidate for m in told])
        spread = z.std(0) + 1e-6
        x = np.concatenate([(z - z.mean(0)) / spread, np.ones((len(z), 1))], axis=1)
        y = np.array([m.score for m in told])
        weights = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ (y - y.mean()))
        for wider in range(WIDER + 1):
            parents = z[self.rng.integers(0, min(5, len(z)), DRAWN)]
            drawn = parents + STEP * 2**wider * spread * self.rng.standard_normal(parents.shape)
            value = (drawn - z.mean(0)) / spread @ weights[:-1]
            cells = decoded_cells(self.space, self.latent, drawn[np.argsort(-value, kind="stable")])
            if fresh := [c for c in cells if c is not None and self.space.key(c) not in self.seen]:
                return fresh
        return []

    def learn(self, results: Sequence[Told[Genotype]]) -> None:
        self.members += results
        self.waiting = []

    def state_dict(self) -> dict:
        return super().state_dict() | {"waiting": [self.space.to_json(c) for c in self.waiting]}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.waiting = [self.space.from_json(c) for c in state["waiting"]]
