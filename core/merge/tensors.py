"""Safetensors files by header and by piece: nothing here holds a model, nothing imports torch.

A model is a folder with ``model.safetensors`` or shards and their index (or one ``.safetensors`` file). Reading looks
at headers only; :class:`FileSource` reads elements on demand. Writing lays all shards out from the headers alone, so
that tensors may be written in any order, by any number of threads or processes.
"""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from core.merge.dtypes import OTHER, RAW, itemsize

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ADAPTER = "adapter_model.safetensors"
WITH_HEAD = re.compile("ForCausalLM|LMHead|ForMaskedLM|ForPreTraining|ForConditionalGeneration")
HEADER_LIMIT = 100 << 20  # the format's own limit


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: file, first byte, dtype (safetensors name) and shape."""

    file: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Number of bytes."""
        return self.size * itemsize(self.dtype)


def read_header(path: str | Path) -> dict[str, TensorInfo]:
    """Names and places of the tensors of a safetensors file.

    Raises:
        ValueError: not a safetensors file, truncated, or with overlapping or impossible offsets.
    """
    path = Path(path)
    size = path.stat().st_size
    with open(path, "rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if size < 8 or not 2 <= length <= min(HEADER_LIMIT, size - 8):
            raise ValueError(f"{path} is not a safetensors file (header length {length}, file size {size})")
        try:
            header = json.loads(handle.read(length).decode(), object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not a safetensors file (header: {str(error)[:200]})") from None
    if not isinstance(header, dict):
        raise ValueError(f"{path} is not a safetensors file (its header is a {type(header).__name__}, not a mapping)")
    facts = header.pop("__metadata__", None)
    facts = {} if facts is None else facts  # null is no metadata, as for the format's own reader
    if not isinstance(facts, dict) or not all(isinstance(v, str) for v in facts.values()):
        raise ValueError(f"{path}: the header's __metadata__ must map words to words")
    tensors = {name: _place(path, name, entry, 8 + length, size) for name, entry in header.items()}
    end = 8 + length
    for name, t in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].bytes)):
        if t.offset != end:
            raise ValueError(f"{path}: tensor {name!r} begins at byte {t.offset}, expected {end}; copy the file again")
        end += t.bytes
    if end != size:
        raise ValueError(f"{path} has {size} bytes, its header describes {end} (truncated?); copy the file again")
    return tensors


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON mapping whose keys are all different."""
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        raise ValueError("a name occurs twice")
    return mapping


def _place(path: Path, name: str, entry: Any, data: int, size: int) -> TensorInfo:
    """One entry of a header, checked."""
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = (fields.get(k) for k in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise ValueError(
            f"{path}: tensor {name!r} has the entry {str(entry)[:200]}; needed: dtype, shape, data_offsets"
        )
    start, stop = offsets
    if not 0 <= start <= stop <= size - data:
        raise ValueError(f"{path}: tensor {name!r} does not fit its place (truncated file?); copy the file again")
    if dtype not in RAW and dtype not in OTHER:
        raise ValueError(
            f"{path}: tensor {name!r} has the unknown dtype {dtype!r}; known: {', '.join([*RAW, *OTHER])}; convert it"
        )
    info = TensorInfo(path, data + start, dtype, tuple(shape))
    if stop - start != info.bytes:
        raise ValueError(f"{path}: tensor {name!r} ({dtype} {shape}) has {stop - start} bytes, not {info.bytes}")
    return info


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in value)


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk by its headers.

    Args:
        path: folder or file.
        tensors: name -> place.
        config: ``config.json``, empty without one.
    """

    path: Path
    tensors: Mapping[str, TensorInfo]
    config: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def files(self) -> list[Path]:
        """The safetensors files, sorted."""
        return sorted({t.file for t in self.tensors.values()})

    @property
    def tied(self) -> bool:
        """Whether the output embedding is the input embedding."""
        return bool(self.config.get("tie_word_embeddings", False))

    @property
    def tied_head(self) -> bool:
        """Whether the model has an output embedding that is its input embedding; a bare encoder has none."""
        architectures = self.config.get("architectures")
        return self.tied and (not architectures or any(WITH_HEAD.search(str(name)) for name in architectures))


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Read the headers of a model folder (or of one safetensors file).

    Raises:
        FileNotFoundError: no such folder, or no safetensors in it.
        ValueError: damaged files, an index that names missing files or tensors.
    """
    path = Path(path)
    if path.is_file():
        return Checkpoint(path, read_header(path))
    if not path.is_dir():
        raise FileNotFoundError(f"model {path} does not exist")
    config = _config(path / "config.json")
    weight_map: dict[str, str] = {}
    if (path / SINGLE).is_file():  # before an index, as transformers does
        shards = [path / SINGLE]
    elif (path / INDEX).is_file():
        weight_map = _weight_map(path / INDEX)
        shards = [path / f for f in sorted(set(weight_map.values()))]
    else:
        shards = sorted(p for p in path.glob("*.safetensors") if p.name != ADAPTER)
    if not shards:
        raise FileNotFoundError(f"{path} holds no .safetensors file{_instead(path)}")
    tensors: dict[str, TensorInfo] = {}
    for shard in shards:
        for name, info in read_header(shard).items():
            if name in tensors:
                raise ValueError(f"tensor {name!r} is in {tensors[name].file} and in {shard}")
            tensors[name] = info
    lost = sorted(weight_map.keys() - tensors.keys())
    if lost:
        raise ValueError(f"{path / INDEX} names tensor {lost[0]!r}, which no shard holds")
    return Checkpoint(path, tensors, config)


def _config(path: Path) -> dict[str, Any]:
    """``config.json``, empty without one."""
    try:
        config = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); copy or save the model again") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds a {type(config).__name__}, not a mapping; copy or save the model again")
    return config


def _weight_map(path: Path) -> dict[str, str]:
    """Tensor -> file of an index, all of them there."""
    try:
        found = dict(json.loads(path.read_text())["weight_map"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{path} is no index of a model (it has no weight_map); copy or save the model again"
        ) from None
    missing = sorted(f for f in set(found.values()) if not (path.parent / f).is_file())
    if missing:
        raise ValueError(f"{path} names {', '.join(missing)}, which is not there; copy the model again, whole")
    return found


def _instead(path: Path) -> str:
    """What a folder without model weights holds instead, and what to do."""
    if (path / ADAPTER).is_file():
        return f"; it is an adapter ({ADAPTER}): write it behind its base, BASE+{path}"
    pickles = sorted(p.name for p in path.glob("*.bin"))
    if pickles:
        return (
            f"; {pickles[0]} is a pickle, which is not opened: load the model with transformers and save_pretrained it"
        )
    return "; convert the model with save_pretrained first"


class FileSource:
    """A tensor in a file, read by pieces into one small reused buffer. Use it in one thread; close it after use."""

    def __init__(self, info: TensorInfo):
        self.info, self.dtype, self.shape = info, info.dtype, info.shape
        self._kind = np.dtype(RAW.get(info.dtype) or OTHER[info.dtype])
        self._fd = os.open(info.file, os.O_RDONLY)
        self._buffer = np.empty(0, dtype=self._kind)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Raw elements ``[start, stop)``; valid until the next call."""
        if len(self._buffer) < stop - start:
            self._buffer = np.empty(stop - start, dtype=self._kind)
        piece = self._buffer[: stop - start]
        read_exactly(self._fd, memoryview(piece).cast("B"), self.info.offset + start * self._kind.itemsize)
        return piece

    def place(self) -> tuple[int | None, int, int]:
        """Address, file descriptor and byte offset for the native kernels."""
        return None, self._fd, self.info.offset

    def close(self) -> None:
        """Closed once: who wraps a source closes it, and so does who opened it; the number may be another file's."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class CastSource:
    """Another source with its elements rounded to ``dtype`` (an input cast that a recipe asks for)."""

    def __init__(self, source: Any, dtype: str):
        self.source, self.dtype, self.shape = source, dtype, source.shape

    def read(self, start: int, stop: int) -> np.ndarray:
        from core.merge.dtypes import decode, encode

        return encode(decode(self.source.read(start, stop), self.source.dtype), self.dtype)

    def close(self) -> None:
        close(self.source)


class RowSource:
    """Rows of another source in a new order; ``rows[i]`` is the old row of new row i, -1 takes from ``fill``.

    Args:
        source: a tensor [old rows, columns].
        rows: int64 [new rows].
        fill: new row -> raw values [columns] in the source's dtype; rows that are nowhere are zero.
    """

    def __init__(self, source: Any, rows: np.ndarray, fill: Mapping[int, np.ndarray]):
        self.source, self.rows, self.fill, self.dtype = source, rows, fill, source.dtype
        self.columns = int(np.prod(source.shape[1:], dtype=np.int64))
        self.shape = (len(rows), *source.shape[1:])

    def read(self, start: int, stop: int) -> np.ndarray:
        first, last = start // self.columns, -(-stop // self.columns)
        out = np.zeros((last - first, self.columns), dtype=RAW[self.dtype])
        for old, new, count in _runs(self.rows[first:last]):
            if old >= 0:
                piece = self.source.read(old * self.columns, (old + count) * self.columns)
                out[new : new + count] = piece.reshape(count, self.columns)
        for row in range(first, last):
            if self.rows[row] < 0 and row in self.fill:
                out[row - first] = self.fill[row]
        return out.reshape(-1)[start - first * self.columns : stop - first * self.columns]

    def close(self) -> None:
        close(self.source)


def _runs(rows: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """(old row, new row, count) of stretches of consecutive old rows."""
    breaks = np.flatnonzero((np.diff(rows) != 1) | (rows[:-1] < 0)) + 1 if len(rows) else []
    for a, b in pairwise([0, *[int(b) for b in breaks], len(rows)]):
        if b > a:
            yield int(rows[a]), a, b - a


def close(source: Any) -> None:
    """Close a source if it holds a file."""
    if hasattr(source, "close"):
        source.close()


def read_exactly(fd: int, view: memoryview, offset: int) -> None:
    """Fill ``view`` from ``offset`` of an open file.

    Raises:
        OSError: the file ends before.
    """
    done = 0
    while done < len(view):
        got = os.preadv(fd, [view[done:]], offset + done)
        if got == 0:
            raise OSError(f"file ended {len(view) - done} bytes early; it was truncated while being read")
        done += got


def write_exactly(fd: int, data: Any, offset: int) -> None:
    """Write all of ``data`` (bytes or a contiguous array) at ``offset``."""
    view = memoryview(data).cast("B")
    done = 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], offset + done)


@dataclass(frozen=True)
class Slot:
    """The place of an output tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: int
    offset: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * itemsize(self.dtype)


