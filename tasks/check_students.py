"""Refuse students of different structures or starts before anything is merged."""

from collections.abc import Mapping

from core.chain.start import load_start
from core.chain.students import check_students as check
from core.config import Config
from core.state import write_json
from tasks.stage import Artifact, Output, stage

CHECKED = "checked.json"


class CheckConfig(Config):
    """Nothing to choose."""


@stage("check-students", modules=["core.chain.students", "core.chain.start"])
def check_students(out: Output, config: CheckConfig, start: Artifact, students: Mapping[str, Artifact]) -> None:
    """One structure, one start, the same tensor names and shapes; otherwise the run ends here with the reason."""
    begun = load_start(start.folder)
    found = check(begun, [a.folder for a in students.values()])
    weights = {s.task: s.sha256 for s in found}
    write_json(out.folder / CHECKED, {"structure": begun.structure, "start_sha256": begun.sha256, "students": weights})
    out.metrics({"students": len(found), "tensors": len(begun.tensors)})
