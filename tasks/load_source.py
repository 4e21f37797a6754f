"""Load a portable source that another run or site wrote: the file becomes an artifact, its hash part of every key."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from core.config import Config
from core.hashing import sha256_file
from core.nas.packed import MAPS, SPACES
from core.nas.source import Source
from core.nas.spaces import Space
from core.state import StateError, write_json
from tasks.learn_source import FILE
from tasks.stage import DATA, Artifact, Output, stage

SUFFIX, LOADED = ".source", "load-source"


@dataclass(frozen=True)
class SourceFile:
    """A portable source that was read whole: what it says of itself, and the sha256 of the file."""

    path: str
    name: str
    home: Space
    labels: int
    carried: tuple[str, ...]
    sha256: str

    def __str__(self) -> str:
        brings = f", with latent spaces {', '.join(self.carried)}" if self.carried else ""
        file = Path(self.path).name
        return f"{file} ({self.name}: {self.home.full_name}, {self.labels:,} labels, sha256 {self.sha256[:12]}{brings})"


class LoadSourceConfig(Config):
    """Which file, and what identifies its bytes."""

    path: str = Field(description="a .source file")
    sha256: str = Field(description="hash of the file")


def is_source(name: str) -> bool:
    """Whether ``name`` is that of a portable source, there or not."""
    return Path(name).suffix == SUFFIX


def check_source(name: str) -> SourceFile:
    """Read the file whole, so that what is wrong with it is said before any work.

    Raises:
        ValueError: no such file, no portable source, a damaged or newer one, or of a space that the flow does not have.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        raise ValueError(
            f"there is no file {name}; give the {SUFFIX} file of an earlier search (in its report's folder)"
        )
    try:
        learned = Source.load(path)
    except (StateError, KeyError, TypeError) as error:
        said = error if isinstance(error, StateError) else f"it lacks {error}"
        raise ValueError(f"{name} is no usable portable source: {said}") from None
    carried, labels = tuple(learned.facts.get(SPACES, {})), int(learned.facts["labels"])
    return SourceFile(name, learned.name, learned.home, labels, carried, sha256_file(path))


def load_source(file: SourceFile) -> Artifact:
    """The artifact of a portable source."""
    return _load(LoadSourceConfig(path=file.path, sha256=file.sha256))


@stage(LOADED, modules=["core.nas.source"])
def _load(out: Output, config: LoadSourceConfig) -> None:
    """Copy the file and describe it."""
    copy = out.folder / FILE
    shutil.copyfile(Path(config.path).expanduser(), copy)
    if sha256_file(copy) != config.sha256:
        raise ValueError(f"{config.path} changed while it was loaded; run again")
    learned = Source.load(copy)
    carried = {"latent_spaces": sorted(learned.facts.get(SPACES, {})), "latent_maps": learned.facts.get(MAPS, {})}
    write_json(
        out.folder / DATA,
        {
            "name": Path(config.path).name,
            "sha256": config.sha256,
            "source": {"file": Path(config.path).name, "name": learned.name},
            "schema": {"space": learned.space, **carried},
            "profile": {"labels": learned.facts["labels"], "elites": len(learned.elites)},
        },
    )
    out.metrics({"elites": len(learned.elites), "labels": learned.facts["labels"]})
