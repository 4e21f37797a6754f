"""From any run back to the hashes of its sources, with every hash checked against what lies on disk."""

import html
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from mlflow.exceptions import MlflowException

from core.state import StateError, verify
from tasks import mlflow_store
from tasks.addresses import link_base, without_password
from tasks.long_tags import joined

OUTPUT = "output.sha256"
CARDS = ("asset.json", "data.json")  # of tasks.load_model and tasks.stage, which whoever delivers does not import


@dataclass
class Node:
    """An artifact or run: its hash, the run that made it, the state of its folder, and what it was made from."""

    name: str
    sha256: str
    run: str
    path: str
    state: str  # "intact" | "damaged" | "gone" | "" (a run without folder)
    inputs: list["Node"] = field(default_factory=list)
    about: str = ""  # of a model or data: its own name

    @property
    def title(self) -> str:
        """The stage, and what it read."""
        return f"{self.name} {self.about}".rstrip()

    def walk(self) -> Iterator["Node"]:
        yield self
        for child in self.inputs:
            yield from child.walk()

    def unfolded(self) -> "Node":
        """A copy in which what was made of an artifact's inputs stands once, where the artifact is first met.

        Spelled out under each that reads it, an artifact of an evolved merge would be told many times.
        """
        return _unfolded(self, set())


def _unfolded(node: Node, met: set[str]) -> Node:
    if not node.inputs:
        return node
    if node.run in met:
        return replace(node, inputs=[], about=f"{node.about} (as above)".lstrip())
    met.add(node.run)
    return replace(node, inputs=[_unfolded(child, met) for child in node.inputs])


def trace(run: str) -> Node:
    """The tree above a run.

    Raises:
        ValueError: no such run in the tracking store.
    """
    mlflow_id = mlflow_store.find_run(run) or run
    try:
        tags = mlflow_store.client().get_run(mlflow_id).data.tags
    except MlflowException:
        where = without_password(mlflow_store.client().tracking_uri)
        raise ValueError(f"no run {run!r} in {where}; give an MLflow run id or a printed id") from None
    state = cache(_state)  # several stages read one folder: its files are hashed once a tree
    inputs = _inputs(tags, {}, state)
    return Node(tags.get("mlflow.runName", "run"), tags.get("output.sha256", ""), mlflow_id, "", "", inputs)


def _inputs(tags: dict[str, str], seen: dict[str, list[Node]], state: Callable[[str, str], str]) -> list[Node]:
    nodes = []
    for entry in joined("inputs", tags, []):
        name, sha256, path = entry["name"], entry["sha256"], entry["path"]
        node = Node(name, sha256, entry["run"], path, state(path, sha256), about=_about(path))
        if entry["run"]:
            if entry["run"] not in seen:
                seen[entry["run"]] = []
                # Not in this store: then the stage that found the same in the cache, begun later than its flow.
                made_by = mlflow_store.find_run(entry["run"]) or mlflow_store.find_run_with(OUTPUT, entry["sha256"])
                if made_by is not None:
                    seen[entry["run"]] = _inputs(mlflow_store.client().get_run(made_by).data.tags, seen, state)
                elif entry["path"]:
                    node.about = f"{node.about} (made by a run that is not in this store)".lstrip()
            node.inputs = seen[entry["run"]]
        nodes.append(node)
    return nodes


def _about(path: str) -> str:
    """Name of the model or data in a folder, and the hash of a file that was handed in; empty for anything else."""
    for card in CARDS:
        if path and (Path(path) / card).is_file():
            try:
                told = json.loads((Path(path) / card).read_text())
                digest = str(told.get("sha256") or "")
            except (OSError, ValueError, AttributeError):  # its state says that it is damaged
                return ""
            file = Path(path) / str(told.get("name", ""))
            handed_in = f" (file {digest[:12]})" if file.is_file() and digest else ""
            return f"{told.get('name', '')}{handed_in}"
    return ""


def _state(path: str, sha256: str) -> str:
    if not path:
        return ""
    try:
        found = verify(path)["sha256"]
    except FileNotFoundError:
        return "gone"
    except StateError:
        return "damaged"
    return "intact" if found == sha256 else "damaged"


def log_graph(mlflow_id: str) -> None:
    """Log ``lineage.html`` to a run: the tree of :func:`trace`, each node a link to the run that made it."""
    root = trace(mlflow_id)
    places = {}
    for run in {n.run for n in root.walk() if n.run}:
        found = mlflow_store.find_run(run) or run
        try:
            info = mlflow_store.client().get_run(found).info
        except MlflowException:
            continue
        places[run] = f"experiments/{info.experiment_id}/runs/{found}"
    page = graph_html(root, places, link_base(mlflow_store.client().tracking_uri))
    mlflow_store.client().log_text(mlflow_id, page, "lineage.html")


def graph_html(root: Node, experiments: dict[str, str], base_url: str | None) -> str:
    """The tree as a self-contained SVG page whose nodes open the upstream runs (when a server has an address).

    Args:
        experiments: run id -> MLflow experiment and run path (``experiments/E/runs/R``).
        base_url: address of the MLflow UI, or None.
    """
    placed: list[tuple[Node, int, int]] = []
    edges: list[tuple[int, int]] = []

    def place(node: Node, depth: int, parent: int | None) -> None:
        placed.append((node, depth, len(placed)))
        me = len(placed) - 1
        if parent is not None:
            edges.append((parent, me))
        for child in node.inputs:
            place(child, depth + 1, me)

    place(root.unfolded(), 0, None)
    step_x, step_y, width = 250, 46, 230
    height = step_y * len(placed) + 20
    shapes = []
    for a, b in edges:
        (_, da, ra), (_, db, rb) = placed[a], placed[b]
        x1, y1, x2, y2 = da * step_x + 24, ra * step_y + 38, db * step_x + 10, rb * step_y + 24
        shapes.append(f'<path d="M{x1} {y1} V{y2} H{x2}" fill="none" stroke="#888"/>')
    colours = {"intact": "#e3f4e8", "damaged": "#f9d6d5", "gone": "#fdf1cc", "": "#e4ecf7"}
    for node, depth, row in placed:
        x, y = depth * step_x + 10, row * step_y + 10
        digest = html.escape(f"{node.sha256[:16]} {node.state}")
        text = f"{html.escape(node.title)}</text><text x='{x + 8}' y='{y + 25}' class='h'>{digest}</text>"
        box = (
            f"<rect x='{x}' y='{y}' width='{width}' height='32' rx='5' fill='{colours[node.state]}' stroke='#667'/>"
            f"<text x='{x + 8}' y='{y + 13}'>{text}"
        )
        target = experiments.get(node.run)
        shapes.append(f"<a href='{base_url}/#/{target}'>{box}</a>" if base_url and target else box)
    span = (max(d for _, d, _ in placed) + 1) * step_x + 20
    style = "text{font:12px sans-serif}.h{font:10px monospace;fill:#555}"
    return (
        f"<!doctype html><meta charset='utf-8'><title>Lineage</title><svg xmlns='http://www.w3.org/2000/svg' "
        f"width='{span}' height='{height}'><style>{style}</style>{''.join(shapes)}</svg>"
    )
