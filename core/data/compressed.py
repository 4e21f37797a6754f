"""Compressed text files, read as a stream that ends with an error once too much has come out.

A few kilobytes of gzip can stand for gigabytes; what is read is counted while it is unpacked.
"""

import bz2
import gzip
import io
import lzma
from pathlib import Path
from typing import IO

from core.data.archives import MAX_BYTES

SUFFIXES = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}


class _Bounded(io.RawIOBase):
    """A readable stream that refuses to give more than ``most`` bytes."""

    def __init__(self, inner: IO[bytes], most: int, name: str):
        self.inner, self.left, self.most, self.name = inner, most, most, name

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        count = self.inner.readinto(buffer)
        self.left -= count
        if self.left < 0:
            raise ValueError(f"{self.name} unpacks to more than {self.most} bytes; split it into smaller files")
        return count

    def close(self) -> None:
        self.inner.close()
        super().close()


def unpacked(path: Path, method: str = "infer", most: int = MAX_BYTES) -> IO[bytes] | Path:
    """A stream of the unpacked bytes; the path itself when the file is not compressed.

    Args:
        method: gzip, bz2, xz or zstd; ``infer`` takes the suffix's word.
        most: largest unpacked size in bytes; reading beyond it raises ValueError.

    Raises:
        ValueError: unknown method, or zstd without the package that reads it.
    """
    chosen = SUFFIXES.get(path.suffix.lower(), "") if method == "infer" else method
    if not chosen:
        return path
    return io.BufferedReader(_Bounded(_open(path, chosen), most, path.name), 1 << 16)


def _open(path: Path, method: str) -> IO[bytes]:
    if method == "zstd":
        try:
            import zstandard
        except ImportError:
            raise ValueError("zstd needs the package zstandard: pip install zstandard, or unpack the file") from None
        return zstandard.open(path, "rb")
    readers = {"gzip": gzip.open, "bz2": bz2.open, "xz": lzma.open}
    if method not in readers:
        raise ValueError(f"unknown compression {method!r}; allowed: {', '.join([*readers, 'zstd', 'infer'])}")
    return readers[method](path, "rb")
