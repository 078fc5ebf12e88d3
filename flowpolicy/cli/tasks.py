"""The task that a checkpoint names, as words of a command line."""

import json
import re
from typing import Any


def with_own_task(argv: list[str], recorded: dict[str, Any]) -> list[str]:
    """The overrides, led by the checkpoint's own task unless they name one; the yaml is ours, not the checkpoint's.

    recorded: the checkpoint's config.json. Raises ValueError where it names no task: names must be plain words and
    values hold no interpolation, since either could reach a `_target_` of the yaml.
    """
    if any(argument.startswith("task=") for argument in argv):
        return argv
    own = own_task(recorded)
    scalars = {key: value for key, value in own.items() if key != "name" and not isinstance(value, dict | list)}
    words = [str(own.get("name", "")), *scalars]
    if not all(re.fullmatch(r"\w[\w-]*", word) for word in words) or any("$" in str(v) for v in scalars.values()):
        raise ValueError(f"the checkpoint's config.json names no task, got {str(own)[:80]}; pass task=… task.id=…")
    return [f"task={own['name']}", *(f"task.{key}={json.dumps(value)}" for key, value in scalars.items()), *argv]


def own_task(recorded: dict[str, Any]) -> dict[str, Any]:
    """What config.json says about the task, empty where that is no record."""
    return recorded["task"] if isinstance(recorded.get("task"), dict) else {}


def without_task(argv: list[str]) -> list[str]:
    """The overrides that are not about the task."""
    return [argument for argument in argv if not argument.lstrip("+~").startswith("task")]
