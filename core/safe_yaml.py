"""YAML from elsewhere: no objects, no exploding aliases, no endless nesting; faults are one ValueError."""

from functools import cache
from typing import Any

LONGEST = 1 << 20  # characters
DEEPEST = 64
LARGEST = 100_000  # values, every alias counted as what it stands for


def load_yaml(text: str, name: str) -> Any:
    """The plain values in ``text``.

    Args:
        name: file or source, for messages.

    Raises:
        ValueError: no YAML, too long, nested too deeply, a key given twice, too many values behind aliases, or values
            that contain themselves.
    """
    import yaml

    loader = _loader()
    if len(text) > LONGEST:
        raise ValueError(f"{name} has {len(text)} characters; at most {LONGEST} are read")
    try:
        _check_brackets(text, name)
        _check_depth(yaml.parse(text, Loader=loader), name)
        data = yaml.load(text, Loader=loader)
    except (yaml.YAMLError, ValueError, OverflowError, TypeError, RecursionError) as error:
        if str(error).startswith(name):
            raise
        raise ValueError(f"{name} is not YAML: {_placed(error, text) or _short(error)}") from None
    if _size(data, {}, name) > LARGEST:
        raise ValueError(f"{name} stands for more than {LARGEST} values; write it without nested aliases")
    return data


@cache
def _loader() -> type:
    """The safe loader, which of two equal keys would keep the last without a word; here they are refused."""
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        def construct_mapping(self, node, deep=False):
            seen = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                    if (key.tag, key.value) in seen:
                        place = f"line {key.start_mark.line + 1}"
                        raise ValueError(f"key {key.value!r} is given twice, again in {place}; keep one")
                    seen.add((key.tag, key.value))
            return super().construct_mapping(node, deep)

    return Loader


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


def _placed(error: BaseException, text: str) -> str:
    """Line, column and problem of a parser's error, and what to do about the usual ones."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return ""
    found = text.split("\n")[mark.line][mark.column : mark.column + 1] if mark.line <= text.count("\n") else ""
    remedy = ""
    if found == "\t":
        remedy = "; indent with spaces, not tabs"
    elif "mapping values" in error.problem:
        remedy = "; put a text with ': ' in it in quotes"
    elif found in ("@", "`", "%"):
        remedy = f"; put a text that begins with {found} in quotes"
    context = f" ({error.context})" if error.context else ""
    return f"line {mark.line + 1}, column {mark.column + 1}: {_short(error.problem)}{context}{remedy}"


def _short(error: BaseException | str) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + " ..."
