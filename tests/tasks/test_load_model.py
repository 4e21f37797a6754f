"""What may be given as a model: paths with and without a leading dot, with the tokenizer that its texts need."""

import pytest

from core.data.assets import AssetError
from tasks.load_model import given_path, identity, load_model
from tasks.stage import planning
from tests import tiny_models as tiny


@pytest.fixture
def folder(tmp_path, monkeypatch):
    encoder = tiny.encoder(layers=1)
    encoder.backbone.save_pretrained(tmp_path / "models" / "mine")
    encoder.tokenizer.save_pretrained(tmp_path / "models" / "mine")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "models" / "mine"


def test_a_relative_path_is_the_folder_and_not_a_repository_of_that_name(folder):
    with planning():
        assert load_model("models/mine").sha256 == load_model("./models/mine").sha256
    assert identity("models/mine") == identity(str(folder))


def test_a_folder_with_the_name_of_an_asset_does_not_hide_it(folder):
    folder.rename("all-minilm-l6-v2")
    assert given_path("all-minilm-l6-v2") is None
    assert given_path("./all-minilm-l6-v2") is not None


def test_a_path_without_anything_is_refused_in_the_plan(folder):
    with planning(), pytest.raises(AssetError, match="models/other does not exist"):
        load_model("./models/other")


def test_a_model_without_tokenizer_is_refused_where_it_reads_texts(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with planning():
        with pytest.raises(AssetError, match="has no tokenizer"):
            load_model("models/mine")
        load_model("models/mine", reads_text=False)


def test_an_adapter_is_refused_and_told_how_it_becomes_a_model(folder):
    (folder / "config.json").rename(folder / "adapter_config.json")
    with planning(), pytest.raises(AssetError, match=r"models/mine is an adapter .*merge_and_unload"):
        load_model("models/mine")


def test_a_card_whose_head_explodes_is_refused_before_it_is_read(folder):
    bomb = ["l0: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    bomb += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 9)]
    (folder / "README.md").write_text("\n".join(["---", *bomb, "license: *l8", "---", "# A model", ""]))
    with planning(), pytest.raises(ValueError, match=r"the head of .*README.md stands for more than 100000 values"):
        load_model("./models/mine")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n\n---\n")
    with planning():
        load_model("./models/mine")
