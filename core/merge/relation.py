"""The model-task relation graph: what solved forms say about which experts help or hurt each other, and how surely.

Nodes are experts and tasks. An edge between two experts carries *synergy* and *uncertainty*; an edge from an expert to
a task carries *affinity* (score change of the task per unit of the expert's coefficient). The graph outlives a run: it
is saved, drawn and, matched by names, warm-starts a run on another mix.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np

from core.merge.forms import Solved
from core.state import load_checkpoint, save_checkpoint

KIND, SCHEMA = "relation graph", 1


class RelationGraph:
    """Synergy between experts and affinity of experts to tasks, learned from solved forms.

    Args:
        experts, tasks: names.
        owners: for each task its expert's name, or None.
        rate: lambda, weight of a new observation of a pair.
        kappa: observations after which a pair's uncertainty has halved.
    """

    def __init__(
        self,
        experts: Sequence[str],
        tasks: Sequence[str],
        owners: Sequence[str | None],
        rate: float = 0.3,
        kappa: float = 1.0,
    ):
        if not 0 < rate <= 1 or kappa <= 0:
            raise ValueError(f"rate must be in (0, 1] and kappa above 0, got {rate} and {kappa}")
        self.experts, self.tasks, self.owners = tuple(experts), tuple(tasks), tuple(owners)
        self.rate, self.kappa = rate, kappa
        self.graph = nx.Graph(name="model-task relations")
        for name in experts:
            self.graph.add_node(("expert", name), kind="expert")
        for name, owner in zip(tasks, owners, strict=True):
            self.graph.add_node(("task", name), kind="task", owner=owner)
        for i, a in enumerate(experts):
            for b in experts[i + 1 :]:
                self.graph.add_edge(("expert", a), ("expert", b), synergy=0.0, uncertainty=1.0, seen=0)
        self.solved: list[Solved] = []
        self.answers: list[dict[str, Any]] = []

    def remember(self, offset: np.ndarray, tasks: Mapping[str, Sequence[float]]) -> None:
        """Keep one answer for later runs: offset [n, g] from the reference, task -> (difference, variance)."""
        known = {t: [float(y), float(v)] for t, (y, v) in tasks.items() if np.isfinite(y) and np.isfinite(v)}
        self.answers.append({"offset": np.asarray(offset, dtype=float).tolist(), "tasks": known})

    def set_synergy(self, synergy: np.ndarray) -> None:
        """Expert-expert edges from a symmetric [n, n] matrix (of the response model), keeping what forms counted."""
        for i, a in enumerate(self.experts):
            for j in range(i + 1, len(self.experts)):
                self.graph.edges[("expert", a), ("expert", self.experts[j])]["synergy"] = float(synergy[i, j])

    def update(self, solved: Solved) -> None:
        """Take in a solved form (thesis: g = (y - y_ref) · 2 a_i a_j clipped to [-1, 1], s <- (1 - l) s + l g).

        Coefficients enter as shares of the form's moving experts, so the update does not depend on their scale.
        """
        self.solved.append(solved)
        level = np.abs(solved.coefficients[list(solved.form.models)].mean(axis=1))
        share = level / max(float(level.sum()), 1e-12)
        for at, i in enumerate(solved.form.models):
            for other, j in enumerate(solved.form.models[at + 1 :], at + 1):
                edge = self.graph.edges[("expert", self.experts[i]), ("expert", self.experts[j])]
                value = float(np.clip(solved.gain * 2 * share[at] * share[other] * solved.form.level**2, -1, 1))
                edge["synergy"] = (1 - self.rate) * edge["synergy"] + self.rate * value
                edge["seen"] += 1
                edge["uncertainty"] = self.kappa / (self.kappa + edge["seen"])

    def set_affinity(self, affinity: np.ndarray, deviation: np.ndarray | None = None) -> None:
        """Expert-to-task edges from an [experts, tasks] matrix (and its standard deviations)."""
        for i, a in enumerate(self.experts):
            for j, t in enumerate(self.tasks):
                facts = {"affinity": float(affinity[i, j])}
                if deviation is not None:
                    facts["deviation"] = float(deviation[i, j])
                self.graph.add_edge(("expert", a), ("task", t), **facts)

    def matrix(self, fact: str) -> np.ndarray:
        """Symmetric [n, n] matrix of a fact of the expert-expert edges; zero on the diagonal."""
        n = len(self.experts)
        out = np.zeros((n, n))
        for i in range(n):
            for j in range(i + 1, n):
                out[i, j] = out[j, i] = self.graph.edges[("expert", self.experts[i]), ("expert", self.experts[j])][fact]
        return out

    def affinity(self) -> np.ndarray:
        """[experts, tasks]; zero where nothing was learned."""
        get = self.graph.get_edge_data
        return np.array([
            [(get(("expert", a), ("task", t)) or {}).get("affinity", 0.0) for t in self.tasks] for a in self.experts
        ])  # fmt: skip

    def correlation(self, gamma: float = 3.0) -> np.ndarray:
        """Warm-start correlation R = tanh(gamma · S), unit diagonal, eigenvalues clipped to stay positive definite."""
        matrix = np.tanh(gamma * self.matrix("synergy"))
        np.fill_diagonal(matrix, 1.0)
        values, vectors = np.linalg.eigh(matrix)
        clipped = (vectors * np.clip(values, 0.1, None)) @ vectors.T
        scale = np.sqrt(np.diag(clipped))
        return clipped / np.outer(scale, scale)

    def near_cliques(self, level: int) -> list[tuple[int, ...]]:
        """Sets of ``level`` experts of highest mean synergy, one grown greedily from each pair (best first)."""
        synergy = self.matrix("synergy")
        n = len(self.experts)
        found: dict[tuple[int, ...], float] = {}
        for i in range(n):
            for j in range(i + 1, n):
                chosen = [i, j]
                while len(chosen) < level:
                    rest = [k for k in range(n) if k not in chosen]
                    chosen.append(max(rest, key=lambda k: synergy[k, chosen].sum()))
                key = tuple(sorted(chosen[:level]))
                found[key] = float(synergy[np.ix_(key, key)].sum() / max(level * (level - 1), 1))
        return sorted(found, key=lambda k: -found[k])

    def save(self, path: str | Path) -> None:
        """Write the graph and the solved forms, atomically."""
        save_checkpoint(path, self.state_dict(), kind=KIND, schema=SCHEMA)

    @classmethod
    def load(cls, path: str | Path) -> "RelationGraph":
        """Read what :meth:`save` wrote (see :func:`core.state.load_checkpoint` for errors)."""
        payload, _, _ = load_checkpoint(path, kind=KIND, schema=SCHEMA)
        graph = cls(payload["experts"], payload["tasks"], payload["owners"], payload["rate"], payload["kappa"])
        graph.load_state_dict(payload)
        return graph

    def state_dict(self) -> dict[str, Any]:
        edges = [[list(a), list(b), dict(facts)] for a, b, facts in self.graph.edges(data=True)]
        solved = [
            {
                "form": vars(s.form),
                "coefficients": np.asarray(s.coefficients).tolist(),
                **{k: getattr(s, k) for k in ("score", "reference", "cost", "task_scores")},
            }
            for s in self.solved
        ]
        return {
            "experts": self.experts,
            "tasks": self.tasks,
            "owners": self.owners,
            "rate": self.rate,
            "kappa": self.kappa,
            "edges": edges,
            "solved": solved,
            "answers": self.answers,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        from core.merge.forms import Form

        for a, b, facts in state["edges"]:
            self.graph.add_edge(tuple(a), tuple(b), **facts)
        self.answers = list(state["answers"])
        self.solved = []
        for s in state["solved"]:
            form = Form(**{**s["form"], "models": tuple(s["form"]["models"]), "tasks": tuple(s["form"]["tasks"])})
            rest = {k: s[k] for k in ("score", "reference", "cost", "task_scores")}
            self.solved.append(Solved(form, np.array(s["coefficients"]), **rest))

    def draw(self, path: str | Path) -> None:
        """A picture: experts on a circle, green synergy and red conflict, faint where uncertain, tasks beside them."""
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        experts = self.graph.subgraph([v for v in self.graph if v[0] == "expert"])
        place = nx.circular_layout(experts)
        pairs = list(experts.edges(data=True))
        largest = max((abs(f["synergy"]) for *_, f in pairs), default=0) or 1.0
        figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5.5), gridspec_kw={"width_ratios": [1, 1.1]})
        for a, b, f in pairs:
            (x0, y0), (x1, y1) = place[a], place[b]
            colour = "tab:green" if f["synergy"] >= 0 else "tab:red"
            left.plot(
                [x0, x1],
                [y0, y1],
                color=colour,
                lw=0.5 + 4 * abs(f["synergy"]) / largest,
                alpha=1 - 0.8 * f["uncertainty"],
            )
        for node, (x, y) in place.items():
            left.text(x * 1.12, y * 1.12, node[1], ha="center", va="center", fontsize=9)
            left.plot([x], [y], "o", color="black", ms=5)
        left.set_title("synergy of experts (faint: uncertain)")
        left.axis("off")
        affinity = self.affinity()
        bound = np.abs(affinity).max() or 1.0
        shown = right.imshow(affinity, cmap="RdYlGn", vmin=-bound, vmax=bound, aspect="auto")
        right.set_xticks(range(len(self.tasks)), self.tasks, rotation=45, ha="right", fontsize=8)
        right.set_yticks(range(len(self.experts)), self.experts, fontsize=8)
        right.set_title("affinity: score change of a task per unit coefficient")
        figure.colorbar(shown, ax=right)
        figure.tight_layout()
        figure.savefig(path, dpi=110)
        plt.close(figure)
