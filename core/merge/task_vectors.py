"""Task vectors once: base and deltas of all experts as flat float32 arrays, memory-mapped and shared by workers.

The layout puts the tensors of a group (a block of layers, a kind of module) next to each other, so a candidate is one
matrix-vector product a group. Only tensors in which some expert differs from the base take part.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors import safe_open

from core.hashing import content_key, sha256_file
from core.merge.linalg import one_thread
from core.merge.one_base import FAR, POOLER, Descent
from core.merge.tensors import open_checkpoint
from core.state import Cache, write_json

LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
LAYOUT, FACTORS = "layout.json", "factors.safetensors"
VERSION = 1


@dataclass(frozen=True)
class Tensor:
    """A tensor's place in the flat arrays."""

    name: str
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def stop(self) -> int:
        return self.start + self.size

    @property
    def layer(self) -> int | None:
        """Index of the transformer layer it belongs to, None outside the layers."""
        found = LAYER.search(self.name)
        return int(found.group(1)) if found else None


def factor_keys(expert: str, t: Tensor) -> tuple[str, str]:
    """Under which names the two factors of an expert's delta are kept."""
    return f"{expert}/{t.name}/left", f"{expert}/{t.name}/right"


class TaskVectors:
    """Base and components of n experts, flat.

    Attributes:
        names: the experts' names.
        tensors: layout, in order.
        base: float32 [P].
        deltas: float32 [n, P]; raw task vectors or the components of another basis (memory-mapped, read-only).
    """

    def __init__(self, folder: Path):
        layout = json.loads((folder / LAYOUT).read_text())
        self.folder, self.names, self.basis = folder, tuple(layout["names"]), layout["basis"]
        self.settings, self.sha256 = layout["settings"], layout["sha256"]
        self.tensors = tuple(Tensor(t["name"], tuple(t["shape"]), t["start"]) for t in layout["tensors"])
        self.base = np.load(folder / "base.npy", mmap_mode="r")
        self.deltas = np.load(folder / "deltas.npy", mmap_mode="r")

    def exact(self, t: Tensor) -> list[np.ndarray]:
        """Each expert's component of one tensor, in its shape: the float64 product of an adapter's factors where they
        are known (of the adapter's rank, as the engine reads it), else as it is stored."""
        stored = [np.asarray(d).reshape(t.shape) for d in self.deltas[:, t.start : t.stop]]
        if not (self.folder / FACTORS).exists():
            return stored
        with safe_open(self.folder / FACTORS, "numpy") as file, one_thread():
            known = set(file.keys())
            return [
                (file.get_tensor(left) @ file.get_tensor(right)).reshape(t.shape) if left in known else delta
                for delta, (left, right) in zip(stored, [factor_keys(n, t) for n in self.names], strict=True)
            ]

    @property
    def size(self) -> int:
        """Elements of the flat vector, P."""
        return self.base.size

    @property
    def bytes(self) -> int:
        """Memory the arrays take when all of them are touched."""
        return self.base.nbytes + self.deltas.nbytes

    @cached_property
    def layers(self) -> int:
        """Number of transformer layers."""
        return 1 + max((t.layer for t in self.tensors if t.layer is not None), default=0)


def read_tensors(folder: str | Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model folder's tensors, from the safetensors headers only (see ``open_checkpoint``)."""
    return {name: info.shape for name, info in open_checkpoint(folder).tensors.items()}


def task_vectors(
    base: str | Path, experts: Mapping[str, str | Path], cache: Cache | None = None, far: float = FAR
) -> TaskVectors:
    """Raw task vectors of model folders, cached by the hashes of their weights.

    Args:
        base: folder of the base model.
        experts: name -> folder.
        far: largest relative distance ``|expert - base| / |base|`` over all matrices that still counts as one base.

    Raises:
        ValueError: fewer than two experts, tensors missing or of another shape, an expert too far from the base
            (fine-tuned from another one), equal to it, or holding NaN.
    """
    if len(experts) < 2:
        raise ValueError(f"a merge needs at least two experts, got {sorted(experts)}")
    reference, *others = [read_tensors(f) for f in (base, *experts.values())]
    descents = [Descent(f"expert {n!r}", f, Path(base).name, base, far) for n, f in experts.items()]
    prefix = {n: d.prefix(reference, own) for n, d, own in zip(experts, descents, others)}
    shas = {n: [sha256_file(p) for p in open_checkpoint(f).files] for n, f in {"": base, **experts}.items()}
    key = content_key("task vectors", VERSION, shas, list(experts))

    def build(folder: Path) -> None:
        _build(folder, Path(base), {n: Path(f) for n, f in experts.items()}, prefix, reference, key, descents)

    return TaskVectors((cache or Cache()).compute("task-vectors", key, build))


def _build(
    folder: Path,
    base: Path,
    experts: Mapping[str, Path],
    prefix: Mapping[str, str],
    reference: Mapping[str, tuple[int, ...]],
    key: str,
    descents: Sequence[Descent],
) -> None:
    start: dict[str, np.ndarray] = load_tensors(base)
    moved: set[str] = set()
    for (name, path), descent in zip(experts.items(), descents):
        tensors = load_tensors(path, prefix[name])
        for t, value in start.items():
            descent.add(t, value, tensors[t] - value)
        descent.check()
        moved |= descent.changed
    layout = _layout({t: reference[t] for t in start if t in moved})
    size = layout[-1].stop
    np.save(folder / "base.npy", np.concatenate([start[t.name].ravel() for t in layout]))
    deltas = np.lib.format.open_memmap(folder / "deltas.npy", "w+", np.float32, (len(experts), size))
    for row, (name, path) in enumerate(experts.items()):
        tensors = load_tensors(path, prefix[name])
        for t in layout:
            deltas[row, t.start : t.stop] = (tensors[t.name] - start[t.name]).ravel()
    deltas.flush()
    write_layout(folder, list(experts), layout, "raw", {}, key)


def write_layout(
    folder: Path, names: Sequence[str], tensors: Sequence[Tensor], basis: str, settings: Mapping, sha256: str
) -> None:
    """Write the layout file beside ``base.npy`` and ``deltas.npy``."""
    listed = [{"name": t.name, "shape": list(t.shape), "start": t.start} for t in tensors]
    payload = {"names": list(names), "tensors": listed, "basis": basis, "settings": dict(settings), "sha256": sha256}
    write_json(folder / LAYOUT, payload)


def _layout(shapes: Mapping[str, tuple[int, ...]]) -> list[Tensor]:
    """Tensors by layer and name; those outside the layers first."""
    order = sorted(shapes, key=lambda n: (-1 if Tensor(n, (), 0).layer is None else Tensor(n, (), 0).layer, n))
    tensors, at = [], 0
    for name in order:
        tensors.append(Tensor(name, tuple(shapes[name]), at))
        at = tensors[-1].stop
    return tensors


def load_tensors(folder: str | Path, prefix: str = "") -> dict[str, np.ndarray]:
    """Floating-point tensors of a folder in float32 without the prefix; pooler tensors are left out."""
    from safetensors.torch import load_file

    out = {}
    for path in open_checkpoint(folder).files:
        for name, tensor in load_file(path).items():
            if tensor.is_floating_point() and name.startswith(prefix):
                out[name[len(prefix) :]] = tensor.float().numpy()
    return {n: v for n, v in out.items() if not POOLER.search(n)}
