"""Open the source behind an artifact: a model as it came, or one that a run trained first."""

import json
from dataclasses import replace

from core.data.tasks import load_task
from core.models.folder import check_one_text
from core.models.load import Source as Place
from core.state import Cache
from core.transfer.own_classifier import with_own_classifier
from core.transfer.sources import FACTS, Source, open_source
from tasks.load_model import ASSET
from tasks.stage import Artifact

KEPT = 300  # examples of a trained source's own data, for similarity and forgetting


def opened(artifact: Artifact, modality: str, max_length: int, template: str = "") -> Source:
    """The source, with its features cached on disk and the classifier that it came with."""
    options = {"max_length": max_length} if modality in ("text", "language") else {}
    if modality == "language":
        options["template"] = template
    facts = artifact.folder / FACTS
    if facts.is_file():
        source = open_source(artifact.folder, modality, Cache(), **options)
        task = json.loads(facts.read_text()).get("task")
        return replace(source, train=load_task(task).splits().validation.sample(KEPT, 0)) if task else source
    asset = artifact.folder / ASSET
    name = json.loads(asset.read_text())["name"] if asset.is_file() else artifact.name
    place = Place(name, artifact.folder, artifact.sha256)
    if modality == "text":
        check_one_text(place)
    return with_own_classifier(open_source(place, modality, Cache(), **options), place)


def modality_of(task: str) -> str:
    """The modality that a task's data ask for."""
    loaded = load_task(task)
    if loaded.kind == "generation":
        return "language"
    return {"image": "image", "table": "table"}.get(loaded.kind, "text")
