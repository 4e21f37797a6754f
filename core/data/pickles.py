"""Reading pickles that hold nothing but builtin containers and numbers."""

import io
import pickle
from pathlib import Path
from typing import IO, Any

ALLOWED = {"bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "set", "str", "tuple"}


class _Builtins(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module in ("builtins", "__builtin__") and name in ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}")


def load(file: str | Path | bytes | IO[bytes]) -> Any:
    """Unpickle builtin containers, strings and numbers; anything else is refused before it is looked up.

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
