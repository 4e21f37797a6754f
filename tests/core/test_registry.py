import sys
import types

import pytest

from core.registry import Registry, nearest


def test_get_returns_what_was_registered_and_its_summary():
    family = Registry("test fruit")

    @family.register("apple", colour="red")
    def apple():
        """A fruit.

        More words.
        """

    assert family.get("apple") is apple
    assert family.entry("apple").summary == "A fruit."
    assert family.entry("apple").facts["colour"] == "red"
    assert "apple" in family
    assert "pear" not in family


def test_unknown_name_gives_the_nearest_and_all():
    family = Registry("test fruit")
    family.register("apple")(object())
    family.register("banana")(object())
    with pytest.raises(ValueError, match=r"unknown test fruit 'aple', did you mean 'apple'\? Allowed: apple, banana"):
        family.get("aple")


def test_a_name_is_taken_once():
    family = Registry("test fruit")
    family.register("apple")(lambda: 1)
    with pytest.raises(ValueError, match="registered twice"):
        family.register("apple")(nearest)


def test_a_package_is_imported_on_first_use(tmp_path, monkeypatch):
    (tmp_path / "lazy_family").mkdir()
    (tmp_path / "lazy_family" / "__init__.py").write_text(
        "from core.registry import Registry\nFAMILY = Registry('lazy', package='lazy_family')\n"
    )
    (tmp_path / "lazy_family" / "one.py").write_text(
        "from lazy_family import FAMILY\n\n\n@FAMILY.register('one')\ndef one():\n    'First.'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import lazy_family

    assert "lazy_family.one" not in sys.modules
    assert lazy_family.FAMILY.names() == ["one"]


def test_entry_points_join_a_family(monkeypatch):
    from core import registry

    family = Registry("test fruit")

    def load():
        family.register("from-plugin")(types.SimpleNamespace())

    point = types.SimpleNamespace(load=load)
    monkeypatch.setattr(registry, "_plugins_loaded", False)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == "transferopt" else [])
    assert family.names() == ["from-plugin"]
