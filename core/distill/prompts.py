"""Prompts of tasks: the task's own templates and label words, and the phrase that sentence encoders read."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from core.data.tasks import BUILT_IN, load_task
from core.models.prompt import Prompt

PHRASES = Path(__file__).with_name("phrases.yaml")


@cache
def phrases() -> dict[str, str]:
    """Label phrase by task name."""
    return yaml.safe_load(PHRASES.read_text(encoding="utf-8"))


@cache
def _built_in(name: str) -> str | None:
    """Hash of what the built-in task of this name says, None without one."""
    return load_task(name).key if (BUILT_IN / f"{name}.yaml").is_file() else None


def task_prompt(task: Any, **changes: Any) -> Prompt:
    """The prompt of a built-in or user task; ``changes`` replace fields of :class:`~core.models.prompt.Prompt`.

    Raises:
        ValueError: label words that collide, or a template without answer slot.
    """
    own = task.template.replace("{mask}", "{answer}")
    for slot in ("{text}", "{pair}"):
        own = own.replace(slot, "")
    own = own.strip(" ?,.:") if task.template else "{answer}"
    own = own if "{answer}" in own else "{answer}"
    # A user's task that happens to be called like a built-in one is about something else.
    phrase = phrases().get(task.name, own) if task.key == _built_in(task.name) else own
    return Prompt.of(task, **({"phrase": phrase} | changes))
