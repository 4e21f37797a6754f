"""JSON as tags of a store: as many as its length needs, and back."""

import json
from collections.abc import Mapping
from typing import Any

LENGTH = 4500  # PostgreSQL takes 8,000 characters a tag, MLflow's server 5,000; SQLite takes any


def split(name: str, value: Any) -> dict[str, str]:
    """``name``, ``name.1``, ...: the pieces of the value as JSON."""
    text = json.dumps(value)
    pieces = [text[i : i + LENGTH] for i in range(0, len(text), LENGTH)]
    return {f"{name}.{i}" if i else name: piece for i, piece in enumerate(pieces)}


def joined(name: str, tags: Mapping[str, str], otherwise: Any) -> Any:
    """The value that :func:`split` wrote under ``name``; ``otherwise`` where nothing was."""
    if name not in tags:
        return otherwise
    text, i = tags[name], 1
    while f"{name}.{i}" in tags:
        text, i = text + tags[f"{name}.{i}"], i + 1
    return json.loads(text)
