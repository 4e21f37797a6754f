"""Task vectors of LoRA adapters: the exact deltas they mean, flat, without writing a merged model.

Only tensors that some adapter changes take part, so a model of hundreds of megabytes is searched in a fraction of them.
The factors are kept beside the float32 deltas: what decomposes a delta needs its rank, which rounding hides.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from core.hashing import content_key, sha256_file
from core.merge.dtypes import decode
from core.merge.lora import Adapter, open_adapter, read_all
from core.merge.one_base import FAR, Descent
from core.merge.task_vectors import FACTORS, TaskVectors, Tensor, factor_keys, write_layout
from core.merge.tensors import Checkpoint, FileSource, open_checkpoint
from core.state import Cache

VERSION = 2


def adapter_vectors(
    base: str | Path, adapters: Mapping[str, str | Path], cache: Cache | None = None, far: float = FAR
) -> TaskVectors:
    """Raw task vectors of adapters, cached by the hashes of their files and of the base's.

    Args:
        base: folder of the base model.
        adapters: name -> folder of a peft adapter.
        far: largest relative distance ``|delta| / |base|`` over the matrices an adapter changes.

    Raises:
        ValueError: fewer than two adapters, one of another model (tensors missing, of another shape, too far away), one
            that changes tied embeddings, holds NaN, or changes nothing.
    """
    if len(adapters) < 2:
        raise ValueError(f"a merge needs at least two experts, got {sorted(adapters)}")
    checkpoint = open_checkpoint(base)
    opened = {name: open_adapter(path).bind(checkpoint) for name, path in adapters.items()}
    shas = {name: [sha256_file(f) for f in adapter.files] for name, adapter in opened.items()}
    key = content_key("adapter vectors", VERSION, [sha256_file(f) for f in checkpoint.files], shas, list(opened))

    def build(folder: Path) -> None:
        layout = _layout(checkpoint, {t for adapter in opened.values() for t in adapter.names})
        starts = [read_all(checkpoint.tensors[t.name]).ravel() for t in layout]
        np.save(folder / "base.npy", np.concatenate(starts).astype(np.float32))
        shape = (len(opened), layout[-1].stop)
        deltas = np.lib.format.open_memmap(folder / "deltas.npy", "w+", np.float32, shape)
        factors = {}
        for row, (name, adapter) in zip(deltas, opened.items(), strict=True):
            descent = Descent(f"expert {name!r}", adapter.path, Path(base).name, base, far)
            _fill(row, descent, adapter, checkpoint, layout)
            for t in layout:
                pair = adapter.low_rank(t.name) if adapter.touches(t.name) else None
                if pair is not None:
                    left, right = factor_keys(name, t)
                    factors |= {left: np.ascontiguousarray(pair[0]), right: np.ascontiguousarray(pair[1])}
        deltas.flush()
        save_file(factors, folder / FACTORS)
        write_layout(folder, list(opened), layout, "raw", {}, key)

    return TaskVectors((cache or Cache()).compute("task-vectors", key, build))


def _layout(checkpoint: Checkpoint, names: set[str]) -> list[Tensor]:
    """Tensors by layer and name, those outside the layers first: groups of layers lie side by side."""

    def place(name: str) -> tuple[int, str]:
        layer = Tensor(name, (), 0).layer
        return (-1 if layer is None else layer, name)

    tensors: list[Tensor] = []
    for name in sorted(names, key=place):
        tensors.append(Tensor(name, checkpoint.tensors[name].shape, tensors[-1].stop if tensors else 0))
    return tensors


def _fill(row: np.ndarray, descent: Descent, adapter: Adapter, checkpoint: Checkpoint, layout: list[Tensor]) -> None:
    """Write an adapter's deltas into its row [P], checking each; tensors it leaves alone stay zero."""
    for t in layout:
        if not adapter.touches(t.name):
            continue
        info = checkpoint.tensors[t.name]
        start, source = read_all(info).ravel(), adapter.source(t.name, FileSource(info))
        try:
            delta = decode(source.read(0, t.size), source.dtype).ravel() - start
        finally:
            source.close()
        descent.add(t.name, start.reshape(t.shape), delta)
        row[t.start : t.stop] = delta
    descent.check()
