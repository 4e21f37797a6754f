"""Reading zip archives that come from elsewhere: bounded in size, and no member leaves the target folder."""

import fnmatch
import io
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

MAX_BYTES = 4 << 30
BLOCK = 1 << 20


class ArchiveError(ValueError):
    """An archive is damaged, too large when unpacked, or holds a member that must not be extracted."""


def extract(
    archive: str | Path,
    target: str | Path,
    members: Sequence[str] = ("*",),
    strip: str = "",
    max_bytes: int = MAX_BYTES,
) -> list[Path]:
    """Extract the members whose names match one of the patterns and return the files written, sorted.

    Args:
        archive: path of a zip file (a wheel is one).
        target: folder; made when missing.
        members: shell patterns on the whole member name (``*`` also matches ``/``).
        strip: leading part dropped from member names, e.g. ``"package/data/"``.
        max_bytes: largest total size unpacked, counted while writing (the header's word is not trusted).

    Raises:
        ArchiveError: no zip file, nothing matches, a name that is absolute or climbs out, a link, or too large.
    """
    root = Path(target)
    written: list[Path] = []
    left = max_bytes
    with _open(archive) as z:
        for info in _matching(z, archive, members):
            path = root / _safe_name(info, strip, archive)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as out:
                left -= _copy(z, info, out, left, archive, max_bytes)
            written.append(path)
    return sorted(written)


def read_member(archive: str | Path, member: str, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of one member.

    Raises:
        ArchiveError: damaged archive, no such member, or larger than ``max_bytes`` unpacked.
    """
    with _open(archive) as z:
        if member not in z.namelist():
            raise ArchiveError(f"{archive} has no member {member!r}")
        out = io.BytesIO()
        _copy(z, z.getinfo(member), out, max_bytes, archive, max_bytes)
        return out.getvalue()


def join_members(archives: Iterable[str | Path], members: Sequence[str], target: str | Path) -> None:
    """Concatenate matching members of several archives, in the order of archives and names, into one file."""
    with Path(target).open("wb") as out:
        for archive in archives:
            with _open(archive) as z:
                for info in _matching(z, archive, members):
                    _copy(z, info, out, MAX_BYTES, archive, MAX_BYTES)


def _open(archive: str | Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(archive)
    except zipfile.BadZipFile as error:
        raise ArchiveError(f"{archive} is not a readable zip archive ({error}); fetch it again") from None


def _matching(z: zipfile.ZipFile, archive: str | Path, members: Sequence[str]) -> Iterator[zipfile.ZipInfo]:
    infos = [i for i in z.infolist() if not i.is_dir()]
    for pattern in members:
        if not any(fnmatch.fnmatchcase(i.filename, pattern) for i in infos):
            raise ArchiveError(f"{archive} has no member that matches {pattern!r}")
    return iter(
        sorted((i for i in infos if any(fnmatch.fnmatchcase(i.filename, p) for p in members)), key=lambda i: i.filename)
    )


def _safe_name(info: zipfile.ZipInfo, strip: str, archive: str | Path) -> PurePosixPath:
    name = PurePosixPath(info.filename.removeprefix(strip))
    if name.is_absolute() or ".." in name.parts or "\\" in info.filename or not name.parts or ":" in name.parts[0]:
        raise ArchiveError(f"{archive}: member {info.filename!r} would be written outside the target folder")
    if stat.S_ISLNK(info.external_attr >> 16):
        raise ArchiveError(f"{archive}: member {info.filename!r} is a link; links are not extracted")
    return name


def _copy(z: zipfile.ZipFile, info: zipfile.ZipInfo, out: IO[bytes], left: int, archive: str | Path, limit: int) -> int:
    """Copy a member and return its size; stops as soon as ``left`` bytes are passed."""
    size = 0
    try:
        with z.open(info) as source:
            while block := source.read(BLOCK):
                size += len(block)
                if size > left:
                    raise ArchiveError(f"{archive} unpacks to more than {limit} bytes (at {info.filename!r}); refused")
                out.write(block)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ArchiveError(f"{archive}: member {info.filename!r} is damaged ({error}); fetch it again") from None
    return size


def extract_nested(
    archives: Sequence[str | Path], members: Sequence[str], target: str | Path, strip: str, scratch: str | Path
) -> list[Path]:
    """Join the parts of a zip that several archives carry, and extract that zip's files into ``target``."""
    whole = Path(scratch) / "joined.zip"
    try:
        join_members(archives, members, whole)
        return extract(whole, target, strip=strip)
    finally:
        if whole.exists():
            whole.unlink()


def free_bytes(folder: str | Path) -> int:
    """Free bytes on the disk that holds ``folder`` (or its nearest existing parent)."""
    path = Path(folder)
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
