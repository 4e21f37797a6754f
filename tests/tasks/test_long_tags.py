"""Values as tags of any store."""

from tasks.long_tags import LENGTH, joined, split


def test_many_inputs_fill_several_tags_and_come_back():
    listed = [{"name": f"stage {i}", "sha256": "a" * 64, "run": "b" * 32, "path": "/some/folder"} for i in range(60)]
    tags = split("inputs", listed)
    assert len(tags) > 2
    assert max(map(len, tags.values())) <= LENGTH
    assert joined("inputs", tags | {"stage": "x"}, None) == listed


def test_few_and_none():
    assert list(split("inputs", [{"name": "one"}])) == ["inputs"]
    assert joined("inputs", split("inputs", []), None) == joined("inputs", {}, []) == []
