"""The list of licences is that of the lock."""

import importlib.util
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def licences():
    spec = importlib.util.spec_from_file_location("licences", ROOT / "deployments" / "licences.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_locked_package_is_listed_with_its_version(licences):
    listed = {}
    for line in licences.PAGE.read_text().splitlines():
        if line.startswith("| ") and not line.startswith("| package |"):
            name, version, licence, _ = (cell.strip() for cell in line.strip("|").split("|"))
            listed[name.lower().replace("_", "-").replace(".", "-")] = version
            assert licence, f"{name} has no licence; call make licences"
    for line in licences.LOCK.read_text().splitlines():
        need = Requirement(line)
        found = listed.get(need.name.lower().replace("_", "-").replace(".", "-"))
        assert found, f"{need.name} is not listed; call make licences"
        assert str(need.specifier) == f"=={found}", f"{need.name}: listed {found}; call make licences"


def test_licences_are_stated_and_short(licences):
    assert licences.page(["pydantic"]).count("| pydantic |") == 1
    assert "| MIT |" in licences.page(["pydantic"])
    assert "unstated" not in licences.PAGE.read_text()