@dataclass(frozen=True)
class Layout:
    """All output files: names, headers and the slot of every tensor."""

    files: tuple[str, ...]
    headers: tuple[bytes, ...]
    sizes: tuple[int, ...]
    slots: Mapping[str, Slot]

    def index(self) -> bytes | None:
        """The index file; None for a single shard."""
        if len(self.files) == 1:
            return None
        total = sum(size - len(head) for size, head in zip(self.sizes, self.headers))
        weight_map = {name: self.files[slot.shard] for name, slot in sorted(self.slots.items())}
        return (json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n").encode()


def lay_out(tensors: Sequence[tuple[str, str, tuple[int, ...]]], shard_bytes: int) -> Layout:
    """Shards of at most ``shard_bytes`` (a larger tensor has one of its own) for (name, dtype, shape) in order."""
    groups: list[list[tuple[str, str, tuple[int, ...]]]] = [[]]
    filled = 0
    for name, dtype, shape in tensors:
        size = math.prod(shape) * itemsize(dtype)
        if groups[-1] and filled + size > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append((name, dtype, shape))
        filled += size
    n = len(groups)
    files = tuple(f"model-{i + 1:05d}-of-{n:05d}.safetensors" for i in range(n)) if n > 1 else (SINGLE,)
    headers, sizes, slots = [], [], {}
    for shard, group in enumerate(groups):
        head: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        at, places = 0, []
        for name, dtype, shape in group:
            size = math.prod(shape) * itemsize(dtype)
            head[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
            places.append((name, dtype, shape, at))
            at += size
        text = json.dumps(head, separators=(",", ":")).encode()
        text += b" " * ((56 - len(text)) % 64)
        header = len(text).to_bytes(8, "little") + text  # 8 + length is a multiple of 64: data are aligned
        headers.append(header)
        sizes.append(len(header) + at)
        for name, dtype, shape, start in places:
            slots[name] = Slot(name, dtype, shape, shard, len(header) + start)
    return Layout(files, tuple(headers), tuple(sizes), slots)


class ShardFiles:
    """The output shards, open for writing at the places of a layout. Opening twice keeps what is written."""

    def __init__(self, folder: Path, layout: Layout):
        self.folder, self.layout = folder, layout
        folder.mkdir(parents=True, exist_ok=True)
        self.fds = []
        for name, header, size in zip(layout.files, layout.headers, layout.sizes):
            fd = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o644)
            self.fds.append(fd)
            try:
                os.ftruncate(fd, size)
                write_exactly(fd, header, 0)
            except OSError as error:
                self.close()
                raise OSError(error.errno, f"{error.strerror} ({size} bytes)", str(folder / name)) from None

    def sync(self) -> None:
        """Put everything written so far on the disk."""
        for fd in self.fds:
            os.fdatasync(fd)

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
