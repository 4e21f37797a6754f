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
        _put(values, key.strip().split("."), yaml.safe_load(text))
    return model(**values)


def _put(values: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise ValueError(f"--set {'.'.join(path)}: {part!r} holds a value, not keys")
    values[path[-1]] = value
