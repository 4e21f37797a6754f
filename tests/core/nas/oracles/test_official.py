"""The official files: NAS-Bench-101 as TFRecord, NAS-Bench-201 as .pth."""

import bz2
import json
import pickle
import struct

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.tfrecord import RecordError, crc32c, masked_crc32c, protobuf_fields, records
from core.nas.oracles import get_oracle
from core.nas.oracles.nb101_official import read_record
from core.nas.oracles.nb201_official import load_api, load_dictionary
from core.nas.spaces import get_space
from tests.core.nas.oracles import files

NB101, NB201 = get_space("nb101"), get_space("nb201")


@pytest.fixture
def tfrecord(tmp_path):
    return files.nb101_file(tmp_path / "nb101.tfrecord")


def test_checksums_are_the_published_ones():
    """RFC 3720, B.4 and the usual check value of CRC-32C; short and long inputs take different code."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    text = bytes(range(256)) * 3
    short = [crc32c(text[i : i + 50]) for i in range(3)]
    assert len(set(short)) == 3
    # appending its own checksum (little-endian) to a message leaves CRC-32C's constant residue
    assert crc32c(text + struct.pack("<I", crc32c(text))) == 0x48674BC7
    assert crc32c(text[:20] + struct.pack("<I", crc32c(text[:20]))) == 0x48674BC7


def test_records_written_by_the_protobuf_library_are_read(tmp_path):
    """An independent writer of the message, from the benchmark's published schema."""
    descriptor_pb2 = pytest.importorskip("google.protobuf.descriptor_pb2")
    from google.protobuf import descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    schema = descriptor_pb2.FileDescriptorProto(name="m.proto", package="nasbench", syntax="proto2")
    evaluation = schema.message_type.add(name="EvaluationData")
    names = ("current_epoch", "training_time", "train_accuracy", "validation_accuracy", "test_accuracy")
    for number, name in enumerate(names, 1):
        evaluation.field.add(name=name, number=number, type=field.TYPE_DOUBLE, label=field.LABEL_OPTIONAL)
    evaluation.field.add(name="checkpoint_path", number=6, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    model = schema.message_type.add(name="ModelMetrics")
    kind = {"type": field.TYPE_MESSAGE, "type_name": ".nasbench.EvaluationData", "label": field.LABEL_REPEATED}
    model.field.add(name="evaluation_data", number=1, **kind)
    model.field.add(name="trainable_parameters", number=2, type=field.TYPE_INT32, label=field.LABEL_OPTIONAL)
    model.field.add(name="total_time", number=3, type=field.TYPE_DOUBLE, label=field.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(schema)
    message = message_factory.GetMessageClass(pool.FindMessageTypeByName("nasbench.ModelMetrics"))()
    for epoch, valid in ((0, 0.1), (54, 0.7), (108, 0.93)):
        part = message.evaluation_data.add(current_epoch=epoch, training_time=10.0 * epoch, checkpoint_path="/ckpt")
        part.validation_accuracy, part.test_accuracy, part.train_accuracy = valid, valid - 0.01, 1.0
    message.trainable_parameters, message.total_time = 8_555_530, 1234.5
    import base64

    cell = NB101.parse("110011 conv3x3-bn-relu,conv1x1-bn-relu")
    encoded = base64.b64encode(message.SerializeToString()).decode()
    row = [NB101.key(cell), 108, "0110000100010000", "input,conv3x3-bn-relu,conv1x1-bn-relu,output", encoded]
    key, epochs, shape, final = read_record(json.dumps(row).encode(), "test")
    assert (key, epochs, shape[2]) == (NB101.key(cell), 108, 8_555_530)
    assert final == (0.93, 0.92, 1080.0)


def test_nb101_file_answers_by_run_and_reports_test(tfrecord, home):
    oracle = get_oracle("nb101-official", path=str(tfrecord), noise="mean")
    cell = NB101.parse("101 maxpool3x3")
    assert oracle.query(cell).value == pytest.approx(81.2)
    assert oracle.query(cell).metrics["params"] == NB101.size_features(cell)["params"]
    assert oracle.reference(cell)["test"] == pytest.approx(80.2)
    single = get_oracle("nb101-official", path=str(tfrecord), seed=1)
    assert round(single.query(cell).value, 3) in (81.0, 81.2, 81.4)
    with pytest.raises(ValueError, match="has no nb101 cell"):
        oracle.query(NB101.parse("101 conv3x3-bn-relu"))
    with pytest.raises(ValueError, match="no training of 36 epochs"):
        get_oracle("nb101-official", path=str(tfrecord), epochs=36)


def test_the_parsed_file_is_cached_by_content(tfrecord, home):
    get_oracle("nb101-official", path=str(tfrecord))
    folders = list((home / "cache" / "nb101").glob("*[!k]"))
    get_oracle("nb101-official", path=str(tfrecord))
    assert list((home / "cache" / "nb101").glob("*[!k]")) == folders


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b[:-3], "cut off"),
        (lambda b: b[:5], "cut off"),
        (lambda b: b"X" + b[1:], "checksum of a record's length"),
        (lambda b: b[:40] + bytes([b[40] ^ 1]) + b[41:], "checksum of a record is wrong"),
        (lambda b: files.frame(b"x" * ((1 << 20) + 1)), "a record of 1048577 bytes"),
        (lambda b: files.frame(b"[1, 2]"), "no record of NAS-Bench-101"),
        (lambda b: files.frame(b'["00", 108, "", "", "!!"]'), "no record of NAS-Bench-101"),
        (lambda b: b"", "holds no records"),
    ],
)
def test_damaged_files_are_refused_by_name(tfrecord, home, damage, message):
    tfrecord.write_bytes(damage(tfrecord.read_bytes()))
    with pytest.raises(RecordError, match=message):
        get_oracle("nb101-official", path=str(tfrecord))


