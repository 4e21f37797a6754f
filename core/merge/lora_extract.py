"""LoRA out: the difference between two models as a peft adapter of low rank, with the energy it keeps.

Every changed matrix of ``model - base`` is cut to its best approximation of rank r (Eckart-Young: the top singular
triples). What a low-rank pair cannot hold (biases, norms, convolutions) is either left out, and counted as lost energy,
or saved in full.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.merge.linalg import svd
from core.merge.lora import CONFIG, PREFIX, WEIGHTS, read_all
from core.merge.names import LAYER, is_before
from core.merge.tensors import Checkpoint, open_checkpoint
from core.progress import progress
from core.state import atomic_path, write_json

REST = ("drop", "save")


@dataclass(frozen=True)
class Extracted:
    """One changed tensor. ``rank`` 0: left out; None: saved in full. ``kept``: share of its squared norm."""

    name: str
    rank: int | None
    energy: float
    kept: float


@dataclass(frozen=True)
class Extraction:
    """The adapter's folder and what it keeps of the difference."""

    path: Path
    tensors: tuple[Extracted, ...]

    @property
    def kept(self) -> float:
        """Share of the squared norm of the whole difference that base plus adapter reproduces; 1 of no difference."""
        total = sum(t.energy for t in self.tensors)
        return sum(t.energy * t.kept for t in self.tensors) / total if total else 1.0


def extract_lora(
    base: str | Path,
    model: str | Path,
    out: str | Path,
    *,
    rank: int = 16,
    energy: float = 1.0,
    rest: str = "drop",
    base_name: str | None = None,
) -> Extraction:
    """Write ``model - base`` as a peft adapter.

    Args:
        base, model: folders (or files) of models with equal tensors.
        out: folder of the adapter.
        rank: largest rank of a pair.
        energy: share of each matrix's squared norm that is enough; smaller ranks are taken where they reach it.
        rest: changed tensors that are no matrices: ``drop`` or ``save`` (their modules in full, biases as biases).
        base_name: name of the base model in the adapter's configuration; default its folder.

    Memory: one matrix in float64 with its factors, and the adapter.

    Raises:
        ValueError: settings out of range, models whose tensors differ, or no difference at all.
    """
    if rank < 1 or not 0 < energy <= 1 or rest not in REST:
        raise ValueError(f"rank={rank}, energy={energy}, rest={rest!r}; needed: rank >= 1, 0 < energy <= 1, {REST}")
    old, new = open_checkpoint(base), open_checkpoint(model)
    _check_equal(old, new)
    arrays: dict[str, np.ndarray] = {}
    found = [_extract(name, old, new, rank, energy, rest, arrays) for name in progress(_floating(old), "extract LoRA")]
    tensors = tuple(t for t in found if t is not None)
    pairs = {t.name.removesuffix(".weight"): t.rank for t in tensors if t.rank}
    if not pairs:
        raise ValueError(f"{model} and {base} do not differ in any matrix; there is nothing to extract")
    if rest == "save":
        _complete_modules(new, arrays, pairs)
    _write(Path(out), arrays, _config(pairs, arrays, base_name or str(base)))
    return Extraction(Path(out), tensors)


def _floating(checkpoint: Checkpoint) -> list[str]:
    return [n for n, t in checkpoint.tensors.items() if t.dtype in ("F64", "F32", "F16", "BF16")]


def _check_equal(old: Checkpoint, new: Checkpoint) -> None:
    for name in sorted(old.tensors.keys() ^ new.tensors.keys()):
        raise ValueError(f"tensor {name!r} is only in one of {old.path} and {new.path}; give two models of one kind")
    for name, info in old.tensors.items():
        if info.shape != new.tensors[name].shape:
            shapes = f"{list(info.shape)} in {old.path}, {list(new.tensors[name].shape)} in {new.path}"
            raise ValueError(f"tensor {name!r} has shape {shapes}; give two models of one kind")


def _extract(
    name: str, old: Checkpoint, new: Checkpoint, rank: int, energy: float, rest: str, arrays: dict[str, np.ndarray]
) -> Extracted | None:
    """Put the pair (or the full tensor) of one tensor into ``arrays``; None when it did not change."""
    changed = read_all(new.tensors[name])
    delta = changed - read_all(old.tensors[name])
    total = float(np.square(delta).sum())
    if total == 0:
        return None
    if delta.ndim != 2 or not name.endswith(".weight"):
        if rest == "drop":
            return Extracted(name, 0, total, 0.0)
        arrays[PREFIX + name] = changed.astype(np.float32)
        return Extracted(name, None, total, 1.0)
    u, s, vt = svd(delta, rank)
    shares = np.cumsum(np.square(s)) / total
    r = min(len(s), int(np.searchsorted(shares, energy)) + 1)
    root = np.sqrt(s[:r])
    left, right = (u[:, :r] * root).astype(np.float32), (root[:, None] * vt[:r]).astype(np.float32)
    module = PREFIX + name.removesuffix(".weight")
    if is_before(name) and not LAYER.match(name):  # an embedding, not a layer's "shared" or "position" part
        arrays[f"{module}.lora_embedding_A"], arrays[f"{module}.lora_embedding_B"] = left.T, right.T
    else:
        arrays[f"{module}.lora_A.weight"], arrays[f"{module}.lora_B.weight"] = right, left
    residual = delta - left.astype(np.float64) @ right.astype(np.float64)
    return Extracted(name, r, total, 1.0 - float(np.square(residual).sum()) / total)


def _complete_modules(new: Checkpoint, arrays: dict[str, np.ndarray], pairs: Mapping[str, int]) -> None:
    """Biases of adapted layers get peft's name for them; other modules are saved with all their tensors."""
    for key in [k for k in arrays if k.removeprefix(PREFIX) in new.tensors]:
        module, _, last = key.removeprefix(PREFIX).rpartition(".")
        if module in pairs and last == "bias":
            arrays[f"{PREFIX}{module}.base_layer.bias"] = arrays.pop(key)
            continue
        for sibling in _siblings(new, module):
            arrays.setdefault(PREFIX + sibling, read_all(new.tensors[sibling]).astype(np.float32))


def _siblings(checkpoint: Checkpoint, module: str) -> Iterator[str]:
    return (n for n in checkpoint.tensors if n.rpartition(".")[0] == module)


def _config(pairs: Mapping[str, int], arrays: Mapping[str, np.ndarray], base_name: str) -> dict[str, Any]:
    """peft's configuration with ``alpha = r`` everywhere, so that the scale is 1."""
    usual = max(pairs.values())
    other = {module: r for module, r in sorted(pairs.items()) if r != usual}
    saved = {k.removeprefix(PREFIX).rpartition(".")[0] for k in arrays if ".lora_" not in k and ".base_layer." not in k}
    return {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": base_name, "inference_mode": True,
        "r": usual, "lora_alpha": usual, "rank_pattern": other, "alpha_pattern": dict(other), "lora_dropout": 0.0,
        "target_modules": sorted(pairs), "modules_to_save": sorted(saved) or None, "fan_in_fan_out": False,
        "bias": "lora_only" if any(".base_layer." in k for k in arrays) else "none",
        "init_lora_weights": True, "use_rslora": False, "use_dora": False,
    }  # fmt: skip


def _write(out: Path, arrays: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> None:
    from safetensors.numpy import save_file

    out.mkdir(parents=True, exist_ok=True)
    with atomic_path(out / WEIGHTS) as temporary:
        save_file({k: np.ascontiguousarray(a) for k, a in arrays.items()}, temporary, {"format": "pt"})
    write_json(out / CONFIG, json.loads(json.dumps(config)))
