"""YAML from elsewhere: no objects, no exploding aliases, no endless nesting; faults are one ValueError."""

from typing import Any

LONGEST = 1 << 20  # characters
DEEPEST = 64
LARGEST = 100_000  # values, every alias counted as what it stands for


def load_yaml(text: str, name: str) -> Any:
    """The plain values in ``text``.

    Args:
        name: file or source, for messages.

    Raises:
        ValueError: no YAML, too long, nested too deeply, too many values behind aliases, or values that contain
            themselves.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    if len(text) > LONGEST:
        raise ValueError(f"{name} has {len(text)} characters; at most {LONGEST} are read")
    try:
        _check_brackets(text, name)
        _check_depth(yaml.parse(text, Loader=loader), name)
        data = yaml.load(text, Loader=loader)
    except (yaml.YAMLError, ValueError, OverflowError, TypeError, RecursionError) as error:
        if str(error).startswith(name):
            raise
        raise ValueError(f"{name} is not YAML: {_short(error)}") from None
    if _size(data, {}, name) > LARGEST:
        raise ValueError(f"{name} stands for more than {LARGEST} values; write it without nested aliases")
    return data


def _check_brackets(text: str, name: str) -> None:
    """Refuse deep flow collections before the parser, whose time grows with the square of their depth."""
    depth = 0
    for character in text:
        if character in "[{":
            depth += 1
            if depth > 16 * DEEPEST:  # brackets in long quoted texts also count, so this is generous
                raise ValueError(f"{name} has more than {16 * DEEPEST} brackets open at once")
        elif character in "]}" and depth:
            depth -= 1


def _check_depth(events: Any, name: str) -> None:
    import yaml

    depth = 0
    for event in events:
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEEPEST:
                raise ValueError(f"{name} is nested more than {DEEPEST} levels deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _size(value: Any, known: dict[int, int | None], name: str) -> int:
    """Number of values with shared ones counted each time."""
    if not isinstance(value, dict | list | set | tuple):
        return 1
    if id(value) not in known:
        known[id(value)] = None
        parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(part, known, name) for part in parts)
    size = known[id(value)]
    if size is None:
        raise ValueError(f"{name} holds a value that contains itself")
    return size


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + " ..."
