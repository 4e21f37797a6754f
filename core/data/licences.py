"""Licences travel: what applies to something made from several assets, and where their terms conflict."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol


class Licensed(Protocol):
    """Anything with a name, a licence statement and an origin: an asset, or a table entry."""

    @property
    def name(self) -> str: ...

    @property
    def licence(self) -> str: ...

    @property
    def origin(self) -> str: ...


@dataclass(frozen=True)
class Terms:
    """What a licence statement obliges to, as far as its words tell.

    ``family`` is one of: permissive, attribution, share-alike, copyleft, network copyleft, non-commercial, unstated,
    contradictory, custom.
    """

    family: str
    identifier: str


# first match wins; the statement begins with the identifier, a remark in brackets may follow
_FAMILIES = (
    ("contradictory", r"contradictory"),
    ("unstated", r"unstated|unknown|none|see the hub"),
    ("network copyleft", r"agpl[-\w. ]*"),
    ("weak copyleft", r"lgpl[-\w. ]*|mpl[-\w. ]*"),
    ("copyleft", r"gpl[-\w. ]*"),
    ("non-commercial", r"cc[- ]by[- ](?:sa[- ])?nc[-\w. ]*|.*non-?commercial.*"),
    ("share-alike", r"cc[- ]by[- ]sa[-\w. ]*"),
    ("attribution", r"cc[- ]by[-\w. ]*"),
    ("permissive", r"apache[-\w. ]*|mit|bsd[-\w]*|cc0[-\w.]*|isc|unlicense|public domain|zlib|python[-\w.]*"),
)
_CONFLICTS = (
    ({"copyleft", "network copyleft"}, {"non-commercial"}, "GPL terms forbid the non-commercial restriction"),
    ({"share-alike"}, {"non-commercial"}, "share-alike terms forbid the added non-commercial restriction"),
    ({"share-alike"}, {"network copyleft"}, "CC BY-SA 4.0 may pass into GPL-3.0 only, not into AGPL"),
)
_STRICTEST = (
    "contradictory",
    "unstated",
    "custom",
    "non-commercial",
    "network copyleft",
    "copyleft",
    "share-alike",
    "weak copyleft",
    "attribution",
    "permissive",
)


def terms(statement: str) -> Terms:
    """Read a licence statement such as ``"Apache-2.0 (model card)"``."""
    text = statement.strip().lower()
    for family, pattern in _FAMILIES:
        match = re.match(pattern, text)
        if match:
            return Terms(family, statement.strip()[: match.end()].strip(" ("))
    return Terms("custom", statement.split("(")[0].strip())


@dataclass(frozen=True)
class Combined:
    """The combined statement for a model card, its lines by asset, conflicts, and what is to be cleared first."""

    statement: str
    lines: tuple[str, ...]
    conflicts: tuple[str, ...]
    open_questions: tuple[str, ...]

    def as_markdown(self) -> str:
        """A section for a model card."""
        parts = ["## Licence", "", self.statement, "", *(f"- {line}" for line in self.lines)]
        for title, items in (("Conflicts", self.conflicts), ("To be cleared before passing on", self.open_questions)):
            if items:
                parts += ["", f"**{title}**", "", *(f"- {item}" for item in items)]
        return "\n".join(parts) + "\n"


def licences(assets: Iterable[Licensed] | Mapping[str, str]) -> Combined:
    """Combine the licences of everything that went into a result.

    Args:
        assets: assets (name, licence, origin), or a mapping name -> licence statement.

    This reads statements, it is no legal advice; what it cannot read is named as open.
    """
    if isinstance(assets, Mapping):
        items = [(name, licence, "") for name, licence in assets.items()]
    else:
        items = [(a.name, a.licence, a.origin) for a in assets]
    items = sorted(set(items))
    if not items:
        raise ValueError("no assets given; a licence statement needs at least one")
    known = [(name, statement, terms(statement), origin) for name, statement, origin in items]
    conflicts = []
    for first, second, why in _CONFLICTS:
        a = sorted({n for n, _, t, _ in known if t.family in first})
        b = sorted({n for n, _, t, _ in known if t.family in second})
        if a and b:
            conflicts.append(f"{', '.join(a)} with {', '.join(b)}: {why}")
    a = sorted(n for n, _, t, _ in known if re.match(r"gpl-?2\.0(?!.*later)", t.identifier, re.IGNORECASE))
    b = sorted(n for n, _, t, _ in known if t.identifier.lower().startswith("apache"))
    if a and b:
        conflicts.append(f"{', '.join(a)} with {', '.join(b)}: GPL-2.0-only and Apache-2.0 cannot be combined")
    unclear = ("unstated", "contradictory", "custom")
    questions = [f"{n}: {s}" for n, s, t, _ in known if t.family in unclear]
    lines = tuple(f"{n}: {s}" + (f"; from {o}" if o else "") for n, s, _, o in known)
    return Combined(_statement(known), lines, tuple(conflicts), tuple(questions))


def _statement(known: list[tuple[str, str, Terms, str]]) -> str:
    strictest = min((t for _, _, t, _ in known), key=lambda t: _STRICTEST.index(t.family))
    family = strictest.family
    words = {
        "contradictory": "Made from parts whose licence is stated in contradictory ways; ask before passing it on.",
        "unstated": "Made from parts whose licence is not stated; not cleared for passing on.",
        "custom": "Made under custom terms; read them before passing it on.",
        "non-commercial": f"Non-commercial use only ({strictest.identifier}).",
        "network copyleft": f"May be passed on, or offered over a network, under {strictest.identifier} only.",
        "copyleft": f"May be passed on under {strictest.identifier} only.",
        "share-alike": f"May be passed on under the same terms ({strictest.identifier}), naming the origins.",
        "weak copyleft": f"Changes to the parts under {strictest.identifier} stay under it; notices must be kept.",
        "attribution": "May be passed on, naming the origins.",
        "permissive": "May be passed on, keeping the notices of the parts.",
    }
    return words[family]
