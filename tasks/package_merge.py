"""Package a merged encoder with a head a task: one folder to load, serve and ship."""

import json
from collections.abc import Mapping, Sequence

from pydantic import Field

from core.config import Config
from core.data.licences import licences
from core.models.classifier import Head, save
from core.state import write_bytes
from tasks.align_heads import SUFFIX, aligned_heads
from tasks.load_model import ASSET
from tasks.merge_recipe import MODEL
from tasks.merge_static import best_on_validation, experts_of
from tasks.stage import Artifact, Output, stage


class PackageConfig(Config):
    """What the package states."""

    max_length: int = Field(64, ge=8, description="longest text in tokens")
    method: str = Field("", description="which merge (empty: the static one that was best on validation)")


@stage("package-merge", modules=["core.models.classifier"])
def package_merge(
    out: Output,
    config: PackageConfig,
    base: Artifact,
    experts: Mapping[str, Artifact],
    merged: Mapping[str, Artifact],
    tuned: Artifact | None = None,
    aligned: Artifact | None = None,
    also: Sequence[Artifact] = (),
) -> None:
    """Write one merge, with all heads and label names.

    ``tuned``: what says which static merge was best, where ``config.method`` names none.
    ``aligned``: its aligned heads, packaged instead of the experts'.
    ``also``: further models whose licences apply (teachers of the experts).
    """
    if not config.method and tuned is None:
        raise ValueError(f"name the method to package, or give what was tuned; there are {', '.join(merged)}")
    chosen = config.method or best_on_validation(tuned)
    heads = {}
    found = experts_of(experts)
    fitted = {} if aligned is None else aligned_heads(aligned)[chosen]
    for expert in found:
        weight, bias = expert.head()
        if expert.task in fitted:
            weight, bias = fitted[expert.task].weight, fitted[expert.task].bias
        heads[expert.task] = Head(weight, bias, expert.definition.labels, expert.definition.kind == "pair")
    origin = json.loads((base.folder / ASSET).read_text())
    further = [json.loads((a.folder / ASSET).read_text()) for a in also]
    parts = {origin["name"]: origin["licence"], **{a["name"]: a["licence"] for a in further}}
    terms = licences({**parts, **{e.task: e.definition.licence for e in found}})
    method = chosen + (SUFFIX if fitted else "")
    model = merged[chosen].folder / MODEL
    card = f"# Merged encoder\n\nOne {origin['name']} encoder, {method}, merge of experts on {', '.join(heads)}.\n\n"
    write_bytes(out.folder / "README.md", (card + terms.as_markdown()).encode())
    save(out.folder, model, heads, config.max_length, {"method": method})
