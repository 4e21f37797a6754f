"""TFRecord files without TensorFlow: framing and checksums; and the little of protocol buffers that records use.

A record is ``uint64 length, uint32 crc(length), data, uint32 crc(data)``, little-endian; crc is the masked CRC-32C.
"""

import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np

MAX_RECORD = 1 << 20
POLYNOMIAL = 0x82F63B78  # Castagnoli, reflected


class RecordError(ValueError):
    """A record file is torn, damaged or no record file; the message names file and byte."""


def records(path: str | Path, max_bytes: int = MAX_RECORD, check: bool = True) -> Iterator[bytes]:
    """Yield the data of every record.

    Args:
        max_bytes: a longer record is refused before it is read.
        check: compare the data's checksums (the length's is always compared).

    Raises:
        RecordError: truncated file, wrong checksum, or a record longer than ``max_bytes``.
    """
    with open(path, "rb") as handle:
        yield from _records(handle, str(path), max_bytes, check)


def _records(handle: IO[bytes], name: str, max_bytes: int, check: bool) -> Iterator[bytes]:
    position = 0
    while head := handle.read(12):
        if len(head) < 12:
            raise RecordError(f"{name} is cut off at byte {position}: {len(head)} of 12 bytes of a record's head")
        length, crc = struct.unpack("<QI", head)
        if masked_crc32c(head[:8]) != crc:
            raise RecordError(
                f"{name} at byte {position}: the checksum of a record's length is wrong; no TFRecord file?"
            )
        if length > max_bytes:
            raise RecordError(f"{name} at byte {position}: a record of {length} bytes, allowed are {max_bytes}")
        body = handle.read(length + 4)
        if len(body) < length + 4:
            raise RecordError(f"{name} is cut off at byte {position}: {len(body)} of {length + 4} bytes of a record")
        data = body[:length]
        if check and masked_crc32c(data) != struct.unpack("<I", body[length:])[0]:
            raise RecordError(f"{name} at byte {position}: the checksum of a record is wrong")
        yield data
        position += 16 + length


def masked_crc32c(data: bytes) -> int:
    """TensorFlow's masked CRC-32C of ``data``."""
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of ``data``."""
    if len(data) < 64:
        table, crc = _table().tolist(), 0xFFFFFFFF
        for byte in data:
            crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
        return crc ^ 0xFFFFFFFF
    return int(_compiled()(np.frombuffer(data, dtype=np.uint8), _table()))


@cache
def _table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(POLYNOMIAL), table >> 1)
    return table.astype(np.uint32)


@cache
def _compiled():
    import numba

    @numba.njit
    def run(data, table):
        crc = np.uint32(0xFFFFFFFF)
        for byte in data:
            crc = table[(crc ^ byte) & np.uint32(0xFF)] ^ (crc >> np.uint32(8))
        return crc ^ np.uint32(0xFFFFFFFF)

    return run


def protobuf_fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield ``(field number, value)`` of one message: int (varint), float (64 and 32 bit) or bytes (the rest).

    Raises:
        RecordError: a torn message, or a wire type that is none of these.
    """
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, position = _varint(data, position)
        elif wire in (1, 5):
            size, code = (8, "<d") if wire == 1 else (4, "<f")
            value, position = struct.unpack(code, _slice(data, position, size))[0], position + size
        elif wire == 2:
            size, position = _varint(data, position)
            value, position = _slice(data, position, size), position + size
        else:
            raise RecordError(f"protocol buffer with wire type {wire} at byte {position}")
        yield number, value


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, position
    raise RecordError(f"torn number in a protocol buffer at byte {position}")


def _slice(data: bytes, position: int, size: int) -> bytes:
    if position + size > len(data):
        raise RecordError(f"torn protocol buffer: {size} bytes wanted at byte {position} of {len(data)}")
    return data[position : position + size]
