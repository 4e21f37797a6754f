"""Parameters of a flow from a file and ``key=value`` settings."""

from pathlib import Path
from typing import Any

import yaml

from core.config import Config


def read(model: type[Config], config: Path | None, settings: list[str]) -> Config:
    """Validated parameters: defaults, then the YAML/JSON file, then ``key=value`` (dots for nested keys).

    Raises:
        ValueError: unreadable file, a setting without ``=``, unknown key or wrong type.
    """
    return model(**given(config, settings))


def given(config: Path | None, settings: list[str]) -> dict[str, Any]:
    """What the file and the settings say, not yet checked against a flow (which takes seconds to import).

    Raises:
        ValueError: unreadable file, or a setting that is not ``key=value``.
    """
    values: dict[str, Any] = {}
    if config is not None:
        if not config.is_file():
            raise ValueError(f"no configuration file {config}")
        try:
            values = yaml.safe_load(config.read_text()) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"{config} is not valid YAML: {error}") from None
        if not isinstance(values, dict):
            raise ValueError(f"{config} must hold keys and values, found {type(values).__name__}")
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set takes key=value, got {setting!r}")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ValueError(f"--set {key}: {text!r} is not valid YAML; quote what is meant as text") from None
        _put(values, key.strip().split("."), value)
    return values


def writable_file(path: Path | None) -> None:
    """Refuse a file that cannot be written before the work whose result it is to hold.

    Raises:
        ValueError: a folder, or a place below a file.
    """
    if path is None:
        return
    blocked = next((p for p in path.parents if p.exists() and not p.is_dir()), None)
    if path.is_dir() or blocked is not None:
        raise ValueError(f"{path} cannot be written: {blocked or path} is a {'file' if blocked else 'folder'}")


def existing_recipe(path: Path) -> Path:
    """``path``, if it is a file.

    Raises:
        ValueError: nothing there, or a folder.
    """
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise ValueError(f"recipe {path} {found}; give a YAML file with the keys merge_method and models")
    return path


def _put(values: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise ValueError(f"--set {'.'.join(path)}: {part!r} holds a value, not keys")
    values[path[-1]] = value
