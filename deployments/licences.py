"""Writes docs/licences.md: name, version, licence and home page of every locked package, as their metadata state them.

`make licences` runs it; a package of the lock that is not installed stops it.
"""

import sys
from fnmatch import fnmatch
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
LOCK, PAGE = ROOT / "requirements.lock", ROOT / "docs" / "licences.md"
LONGEST = 60
MIT = "Permission is hereby granted, free of charge"
TEXTS = ("licen[cs]e*", "copying*")
HEAD = """# Licences of the locked packages

Written by `make licences` from the metadata of what `requirements.lock` installs. transferopt itself is Apache-2.0;
models and data keep licences of their own (`transferopt assets`).

| package | version | licence | home |
|---|---|---|---|
"""


def locked(text: str) -> list[str]:
    """Names of the packages of a lock file, and torch, which is installed apart from it."""
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    return sorted({Requirement(line).name for line in lines if line} | {"torch"}, key=str.lower)


def licence(package: Distribution) -> str:
    """The SPDX expression, else the classifiers, else the first line of the licence field or file, else "unstated"."""
    about = package.metadata
    if expression := about.get("License-Expression"):
        return expression
    classified = [c.split("::")[-1].strip() for c in about.get_all("Classifier", []) if c.startswith("License ::")]
    named = [c for c in classified if c != "OSI Approved"]
    files = [f for f in package.files or [] if any(fnmatch(f.name.lower(), pattern) for pattern in TEXTS)]
    text = about.get("License") or next((f.read_text() for f in files if f.locate().is_file()), "")
    if text.lower().startswith("copyright") and MIT in text:
        return "MIT (its text)"
    first = (text.strip().split("\n") or [""])[0].strip()
    return " and ".join(named) or (first if len(first) <= LONGEST else first[:LONGEST] + " ...") or "unstated"


def home(package: Distribution) -> str:
    """Home page or repository."""
    about = package.metadata
    links = dict(entry.split(", ", 1) for entry in about.get_all("Project-URL", []) if ", " in entry)
    known = {name.lower(): url for name, url in links.items()}
    found = (known.get(name) for name in ("homepage", "repository", "source", "source code", "github"))
    return about.get("Home-page") or next((url for url in found if url), "")


def page(names: list[str]) -> str:
    """The page.

    Raises:
        PackageNotFoundError: a package is not installed.
    """
    lines = []
    for name in names:
        package = distribution(name)
        version = package.version.split("+")[0]
        lines.append(f"| {package.name} | {version} | {licence(package).replace('|', '/')} | {home(package)} |")
    return HEAD + "\n".join(lines) + "\n"


if __name__ == "__main__":
    try:
        PAGE.write_text(page(locked(LOCK.read_text())))
    except PackageNotFoundError as missing:
        sys.exit(f"{missing.name} is locked but not installed; make install")
    print(f"wrote {PAGE.relative_to(ROOT)}")
