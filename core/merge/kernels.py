"""The native kernels: compiled once with the machine's C compiler, called without holding the interpreter lock.

``python -m core.merge.kernels`` compiles them (``make install`` does); otherwise the first merge does. Without a
compiler, or with ``TRANSFEROPT_KERNELS=numpy``, every operator runs its numpy twin, which gives the same bytes slower.
"""

import ctypes
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from core.state import home

SOURCE = Path(__file__).with_name("kernels.c")
EXACT = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC"]
TUNED = ["-march=native", "-mprefer-vector-width=512"]
DTYPES = {"BF16": 0, "F16": 1, "F32": 2, "F64": 3}
VERSION = 3
_CODES = {1: "not enough memory", 2: "reading failed (truncated file?)", 3: "writing failed (disk full?)"}
OVERFLOWED, BAD_INPUT = 4, 100


class Tensor(ctypes.Structure):
    """Where a tensor's bytes are: in memory (``data``) or in an open file."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("offset", ctypes.c_int64),
        ("fd", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
    )


class MaskSpec(ctypes.Structure):
    """Which elements of a delta are kept and how they are scaled (``mask_t``)."""

    _fields_ = (
        ("mode", ctypes.c_int32), ("low", ctypes.c_uint32), ("high", ctypes.c_uint32),
        ("low_ties", ctypes.c_int64), ("high_ties", ctypes.c_int64), ("bits", ctypes.c_void_p),
        ("scale", ctypes.c_double), ("weight", ctypes.c_double),
    )  # fmt: skip


class Window(ctypes.Structure):
    """Counts of the keys around an interval, and the keys inside (``window_t``)."""

    _fields_ = (
        ("lo", ctypes.c_uint32), ("hi", ctypes.c_uint32), ("above", ctypes.c_int64), ("at_hi", ctypes.c_int64),
        ("at_lo", ctypes.c_int64), ("inside", ctypes.c_int64), ("room", ctypes.c_int64), ("nonzero", ctypes.c_int64),
        ("keys", ctypes.c_void_p),
    )  # fmt: skip


class Draw(ctypes.Structure):
    """A random mask to draw and the sums found on the way (``draw_t``)."""

    _fields_ = (
        ("key0", ctypes.c_uint32), ("key1", ctypes.c_uint32), ("below", ctypes.c_uint64), ("density", ctypes.c_double),
        ("epsilon", ctypes.c_double), ("bits", ctypes.c_void_p), ("all", ctypes.c_double), ("kept", ctypes.c_double),
    )  # fmt: skip


def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None when the numpy twins are to be used."""
    return None if os.environ.get("TRANSFEROPT_KERNELS") == "numpy" else _load()


@cache
def _load() -> ctypes.CDLL | None:
    path = library_path()
    if not path.exists() and not build(path):
        return None
    native = ctypes.CDLL(str(path))
    if native.merge_version() != VERSION:
        raise ValueError(f"{path} is not the library of this program; remove it to compile it again")
    i, l, d, p = ctypes.c_int, ctypes.c_int64, ctypes.c_double, ctypes.c_void_p
    native.merge_apply.argtypes = [i, i, p, p, d, d, i, p, l, l]
    native.merge_gram.argtypes = [i, i, p, l, p]
    native.merge_window.argtypes = [i, i, p, l, l, l, p, p]
    native.merge_variance_mask.argtypes = [i, p, l, p, p, p]
    native.merge_drop.argtypes = [i, p, l, l, p]
    native.merge_della.argtypes = [i, p, l, l, l, p]
    native.merge_philox.argtypes = [ctypes.c_uint32, ctypes.c_uint32, l, l, p]
    native.merge_philox.restype = None
    return native


def library_path() -> Path:
    """Where the compiled library lies: named by source, flags and processor, so that none is used by mistake.

    In the environment's folder where that can be written (installation compiles it there), else in the user's home.
    """
    cpu = platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as handle:
            cpu += next((line for line in handle if line.startswith(("flags", "Features"))), "")
    digest = hashlib.sha256(SOURCE.read_bytes() + " ".join([*EXACT, *TUNED, cpu]).encode()).hexdigest()[:16]
    name = f"merge-{digest}.so"
    shared = Path(sys.prefix) / "share" / "transferopt"
    own = home() / "kernels"
    if (shared / name).exists():
        return shared / name
    return (shared if os.access(sys.prefix, os.W_OK) and not (own / name).exists() else own) / name


def build(path: Path | None = None) -> bool:
    """Compile the kernels to ``path``; False (and a printed reason) when no compiler does it."""
    path = path or library_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(suffix=".so", dir=path.parent)
    os.close(handle)
    errors = []
    for compiler in (os.environ.get("CC"), "cc", "gcc", "clang"):
        for flags in ([*EXACT, *TUNED], [*EXACT, "-march=native"], EXACT):
            if not compiler:
                continue
            try:
                done = subprocess.run(
                    [compiler, *flags, str(SOURCE), "-o", name, "-lm"], capture_output=True, text=True
                )
            except OSError as error:
                errors.append(f"{compiler}: {error.strerror}")
                break
            if done.returncode == 0:
                os.chmod(name, 0o755)
                os.replace(name, path)
                return True
            errors.append(f"{compiler}: {done.stderr.strip().splitlines()[-1:]}")
    os.unlink(name)
    print(f"transferopt: no C compiler for the merge kernels ({'; '.join(errors)}); merging with numpy, slower")
    return False


def inputs(sources: Sequence[Any]) -> "ctypes.Array[Tensor] | None":
    """The sources as C structures; None when one of them cannot be read natively."""
    array = (Tensor * len(sources))()
    for i, source in enumerate(sources):
        place = getattr(source, "place", None)
        if place is None or source.dtype not in DTYPES:
            return None
        data, fd, offset = place()
        array[i] = Tensor(data, offset, fd, DTYPES[source.dtype])
    return array


def check(code: int, group: Any, with_base: bool) -> None:
    """Turn a kernel's return code into an exception that names the tensor.

    Raises:
        ValueError: NaN or infinity in an input, or an overflow in the output.
        OSError: reading or writing failed.
    """
    if code == 0:
        return
    if code == OVERFLOWED:
        raise ValueError(f"tensor {group.name!r}: the merged values overflow the output format; use a wider out_dtype")
    if code >= BAD_INPUT:
        which = code - BAD_INPUT
        base = with_base and which == len(group.sources)
        model = "the base" if base else (group.models[which] if group.models else f"model {which}")
        raise ValueError(f"tensor {group.name!r} of {model} holds NaN or infinity; repair that model first")
    raise OSError(f"tensor {group.name!r}: {_CODES.get(code, f'code {code}')}")


if __name__ == "__main__":
    print(library_path() if build() else "numpy")
