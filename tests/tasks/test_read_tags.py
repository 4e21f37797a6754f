"""What a stage read, as tags of any store."""

from tasks.read_tags import TAG_LENGTH, input_tags, inputs_of


def test_many_inputs_fill_several_tags_and_come_back():
    listed = [{"name": f"stage {i}", "sha256": "a" * 64, "run": "b" * 32, "path": "/some/folder"} for i in range(60)]
    tags = input_tags(listed)
    assert len(tags) > 2
    assert max(map(len, tags.values())) <= TAG_LENGTH
    assert inputs_of(tags | {"stage": "x"}) == listed


def test_few_and_none():
    assert list(input_tags([{"name": "one"}])) == ["inputs"]
    assert inputs_of(input_tags([])) == inputs_of({}) == []
