"""What a stage read, as tags of its run, and back: a list of names, hashes, runs and paths."""

import json
from collections.abc import Mapping, Sequence

TAG_LENGTH = 4500  # PostgreSQL takes 8,000 characters a tag, MLflow's server 5,000; SQLite takes any


def input_tags(listed: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """As many tags as the list needs: ``inputs``, ``inputs.1``, ..."""
    text = json.dumps(list(listed))
    pieces = [text[i : i + TAG_LENGTH] for i in range(0, len(text), TAG_LENGTH)]
    return {f"inputs.{i}" if i else "inputs": piece for i, piece in enumerate(pieces)}


def inputs_of(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """The list that :func:`input_tags` wrote; empty where nothing was."""
    text, i = tags.get("inputs", ""), 1
    while f"inputs.{i}" in tags:
        text, i = text + tags[f"inputs.{i}"], i + 1
    return json.loads(text or "[]")
