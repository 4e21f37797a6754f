"""Reading pickles that hold nothing but builtin containers and numbers (numpy's scalars included)."""

import io
import pickle
import struct
from pathlib import Path
from typing import IO, Any

ALLOWED = {"bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "set", "str", "tuple"}
SCALARS = {"f8": "d", "f4": "f", "i8": "q", "i4": "i", "u8": "Q", "u4": "I", "b1": "?"}


class _Number:
    """Stands for a numpy dtype while a scalar is read, so that numpy's own reconstruction never runs."""

    def __init__(self, code: str, *_: Any):
        if code not in SCALARS:
            raise pickle.UnpicklingError(f"the pickle holds a numpy scalar of type {code!r}")
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple) -> None:
        self.order = ">" if state[1] == ">" else "<"


def _scalar(kind: Any, data: Any) -> float | int | bool:
    if not isinstance(kind, _Number) or not isinstance(data, bytes):
        raise pickle.UnpicklingError("the pickle holds a numpy scalar without type or bytes")
    try:
        return struct.unpack(kind.order + SCALARS[kind.code], data)[0]
    except struct.error as error:
        raise pickle.UnpicklingError(f"torn numpy scalar: {error}") from None


NUMPY = {
    ("numpy", "dtype"): _Number,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
}


class _Builtins(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module in ("builtins", "__builtin__") and name in ALLOWED:
            return super().find_class(module, name)
        if (module, name) in NUMPY:
            return NUMPY[module, name]
        raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}")


def load(file: str | Path | bytes | IO[bytes]) -> Any:
    """Unpickle builtin containers, strings and numbers; anything else is refused before it is looked up.

    Numpy scalars come back as Python numbers.

    Args:
        file: a path, the pickle's bytes, or a binary stream.

    Raises:
        ValueError: the pickle asks for a class or function, or is torn.
    """
    name = str(file) if isinstance(file, (str, Path)) else "pickle"
    if isinstance(file, (str, Path)):
        file = Path(file).read_bytes()
    stream = io.BytesIO(file) if isinstance(file, bytes) else file
    try:
        return _Builtins(stream).load()
    except (pickle.UnpicklingError, EOFError, IndexError, KeyError, AttributeError, MemoryError) as error:
        raise ValueError(f"{name}: {error or 'torn pickle'}; only builtin containers and numbers are read") from None
