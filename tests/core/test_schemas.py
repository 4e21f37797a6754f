"""Stored things carry a schema version: the previous one is read, a newer one is refused with the remedy."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from core.evaluate.rows import SCHEMA, Row, read_rows, write_rows
from core.evolve import loop
from core.merge import adamerging, masks, relation, statistics
from core.merge.relation import RelationGraph
from core.models import classifier
from core.nas import source
from core.nas.source import Source
from core.state import MANIFEST, MANIFEST_SCHEMA, StateError, load_checkpoint, save_checkpoint, seal, verify


def test_a_previous_checkpoint_is_read_and_says_which_it_is(tmp_path):
    save_checkpoint(tmp_path / "old", {"a": 1}, kind="search", schema=1, arrays={"x": np.ones(2)})
    payload, arrays, found = load_checkpoint(tmp_path / "old", kind="search", schema=2)
    assert (payload, arrays["x"].tolist(), found) == ({"a": 1}, [1, 1], 1)


@pytest.mark.parametrize(
    ("kind", "schema", "load"),
    [
        (source.KIND, source.SCHEMA, Source.load),
        (relation.KIND, relation.SCHEMA, RelationGraph.load),
        (loop.KIND, loop.SCHEMA, lambda p: load_checkpoint(p, kind=loop.KIND, schema=loop.SCHEMA)),
    ],
)
def test_newer_checkpoints_of_every_kind_name_the_remedy(tmp_path, kind, schema, load):
    save_checkpoint(tmp_path / "new", {}, kind=kind, schema=schema + 1)
    with pytest.raises(StateError, match=rf"schema version {schema + 1}, this program reads up to .*update transfer"):
        load(tmp_path / "new")


def test_rows_without_a_version_are_the_first_and_newer_ones_are_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = Row(method="m", metric="accuracy", value=0.5)
    write_rows(path, [row])
    line = json.loads(path.read_text())
    assert line["schema_version"] == SCHEMA
    first = {k: v for k, v in line.items() if k != "schema_version"}
    path.write_text(json.dumps(first) + "\n")
    assert read_rows(path) == [row]
    path.write_text(json.dumps(line) + "\n" + json.dumps(line | {"schema_version": SCHEMA + 1, "unheard": 1}) + "\n")
    with pytest.raises(StateError, match="line 2 was written by a newer version; update transferopt"):
        read_rows(path)


def test_newer_sealed_folders_are_refused(tmp_path):
    (tmp_path / "x").write_text("1")
    seal(tmp_path)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps(manifest | {"schema": MANIFEST_SCHEMA + 1}))
    with pytest.raises(StateError, match=r"newer version .*update transferopt"):
        verify(tmp_path)


def test_newer_packages_masks_coefficients_and_statistics_are_refused(tmp_path):
    card = {"schema": classifier.SCHEMA + 1, "tasks": {}, "max_length": 8}
    (tmp_path / classifier.CARD).write_text(json.dumps(card))
    with pytest.raises(ValueError, match=r"newer version .*update transferopt"):
        classifier.TextClassifier(tmp_path)
    facts = {"schema": masks.SCHEMA + 1, "method": "emr", "tasks": [], "rescale": []}
    (tmp_path / masks.FACTS).write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="update transferopt"):
        masks.open_masks(tmp_path)
    known = {"schema": adamerging.SCHEMA + 1, "kind": "adamerging", "coefficients": {}}
    (tmp_path / "c.json").write_text(json.dumps(known))
    with pytest.raises(ValueError, match=f"schema {adamerging.SCHEMA + 1}; expected"):
        adamerging.read_coefficients(tmp_path / "c.json")
    head = {"kind": "fisher", "examples": "1", "norm": "1.0", "schema": str(statistics.SCHEMA + 1)}
    save_file({"w": np.ones(1, np.float32)}, tmp_path / "s.safetensors", head)
    with pytest.raises(ValueError, match="update transferopt"):
        statistics.check_statistics(tmp_path / "s.safetensors", "fisher")
