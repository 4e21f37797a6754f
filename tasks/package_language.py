"""Package a merged language model with how each task is asked: one folder to load and ship."""

import json
from collections.abc import Mapping, Sequence

from pydantic import Field

from core.config import Config
from core.data.licences import licences
from core.merge.language_package import MODEL, asked, describe
from core.state import write_bytes
from tasks.load_model import ASSET
from tasks.merge_recipe import MODEL as MERGED
from tasks.merge_static import experts_of
from tasks.stage import Artifact, Output, stage


class PackageLanguageConfig(Config):
    """What the package holds."""

    method: str = Field(description="how the model was merged")


@stage("package-language-merge", modules=["core.merge.language_package"])
def package_language(
    out: Output,
    config: PackageLanguageConfig,
    base: Artifact,
    experts: Mapping[str, Artifact],
    merged: Artifact,
    also: Sequence[Artifact] = (),
) -> None:
    """Write the merged model, the tasks' templates and label words, and a card.

    ``also``: further models whose licences apply (adapters trained elsewhere).
    """
    found = experts_of(experts)
    origin, *further = (json.loads((a.folder / ASSET).read_text()) for a in (base, *also))
    parts = {a["name"]: a["licence"] for a in (origin, *further)}
    terms = licences({**parts, **{e.task: e.definition.licence for e in found}})
    tasks = {e.task: asked(e.definition, e.card["config"]["max_words"]) for e in found}
    named = f"One {origin['name']}, {config.method}, merge of adapters for {', '.join(tasks)}."
    card = f"# Merged language model\n\n{named}\n\n{terms.as_markdown()}"
    write_bytes(out.folder / "README.md", card.encode())
    out.link(merged.folder / MERGED, MODEL)
    describe(out.folder, tasks, {"method": config.method})
