"""The form of a flow: a frozen model with sizes. A field left empty is filled from the chosen size."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field
from pydantic.fields import FieldInfo

from core.config import Config

BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


class Form(Config):
    """Parameters of a flow.

    A field that depends on the size is ``X | None`` with default None; ``sizes`` gives its value for each size. So the
    form in the UI stays empty where the size decides, and whatever a user enters wins.
    """

    sizes: ClassVar[dict[str, dict[str, Any]]] = {}

    size: Literal["smoke", "default", "full"] = Field(
        "default", description="smoke: seconds; default: minutes; full: all"
    )

    def resolved(self) -> Self:
        """A copy whose empty fields are filled from the size, validated again.

        Raises:
            ValueError: the flow has no such size.
        """
        if self.size not in self.sizes:
            raise ValueError(f"no size {self.size!r} here; allowed: {', '.join(self.sizes)}")
        given = {name: getattr(self, name) for name in type(self).model_fields}
        preset = {k: v for k, v in self.sizes[self.size].items() if given[k] is None}
        return type(self)(**{**given, **preset})


def meaning(name: str, field: FieldInfo) -> str:
    """What a parameter is, with its bounds in words: a form shows bounds only when they are broken."""
    limits = [
        f"{word} {getattr(limit, key):g}"
        for limit in field.metadata
        for key, word in BOUNDS.items()
        if hasattr(limit, key)
    ]
    return "; ".join([field.description or name, *([", ".join(limits)] if limits else [])])
