"""What a search knew and what it learned, as portable files that another run or site loads as a source."""

import re
from collections.abc import Collection, Mapping

from pydantic import Field

from core.config import Config
from core.nas.packed import MAPS, SPACES, pack
from core.nas.source import Source
from core.state import write_json
from tasks.encode_architectures import SpaceConfig, read_latent
from tasks.learn_source import by_target, learn_trials, read_source
from tasks.load_source import SUFFIX
from tasks.map_latent_spaces import read_labelled_latents, read_map
from tasks.stage import Artifact, Output, stage

FILES, INDEX = "sources", "sources.json"


class PackageSourcesConfig(Config):
    """How the map was made, and to which space."""

    mapping: str = Field(description="registered latent mapping")
    target: SpaceConfig = Field(description="space to which the map leads")
    seed: int = 0


@stage("package-sources", modules=["core.nas.packed", "core.nas.source"], keep="nothing")
def package_sources(
    out: Output,
    config: PackageSourcesConfig,
    source: Artifact,
    latents: Mapping[str, Artifact],
    mapped: Artifact,
    searches: list[Artifact],
) -> None:
    """Write the source with latent spaces and map, and a source of each target of which enough cells were measured.

    ``latents``: full name of a space -> what encoded it. ``searches``: of all targets. MLflow gets the files with the
    report.
    """
    spaces = {space: read_latent(artifact) for space, artifact in latents.items()}
    known, move = read_source(source), read_map(mapped, config.mapping)
    target = config.target.open().full_name
    maps = {} if move is None else {target: move}
    used = [spaces[known.home.full_name], spaces[target]]
    written = [pack(known, used, maps, read_labelled_latents(mapped))]
    for name, runs in by_target(searches).items():
        learned = learn_trials(name, runs, config.seed)
        written.append(pack(learned, [spaces[s] for s in spaces if s == learned.home.full_name]))
    files: dict[str, Source] = {}
    for learned in written:
        files[_file(learned.name, files)] = learned
        learned.save(out.folder / FILES / list(files)[-1])
    write_json(out.folder / INDEX, {file: _told(learned) for file, learned in files.items()})
    out.metrics({"files": len(files)})


def _file(name: str, taken: Collection[str]) -> str:
    """File name of a source; a second one of the same name (a search of a target that taught it) is numbered."""
    stem = re.sub(r"[^\w.]+", "-", name)
    numbered = (f"{stem}-{n}{SUFFIX}" for n in range(2, len(taken) + 2))
    return next(f for f in (f"{stem}{SUFFIX}", *numbered) if f not in taken)


def _told(learned: Source) -> dict:
    return {
        "name": learned.name,
        "space": learned.home.full_name,
        "labels": learned.facts["labels"],
        "elites": len(learned.elites),
        "latent spaces": list(learned.facts.get(SPACES, {})),
        "map": ", ".join(f"{name} to {target}" for target, name in learned.facts.get(MAPS, {}).items()),
    }
