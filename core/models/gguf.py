"""GGUF files (4-bit SmolLM2): dequantised once, kept as float16 safetensors."""

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from functools import cache as remembered
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np

from core.hashing import content_key, sha256_file
from core.models.quiet import quietly
from core.state import Cache

if TYPE_CHECKING:
    from core.models.load import Source


_LOCK = threading.Lock()


def dequantised(source: "Source", cache: Cache | None = None) -> Path:
    """The float16 safetensors folder of a GGUF model, made once and kept in the cache."""
    key = content_key(sha256_file(source.gguf), "float16 1")

    def build(folder: Path) -> dict[str, str]:
        import torch
        from transformers import AutoModelForCausalLM

        loaded, tokenizer = _read(source.gguf)
        config = copy.deepcopy(loaded.config)
        for stale in ("quantization_config", "_pre_quantization_dtype"):
            if hasattr(config, stale):
                delattr(config, stale)
        fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        fresh.load_state_dict(loaded.state_dict())
        quietly(fresh.half().save_pretrained, folder)
        tokenizer.save_pretrained(folder)
        return {"name": source.name, "weights": "dequantised"}

    return (cache or Cache()).compute("models", key, build)


def _read(file: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"gguf_file": file.name}
    with _parsed_once(), redirect_stderr(StringIO()):  # its bar knows no other off switch
        loaded = quietly(AutoModelForCausalLM.from_pretrained, file.parent, dtype="float32", **where)
        return loaded, AutoTokenizer.from_pretrained(file.parent, **where)


@contextmanager
def _parsed_once() -> Iterator[None]:
    """Let transformers parse a GGUF file once, and that quickly (24 -> 7 s for SmolLM2 on one core, the same bytes).

    It asks for the file three times (configuration, weights, tokenizer), for the table of tensor names once a module,
    and numpy's memmap costs more at each of the header's 100,000 cells than the cell.
    """
    import gguf

    class Reader(gguf.GGUFReader):
        data = property(lambda self: self._plain, lambda self, mapped: setattr(self, "_plain", mapped.view(np.ndarray)))

    names = remembered(gguf.get_tensor_name_map)
    # One thread at a time: what is put back must be what was there.
    with _LOCK, patch.object(gguf, "GGUFReader", remembered(Reader)), patch.object(gguf, "get_tensor_name_map", names):
        yield
