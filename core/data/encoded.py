"""Files as bytes and text: byte order marks, compression, lines that cannot be decoded, and what a file really is."""

import codecs
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from core.data.compressed import unpacked

MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
CONTENTS = {  # first bytes -> what the file is, the suffixes that say so, what to do
    b"\x1f\x8b": ("gzip", (".gz",), "end its name in .gz"),
    b"BZh": ("bzip2", (".bz2",), "end its name in .bz2"),
    b"\xfd7zXZ": ("xz", (".xz",), "end its name in .xz"),
    b"\x28\xb5\x2f\xfd": ("zstd", (".zst",), "end its name in .zst"),
    b"PAR1": ("parquet", (".parquet",), "end its name in .parquet"),
    b"PK\x03\x04": ("a zip archive or a spreadsheet", (), "unpack it, or save it as csv"),
    b"\xd0\xcf\x11\xe0": ("a spreadsheet", (), "save it as csv"),
    b"version https://git-lfs": ("a pointer of Git LFS, not the table", (), "fetch it with `git lfs pull`"),
}


def read_text(path: Path) -> str:
    """The text of a file, in the encoding that its byte order mark says, else UTF-8; compressed files are unpacked.

    Raises:
        ValueError: not decodable; names the line.
    """
    try:
        with opened(path) as stream:
            data = stream.read()
        return data.decode(next((e for mark, e in MARKS.items() if data.startswith(mark)), "utf-8"))
    except UnicodeError as error:
        raise ValueError(f"{undecodable(path, {}, error)}; save it as UTF-8") from None


def opened(path: Path, options: Mapping[str, Any] | None = None) -> IO[bytes]:
    """The file's bytes, unpacked by its suffix or by the read option ``compression``."""
    plain = unpacked(path, (options or {}).get("compression", "infer"))
    return plain.open("rb") if isinstance(plain, Path) else plain


def marked(path: Path, options: Mapping[str, Any]) -> str | None:
    """The encoding that the file's byte order mark says, unless the options name one; None for UTF-8 without mark."""
    if "encoding" in options:
        return None
    with opened(path, options) as stream:
        head = stream.read(4)
    return next((encoding for mark, encoding in MARKS.items() if head.startswith(mark)), None)


def undecodable(path: Path, options: Mapping[str, Any], error: UnicodeError) -> str:
    """Which line is not of the expected encoding; the codec's own words where lines cannot be told apart."""
    encoding = options.get("encoding", "utf-8")
    if "\n".encode(encoding) == b"\n":
        with opened(path, options) as stream:
            for i, line in enumerate(stream, 1):
                try:
                    line.decode(encoding)
                except UnicodeError:
                    return f"in line {i} it is not {encoding}"
    return f"it is not {encoding}: {first_line(error)}"


def really(path: Path) -> str:
    """What the first bytes of a file that could not be read say that it is."""
    with path.open("rb") as file:
        head = file.read(32)
    for magic, (what, suffixes, remedy) in CONTENTS.items():
        if head.startswith(magic) and path.suffix.lower() not in suffixes:
            return f"; its content is {what}: {remedy}"
    return ""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type's name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
