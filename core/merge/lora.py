"""LoRA adapters as part of a model: ``base + scale · B A``, exact and by pieces, without torch.

An adapter folder in peft's format is opened by its headers (:func:`open_adapter`), matched to the tensors of its base
(:meth:`Adapter.bind`), and then gives for every tensor it touches a source that the merge engine reads like a file
(:meth:`Adapter.source`). So an adapter enters a merge as the delta it means: A and B are never merged apart.

Understood: linear, convolution (without groups) and embedding layers, rsLoRA, rank and alpha patterns, transposed
weights (``fan_in_fan_out``), DoRA, biases, and modules saved in full. What changes the base in another way is refused.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from core.merge.dtypes import decode
from core.merge.linalg import one_thread
from core.merge.names import vocabulary_size
from core.merge.operators import Source
from core.merge.tensors import Checkpoint, FileSource, TensorInfo, close, read_header

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
TILE = 1 << 18  # elements computed at once: whole rows, cut at the same places whatever is asked for
FACTORS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")
REFUSED = (
    "target_parameters", "layer_replication", "trainable_token_indices", "use_qalora", "use_bdlora", "arrow_config",
    "kasa_config", "monteclora_config", "velora_config", "alora_invocation_tokens", "megatron_config",
)  # fmt: skip
CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass
class Change:
    """What an adapter does to one tensor of its base: entries of its file by role."""

    factors: dict[str, TensorInfo] = field(default_factory=dict)
    replacement: TensorInfo | None = None
    bias: TensorInfo | None = None
    scale: float = 1.0

    @property
    def embedding(self) -> bool:
        return "lora_embedding_A" in self.factors


@dataclass(frozen=True)
class Adapter:
    """An opened adapter: ``changes`` by the tensor's name as the adapter knows it."""

    path: Path
    config: Mapping[str, Any]
    changes: Mapping[str, Change]
    names: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def files(self) -> list[Path]:
        """Files that decide the result."""
        return [self.path / CONFIG, self.path / WEIGHTS]

    def bind(self, base: Checkpoint) -> "Adapter":
        """The adapter with every change matched to a tensor of the base (equal names, or a unique common ending).

        Raises:
            ValueError: a changed tensor is missing in the base, has another shape, or is one end of tied embeddings.
        """
        tensors = base.tensors
        if base.tied_head:
            rows = vocabulary_size(base.config) or -1
            ends = [own for own, c in self.changes.items() if c.embedding or _outputs(c) == rows]
            if ends:
                raise ValueError(
                    f"adapter {self.path} changes {ends[0]!r}, but this base ties embeddings and head: one tensor "
                    "cannot follow the change of one end; adapt the layers only"
                )
        names = {}
        for own, change in self.changes.items():
            found = [own] if own in tensors else [n for n in tensors if _same_ending(n, own)]
            if len(found) != 1:
                raise ValueError(f"adapter {self.path} changes {own!r}; the base has {len(found)} such tensors")
            names[found[0]] = own
            wanted = self._shape(change)
            if wanted != _flat_shape(tensors[found[0]].shape, wanted):
                raise ValueError(
                    f"adapter {self.path}: {own!r} is for shape {list(wanted)}, the base has "
                    f"{list(tensors[found[0]].shape)}; it belongs to another model"
                )
        return Adapter(self.path, self.config, self.changes, names)

    def touches(self, name: str) -> bool:
        """Whether the (bound) adapter changes the base's tensor ``name``."""
        return name in self.names

    def source(self, name: str, base: Source) -> Source:
        """The tensor ``name`` of base plus adapter; ``base`` itself where the adapter changes nothing."""
        if name not in self.names:
            return base
        change = self.changes[self.names[name]]
        if change.replacement is not None:
            close(base)
            return FileSource(change.replacement)
        if change.bias is not None:
            return _Shifted(base, change.scale * read_all(change.bias))
        columns = change.embedding or self._transposed(change)
        left, right = self._factors(change)
        return _LowRank(base, left, right, self._magnitude(change), columns)

    def low_rank(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Factors ``(rows, r)`` and ``(r, columns)`` whose product is the delta of the base's tensor ``name``.

        None where it is another kind of change (all of the tensor, a bias, DoRA).
        """
        change = self.changes[self.names[name]]
        return self._factors(change) if change.factors and self._magnitude(change) is None else None

    def _transposed(self, change: Change) -> bool:
        return bool(self.config.get("fan_in_fan_out")) and not change.embedding

    def _factors(self, change: Change) -> tuple[np.ndarray, np.ndarray]:
        """Matrices whose product is the delta as the weight is stored, ``(rows, r)`` and ``(r, columns)``."""
        if change.embedding:
            a, b = read_all(change.factors["lora_embedding_A"]), read_all(change.factors["lora_embedding_B"])
            return change.scale * a.T, b.T
        a, b = read_all(change.factors["lora_A"]), read_all(change.factors["lora_B"])
        a, b = a.reshape(a.shape[0], -1), b.reshape(b.shape[0], -1)
        return (change.scale * a.T, b.T) if self._transposed(change) else (change.scale * b, a)

    def _magnitude(self, change: Change) -> np.ndarray | None:
        info = change.factors.get("lora_magnitude_vector")
        return None if info is None else read_all(info).reshape(-1)

    def _shape(self, change: Change) -> tuple[int, ...]:
        """Shape of the tensor a change is for (convolutions as matrices)."""
        whole = change.replacement or change.bias
        if whole is not None:
            return whole.shape
        if change.embedding:
            return change.factors["lora_embedding_A"].shape[1], change.factors["lora_embedding_B"].shape[0]
        a, b = change.factors["lora_A"].shape, change.factors["lora_B"].shape
        shape = (b[0], int(np.prod(a[1:])))
        return shape[::-1] if self._transposed(change) else shape


def open_adapter(path: str | Path) -> Adapter:
    """Read an adapter's configuration and header.

    Raises:
        FileNotFoundError: no adapter there.
        ValueError: not a LoRA adapter, damaged, or of a kind that is not a change of its base's weights alone.
    """
    path = Path(path)
    if not (path / CONFIG).is_file():
        raise FileNotFoundError(f"{path} holds no {CONFIG}; give the folder of a peft adapter")
    if not (path / WEIGHTS).is_file():
        raise FileNotFoundError(f"{path} holds no {WEIGHTS}; save the adapter with safe_serialization=True")
    try:
        config = json.loads((path / CONFIG).read_text())
        _check_config(config)
    except ValueError as error:
        raise ValueError(f"adapter {path}: {error}") from None
    return Adapter(path, config, _changes(path, config, read_header(path / WEIGHTS)))


def _check_config(config: Any) -> None:
    if not isinstance(config, Mapping) or config.get("peft_type") != "LORA":
        found = config.get("peft_type") if isinstance(config, Mapping) else type(config).__name__
        raise ValueError(f"its peft_type is {found!r}; only 'LORA' can be added to weights exactly")
    for key in REFUSED:
        if config.get(key):
            raise ValueError(f"{key}={config[key]!r} is not supported; merge it with peft's merge_and_unload first")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGED_BASE):
        raise ValueError(f"init_lora_weights={start!r} changes the base model; convert it to a plain LoRA with peft")
    for key in ("r", "lora_alpha"):
        if not isinstance(config.get(key), (int, float)) or config[key] <= 0:
            raise ValueError(f"{key} is {config.get(key)!r}; it must be a number above 0")


def _changes(path: Path, config: Mapping[str, Any], header: Mapping[str, TensorInfo]) -> dict[str, Change]:
    changes: dict[str, Change] = {}
    for key, info in header.items():
        name = key.removeprefix(PREFIX).removesuffix(".default")
        match = re.fullmatch(rf"(.+)\.({'|'.join(FACTORS)})(?:\.default)?(?:\.(weight|bias))?", name)
        if match is None:
            own = name.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")
            changes.setdefault(own, Change()).replacement = info
        elif match[3] == "bias":
            changes.setdefault(f"{match[1]}.bias", Change()).bias = info
        else:
            changes.setdefault(f"{match[1]}.weight", Change()).factors[match[2]] = info
    for own, change in changes.items():
        if change.factors:
            change.replacement = None  # peft saves the layer below an adapted embedding or head too: the base's own
            _check_factors(path, own, change)
        module = own.rpartition(".")[0]
        change.scale = _scale(config, module, _rank(changes.get(f"{module}.weight"), config))
    if not changes:
        raise ValueError(f"adapter {path} changes no tensor")
    return changes


def _check_factors(path: Path, own: str, change: Change) -> None:
    pair = ("lora_embedding_A", "lora_embedding_B") if change.embedding else ("lora_A", "lora_B")
    if not set(pair) <= change.factors.keys():
        raise ValueError(f"adapter {path}: {own!r} has {sorted(change.factors)} but not both of {pair}")
    a, b = (change.factors[p].shape for p in pair)
    if len(a) < 2 or len(b) < 2 or a[0] != b[1] or any(n != 1 for n in b[2:]):
        raise ValueError(f"adapter {path}: factors of {own!r} have shapes {list(a)} and {list(b)}, which do not match")


def _rank(change: Change | None, config: Mapping[str, Any]) -> int:
    factors = change.factors if change else {}
    first = factors.get("lora_A") or factors.get("lora_embedding_A")
    return first.shape[0] if first else config["r"]


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """``alpha / r``, with rsLoRA ``alpha / sqrt(r)``; alpha by the first pattern that ends the module's name."""
    alpha = config["lora_alpha"]
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = value
            break
    return alpha / rank**0.5 if config.get("use_rslora") else alpha / rank


def _outputs(change: Change) -> int | None:
    """Outputs of the layer whose weight (not bias) is changed."""
    whole = change.replacement or change.factors.get("lora_B")
    return None if whole is None or len(whole.shape) < 2 else whole.shape[0]


def _same_ending(name: str, own: str) -> bool:
    return name.endswith("." + own) or own.endswith("." + name)


def _flat_shape(shape: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[int, ...]:
    """A convolution's shape as a matrix where a matrix is wanted."""
    return (shape[0], int(np.prod(shape[1:]))) if len(shape) > len(wanted) == 2 else shape


def read_all(info: TensorInfo) -> np.ndarray:
    """A tensor of a file as float64, in its shape."""
    source = FileSource(info)
    try:
        return decode(source.read(0, info.size), info.dtype).reshape(info.shape)
    finally:
        source.close()


class _Shifted:
    """A base tensor plus a vector of its size."""

    dtype = "F64"

    def __init__(self, base: Source, shift: np.ndarray):
        self.base, self.shift, self.shape = base, shift, base.shape

    def read(self, start: int, stop: int) -> np.ndarray:
        return decode(self.base.read(start, stop), self.base.dtype) + self.shift[start:stop]

    def close(self) -> None:
        close(self.base)


class _LowRank:
    """A base matrix plus ``left @ right``, computed by tiles of whole rows in float64.

    With a ``magnitude`` (DoRA, Liu et al. 2024, Eq. 5) each output's weights are rescaled to that length; the outputs
    are the rows, or with ``columns`` the columns (embeddings, transposed weights).
    """

    dtype = "F64"

    def __init__(self, base: Source, left, right, magnitude: np.ndarray | None, columns: bool):
        self.base, self.shape = base, base.shape
        self.left, self.right = left, right
        self.columns = right.shape[1]
        self.height = max(1, TILE // self.columns)
        self.by_columns = columns
        self._kept: tuple[int, np.ndarray] | None = None
        self.factor: np.ndarray | None = None
        if magnitude is not None:
            self.factor = magnitude / self._norms()
            self._kept = None

    def read(self, start: int, stop: int) -> np.ndarray:
        first, last = start // self.columns // self.height, -(-stop // self.columns // self.height)
        flat = [self._tile(tile).reshape(-1) for tile in range(first, max(last, first + 1))]
        offset = first * self.height * self.columns
        return (flat[0] if len(flat) == 1 else np.concatenate(flat))[start - offset : stop - offset]

    def close(self) -> None:
        close(self.base)

    def added(self, base: Source | None) -> np.ndarray | None:
        """What is added to ``base``; None where that is not the tensor under this adapter, or it is rescaled (DoRA)."""
        here = [s.info if isinstance(s, FileSource) else None for s in (self.base, base)]
        if self.factor is not None or here[0] is None or here[0] != here[1]:
            return None
        with one_thread():
            return self.left @ self.right

    def _tile(self, tile: int) -> np.ndarray:
        if self._kept is None or self._kept[0] != tile:
            start = tile * self.height
            stop = min(start + self.height, len(self.left))
            raw = self.base.read(start * self.columns, stop * self.columns)
            with one_thread():
                values = decode(raw, self.base.dtype).reshape(-1, self.columns) + self.left[start:stop] @ self.right
            if self.factor is not None:
                values *= self.factor if self.by_columns else self.factor[start:stop, None]
            self._kept = tile, values
        return self._kept[1]

    def _norms(self) -> np.ndarray:
        squares = np.zeros(self.columns) if self.by_columns else np.zeros(len(self.left))
        for tile in range(-(-len(self.left) // self.height)):
            values, start = self._tile(tile), tile * self.height
            if self.by_columns:
                squares += np.square(values).sum(axis=0)
            else:
                squares[start : start + len(values)] = np.square(values).sum(axis=1)
        return np.sqrt(squares)
