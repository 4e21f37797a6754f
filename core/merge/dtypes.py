"""Number formats of safetensors files without torch: raw arrays, exact decoding, correct rounding.

A *raw* array holds a tensor's bits: float16, float32 and float64 as themselves, bfloat16 as ``uint16`` (numpy has no
such type). :func:`decode` is exact; :func:`encode` rounds a float64 once, to nearest with ties to even.
"""

import numpy as np

RAW = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
OTHER = {
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
    "F8_E4M3": np.uint8, "F8_E5M2": np.uint8,
}  # fmt: skip
NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
LONG_NAMES = {short: long for long, short in NAMES.items()}


def itemsize(dtype: str) -> int:
    """Bytes of one element of a safetensors dtype.

    Raises:
        ValueError: a dtype this program does not know.
    """
    kind = RAW.get(dtype) or OTHER.get(dtype)
    if kind is None:
        raise ValueError(f"unknown dtype {dtype!r}; known: {', '.join([*RAW, *OTHER])}")
    return np.dtype(kind).itemsize


def promote(dtypes: list[str]) -> str:
    """The smallest floating format that holds every given one (BF16 with F16 gives F32)."""
    kinds = set(dtypes)
    if len(kinds) == 1:
        return dtypes[0]
    return "F64" if "F64" in kinds else "F32"


def decode(raw: np.ndarray, dtype: str) -> np.ndarray:
    """Raw elements as float64 (exact)."""
    if dtype == "BF16":
        return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    return raw.astype(np.float64)


def encode(values: np.ndarray, dtype: str) -> np.ndarray:
    """Float64 values rounded once to ``dtype`` (nearest, ties to even), as raw elements. Overflow gives infinity."""
    values = np.asarray(values, dtype=np.float64)
    if dtype == "BF16":
        bits = _round_to_odd(values).view(np.uint32)
        return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(
            np.uint16
        )
    with np.errstate(over="ignore"):
        return values.astype(RAW[dtype])


def _round_to_odd(values: np.ndarray) -> np.ndarray:
    """Float32 with a sticky last bit, so that a second rounding to a shorter format equals one rounding."""
    with np.errstate(over="ignore"):
        short = values.astype(np.float32)
    back = short.astype(np.float64)
    bits = short.view(np.uint32).copy()
    finite = np.isfinite(values)
    away = finite & (np.abs(back) > np.abs(values))
    bits[away] -= np.uint32(1)  # towards zero
    bits[finite & (back != values)] |= np.uint32(1)
    return bits.view(np.float32)