def test_a_huge_stated_length_is_refused_before_reading(tmp_path):
    head = struct.pack("<Q", 1 << 60)
    path = tmp_path / "bomb"
    path.write_bytes(head + struct.pack("<I", masked_crc32c(head)))
    with pytest.raises(RecordError, match="allowed are"):
        list(records(path))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_records_or_an_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(data)
    try:
        found = list(records(path))
    except RecordError:
        return
    assert b"".join(map(files.frame, found)) == data


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=120))
def test_any_bytes_are_fields_or_an_error(data):
    try:
        for number, value in protobuf_fields(data):
            assert isinstance(number, int)
            assert isinstance(value, (int, float, bytes))
    except RecordError:
        pass


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=5))
def test_records_come_back(tmp_path_factory, payloads):
    path = tmp_path_factory.getbasetemp() / "some"
    path.write_bytes(b"".join(map(files.frame, payloads)))
    assert list(records(path)) == payloads


@settings(max_examples=100, deadline=None)
@given(st.recursive(st.none() | st.integers() | st.floats() | st.text(max_size=8), lambda c: st.lists(c, max_size=5)))
def test_any_json_is_a_record_or_an_error(value):
    with pytest.raises(RecordError, match="no record of NAS-Bench-101"):
        read_record(json.dumps(value).encode(), "here")


def test_nb201_file_is_loaded_safely_and_answers(tmp_path, home):
    path = files.nb201_file(tmp_path / "nb201.pth")
    oracle = get_oracle("nb201-official", path=str(path), dataset="imagenet16", noise="mean")
    assert oracle.query(NB201.parse("334131")).value == pytest.approx(61.8325)
    assert oracle.query(NB201.parse("334131")).cost_seconds == pytest.approx(200 * (7.77 + 8.88))
    assert oracle.reference(NB201.parse("334131"))["test"] == pytest.approx(61.8325)
    with pytest.raises(ValueError, match=r"has not evaluated .* \(4 cells evaluated\)"):
        oracle.query(NB201.parse("222222"))


def test_a_single_nb201_run_costs_its_own_seconds(tmp_path, home):
    path = str(files.nb201_file(tmp_path / "nb201.pth"))
    answers = [get_oracle("nb201-official", path=path, seed=s).query(NB201.parse("334131")) for s in range(8)]
    costs = {round(a.value, 3): round(a.cost_seconds) for a in answers}
    assert costs == {61.777: 1554, 61.888: 1776}


class Evil:
    def __reduce__(self):
        return (print, ("run",))


def test_a_pickle_that_runs_code_is_refused(tmp_path, capsys):
    import torch

    path = tmp_path / "evil.pth"
    torch.save({"meta_archs": [], "arch2infos": Evil(), "evaluated_indexes": []}, path)
    with pytest.raises(ValueError, match="cannot be read safely"):
        load_dictionary(path)
    assert capsys.readouterr().out == ""
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match=r"cannot be read safely|lacks"):
        load_dictionary(path)
    torch.save({"meta_archs": []}, path)
    with pytest.raises(ValueError, match="lacks arch2infos, evaluated_indexes"):
        load_dictionary(path)


@pytest.mark.shared
def test_original_records_through_the_official_package(shared_data, tmp_path, home):
    """Three original NATS-Bench records, put into the official .pth layout, against the parquet made from elsewhere."""
    import torch

    folder = shared_data / "nas/nats_examples/NATS-tss-v1_0-3ffb9-simple"
    read = {p.name[:6]: pickle.loads(bz2.decompress(p.read_bytes())) for p in folder.glob("*.pbz2")}
    indices = sorted(int(name) for name in read if name.isdigit())
    assert indices == [0, 11, 284]
    infos = {i: {"less": read[f"{i:06d}"]["12"], "full": read[f"{i:06d}"]["200"]} for i in indices}
    data = {"meta_archs": read["meta.p"]["meta_archs"], "arch2infos": infos, "evaluated_indexes": indices}
    path = tmp_path / "NATS.pth"
    torch.save(data, path)
    api = load_api(path)
    assert api.query_by_arch(api.arch(11), "200") is not None
    table = pd.read_parquet(shared_data / "nas/nb201.parquet").set_index("index")
    for dataset, prefix in (("cifar10", "c10"), ("cifar100", "c100"), ("imagenet16", "in16")):
        oracle = get_oracle("nb201-official", path=str(path), dataset=dataset, noise="mean")
        short = get_oracle("nb201-official", path=str(path), dataset=dataset, epochs=12, noise="mean")
        for index in indices:
            row, cell = table.loc[index], NB201.parse(table.loc[index, "arch"])
            assert oracle.query(cell).value == pytest.approx(row[f"{prefix}_valid_200"], abs=1e-4)
            assert oracle.reference(cell)["test"] == pytest.approx(row[f"{prefix}_test_200"], abs=1e-4)
            assert short.query(cell).value == pytest.approx(row[f"{prefix}_valid_12"], abs=1e-4)
            metrics = oracle.query(cell).metrics
            assert metrics["flops"] == pytest.approx(row[f"{prefix}_flops_M"] * 1e6, rel=1e-6)
            assert metrics["params"] == pytest.approx(row[f"{prefix}_params_M"] * 1e6, rel=1e-6)
            runs = (~np.isnan([row[f"{prefix}_valid_200_run{i}"] for i in range(3)])).sum()
            assert oracle.query(cell).cost_seconds == pytest.approx(runs * row[f"{prefix}_train_time_200_s"], rel=1e-4)
