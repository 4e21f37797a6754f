"""Number formats of safetensors files without torch: raw arrays, exact decoding, correct rounding.

A *raw* array holds a tensor's bits: float16, float32 and float64 as themselves, bfloat16 as ``uint16`` (numpy has no
such type). :func:`decode` is exact; :func:`encode` rounds to nearest, ties to even.
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
    """Float64 values rounded to ``dtype`` (nearest, ties to even), as raw elements. Overflow gives infinity.

    To bfloat16 the way goes through float32, as in torch and ml_dtypes: a float64 closer to a tie than float32 can tell
    is a tie. (Weights such as 0.1 make many results such ties up to their own representation error.)
    """
    values = np.asarray(values, dtype=np.float64)
    with np.errstate(over="ignore"):
        if dtype != "BF16":
            return values.astype(RAW[dtype])
        bits = values.astype(np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)
