"""All tasks by name. A file here that holds tasks lists them as ``TASKS``."""

from __future__ import annotations

from collections.abc import Sequence

from foveal.evaluate.base import Kind, Task
from foveal.evaluate.tasks import (
    answers,
    captions,
    chair,
    existence,
    generation,
    grounding,
    pope,
    probe,
    retrieval,
    vqa,
    zero_shot,
)

_MODULES = (retrieval, zero_shot, probe, existence, answers, captions, grounding, pope, chair, vqa, generation)
TASKS: dict[str, Task] = {task.name: task for module in _MODULES for task in module.TASKS}


def tasks_for(kind: Kind, names: Sequence[str] | None = None) -> list[Task]:
    """The named tasks, each once, or all of a kind of model that need no files of the user's.

    Raises:
        ValueError: an unknown name, or one of a task for other models.
    """
    if names is None:
        return [task for task in TASKS.values() if task.kind == kind and not task.needs]
    suited = [task.name for task in TASKS.values() if task.kind == kind]
    for name in names:
        if name not in TASKS:
            raise ValueError(f"task={name!r} is unknown; a {kind} model has {', '.join(suited)}")
        if name not in suited:
            raise ValueError(
                f"task={name!r} is for a {TASKS[name].kind} model; this {kind} one has {', '.join(suited)}"
            )
    if not names:
        raise ValueError(f"task is empty; a {kind} model has {', '.join(suited)}")
    return [TASKS[name] for name in dict.fromkeys(names)]
