"""Tables as users bring them: any marked encoding, odd cells, torn lines; read right, or refused with file and line."""

import bz2
import codecs
import gzip
import json
import lzma

import pandas as pd
import pytest

from core.data.encoded import read_text
from core.data.examples import TaskError
from core.data.tables import read_table

ROWS = {"text": ["Größe 🙂", 'said "so",\nand left'], "label": ["1", "0"]}


def written(kind):
    if kind in ("csv", "tsv"):
        return pd.DataFrame(ROWS).to_csv(index=False, sep="\t" if kind == "tsv" else ",")
    records = [dict(zip(ROWS, row)) for row in zip(*ROWS.values())]
    lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
    return lines if kind == "jsonl" else json.dumps(records, ensure_ascii=False)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json"])
@pytest.mark.parametrize("pack", [None, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_says_the_encoding(tmp_path, kind, pack, encoding):
    suffix = {None: "", gzip.compress: ".gz", bz2.compress: ".bz2", lzma.compress: ".xz"}[pack]
    data = written(kind).encode(encoding)
    path = tmp_path / f"rows.{kind}{suffix}"
    path.write_bytes(pack(data) if pack else data)
    assert read_table(path).astype(str).to_dict("list") == ROWS
    big = tmp_path / "big.txt"
    big.write_bytes(codecs.BOM_UTF16_BE + "ä\n".encode("utf-16-be"))
    assert read_text(big) == "ä\n"


def test_windows_line_ends_and_lines_of_any_length(tmp_path):
    long = "word " * 200_000
    line = json.dumps({"text": long, "label": "1"})
    for kind, text in (("csv", f"text,label\r\n{long},1\r\n"), ("jsonl", f"{line}\r\n")):
        path = tmp_path / f"rows.{kind}"
        path.write_bytes(text.encode())
        assert read_table(path).astype(str).to_dict("list") == {"text": [long], "label": ["1"]}


def test_json_may_be_one_object_a_line_and_names_may_be_numbers(tmp_path):
    (tmp_path / "rows.json").write_text('{"1": "a"}\n{"1": "b"}\n')
    assert read_table(tmp_path / "rows.json").to_dict("list") == {"1": ["a", "b"]}
    (tmp_path / "rows.csv").write_text("1,good\n0,bad\n")
    rows = read_table(tmp_path / "rows.csv", options={"header": None})
    assert rows.to_dict("list") == {"0": ["1", "0"], "1": ["good", "bad"]}


def test_row_names_of_r_are_no_column(tmp_path):
    (tmp_path / "rows.csv").write_text('"text","label"\n"1","good","1"\n"2","bad","0"\n')
    assert read_table(tmp_path / "rows.csv").to_dict("list") == {"text": ["good", "bad"], "label": ["1", "0"]}


DEEP = "[" * 100_000 + "]" * 100_000
FAULTY = [
    ("a.csv", "text,label\ngood, very good,1\nbad, worse,0\n", "its rows have more cells than its header; put texts"),
    ("a.csv", "text,label\ngood,1,\nbad,0,\n", "its rows have more cells than its header"),
    ("a.csv", "text,label\ngood,1\nbad, worse,0\n", "Expected 2 fields in line 3, saw 3; put texts"),
    ("a.csv", "text,label,text\ngood,1,x\n", "two columns are named 'text'; rename one"),
    ("a.csv", "text,label\ngut,1\nGröße,0\n".encode("latin-1"), "in line 3 it is not utf-8; give its encoding"),
    ("a.jsonl", '{"text": "Größe"}\n'.encode("latin-1"), "in line 1 it is not utf-8; save it as UTF-8"),
    ("a.json", '[{"text": "Größe"}]\n'.encode("latin-1"), "in line 1 it is not utf-8; save it as UTF-8"),
    ("a.csv", "", "No columns"),
    ("a.jsonl", "", "it is empty"),
    ("a.jsonl", '{"text": "a"}\n\n{"text": "b"\n', "line 3: Expecting ',' delimiter"),
    ("a.jsonl", '{"text": "a"}\n["b"]\n', "line 2 is a list; every line is one JSON object"),
    ("a.jsonl", '"a"\n', "line 1 is a text; every line"),
    ("a.jsonl", '{"text": "a"}\n{"text": ' + DEEP + "}\n", "line 2: it is nested too deeply"),
    ("a.json", '{"text": ' + DEEP + "}", "it is nested too deeply; a row is a flat object"),
    ("a.json", '[{"text": "a"}, null]', "row 2 is null; it must hold a list of objects"),
    ("a.json", "5", "it holds a number that is no table"),
    ("a.json", '{"text": "a"}', "it holds an object that is no table"),
    ("a.json", '[{"text": "a"},\n {"text" "b"}]', "line 2 column 10"),
    ("a.csv", gzip.compress(b"text\n", mtime=0), "its content is gzip: end its name in .gz"),
    ("a.csv", b"PK\x03\x04\xff\xff", "a zip archive or a spreadsheet: unpack it, or save it as csv"),
    ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
    ("a.xlsx", b"PK\x03\x04", "no known format; allowed: csv, tsv"),
    ("a.csv.gz", b"text,label\n", "Not a gzipped file"),
]


@pytest.mark.parametrize(("name", "content", "message"), FAULTY)
def test_what_cannot_be_read_is_named_with_its_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TaskError) as error:
        read_table(path, where="task t", columns=("text", "label"))
    assert message in str(error.value)
    assert str(error.value).startswith("task t: ")
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_a_column_that_only_looks_repeated_is_read(tmp_path):
    (tmp_path / "a.csv").write_text("text,text.1\na,b\n")
    assert read_table(tmp_path / "a.csv", columns=("text",)).to_dict("list") == {"text": ["a"], "text.1": ["b"]}
    (tmp_path / "b.csv").write_text("id,text,id\n1,a,2\n")
    assert read_table(tmp_path / "b.csv", columns=("text",))["text"].tolist() == ["a"]


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_lists_and_records_are_refused_where_a_text_is_wanted(tmp_path, kind):
    rows = pd.DataFrame({"text": ["a", "b"], "tags": [["x"], ["y"]], "by": [{"id": 1}, {"id": 2}]})
    path = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        rows.to_parquet(path)
    else:
        rows.to_json(path, orient="records", lines=kind == "jsonl")
    assert read_table(path, columns=("text",))["text"].tolist() == ["a", "b"]
    for column, what in (("tags", "a list in row 1"), ("by", "a record in row 1")):
        with pytest.raises(TaskError, match=rf"rows.{kind}: column '{column}' holds lists or records \({what}\)"):
            read_table(path, columns=("text", column))


def test_half_a_character_is_refused_with_its_row(tmp_path):
    (tmp_path / "rows.json").write_text('[{"text": "whole"}, {"text": "cut \\ud83d"}]')
    with pytest.raises(TaskError, match=r"rows.json as json \(row 2 holds half of a surrogate pair"):
        read_table(tmp_path / "rows.json", columns=("text",))
