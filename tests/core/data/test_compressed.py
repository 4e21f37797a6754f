"""Small files that stand for very much are refused while they are unpacked."""

import bz2
import gzip
import lzma
import sys

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.data import tables
from core.data.compressed import unpacked
from core.data.examples import TaskError

ROWS = "text,label\ngood,1\nbad,0\n"
PACKERS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_compressed_table_reads_as_the_plain_one(tmp_path, suffix):
    path = tmp_path / f"rows.csv.{suffix}"
    path.write_bytes(PACKERS[suffix](ROWS.encode()))
    assert tables.read_table(path).to_dict("list") == {"text": ["good", "bad"], "label": ["1", "0"]}


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_bomb_ends_at_the_bound(tmp_path, suffix):
    path = tmp_path / f"rows.csv.{suffix}"
    path.write_bytes(PACKERS[suffix](b"0" * (1 << 22)))
    stream = unpacked(path, most=1 << 20)
    assert len(stream.read(1 << 20)) == 1 << 20
    with pytest.raises(ValueError, match=f"rows.csv.{suffix} unpacks to more than {1 << 20} bytes"):
        stream.read()


def test_a_bomb_is_a_fault_of_the_task_file(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacked, "__defaults__", ("infer", 1 << 10))
    for name, pack in (("rows.csv.gz", b"text\n" + b"word\n" * 4096), ("rows.jsonl.gz", b'{"text": "word"}\n' * 4096)):
        (tmp_path / name).write_bytes(gzip.compress(pack))
        with pytest.raises(TaskError, match=f"cannot read .*{name} as .* unpacks to more than 1024 bytes"):
            tables.read_table(tmp_path / name)


def test_a_parquet_file_of_one_page_that_stands_for_many_rows(tmp_path):
    path = tmp_path / "rows.parquet"
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), ["word " * 2000])
    pq.write_table(pa.table({"text": text.cast(pa.string())}), path)
    assert path.stat().st_size < 1 << 16
    with pytest.raises(ValueError, match="unpacks to more than"):
        tables._parquet(path, {}, most=1 << 20)


def test_an_empty_parquet_file_keeps_its_columns(tmp_path):
    path = tmp_path / "rows.parquet"
    pd.DataFrame({"text": pd.Series([], dtype=str), "label": pd.Series([], dtype="int64")}).to_parquet(path)
    assert list(tables.read_table(path)) == ["text", "label"]


def test_a_missing_reader_and_an_unknown_method_are_said(tmp_path, monkeypatch):
    path = tmp_path / "rows.csv.zst"
    path.write_bytes(b"(\xb5/\xfd")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(TaskError, match="pip install zstandard"):
        tables.read_table(path)
    with pytest.raises(TaskError, match="unknown compression 'rar'; allowed: gzip"):
        tables.read_table(path, options={"compression": "rar"})


def test_dialogues_behind_exploding_aliases(tmp_path):
    levels = "\n".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 7))
    path = tmp_path / "talk.yml"
    path.write_text(f"l0: &l0 [{'x, ' * 9}x]\n{levels}\nconversations:\n- *l6\n")
    with pytest.raises(TaskError, match="stands for more than"):
        tables.read_table(path)
