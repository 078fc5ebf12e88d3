"""The environment that the command line names: `task=… task.id=…`, or the checkpoint's own."""

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from flowpolicy.cli import config

if TYPE_CHECKING:  # loads torch: a second, which `data collect` need not wait for
    from flowpolicy.checkpoint import Checkpoint
    from flowpolicy.evaluation.evaluate import Task


def with_task(argv: Sequence[str], own: dict[str, Any], *, source: str = "the checkpoint's config.json") -> list[str]:
    """The overrides, led by the task `own` unless they name one; the yaml is ours, not that of the `source`."""
    if any(argument.startswith("task=") for argument in argv):
        return list(argv)
    words = task_words(own, source=source)
    return [f"task={own['name']}", *words, *argv]


def task_words(own: dict[str, Any], *, source: str) -> list[str]:
    """What `own` says of its task apart from its name, as overrides.

    Names must be plain words and values hold no interpolation: either could reach a `_target_` of the yaml.
    """
    facts = {key: value for key, value in own.items() if key != "name" and not isinstance(value, dict | list)}
    view = own["view"] if isinstance(own.get("view"), dict) else {}
    seen = {f"view.{key}": value for key, value in view.items() if key != "_target_" and not isinstance(value, dict)}
    names = [str(own.get("name", "")), *facts, *(name.removeprefix("view.") for name in seen)]
    facts |= seen
    if not all(re.fullmatch(r"\w[\w-]*", name) for name in names) or any("$" in str(v) for v in facts.values()):
        raise ValueError(f"{source} names no task, got {str(own)[:80]}; pass task=… task.id=…")
    return [f"task.{key}={json.dumps(value)}" for key, value in facts.items()]


def without_task(argv: Sequence[str]) -> list[str]:
    """The overrides that do not touch the task."""
    return [argument for argument in argv if not re.match(r"[+~]*task(?:[.=]|$)", argument)]


def make_task(cfg: DictConfig) -> "Task":
    """Of a composed config. Raises ValueError for a task without a simulator."""
    from flowpolicy.evaluation.evaluate import Task  # needs the extra `train`, which `bench` can do without

    if cfg.task.env is None:
        raise ValueError(f"task={cfg.task.name} has no simulator (task.env is null); pass another task=… task.id=…")
    settings = {key: value for key, value in config.plain(cfg)["task"]["env"].items() if not key.startswith("_")}
    return Task(cfg.task.name, cfg.task.id, config.instantiate(cfg.task.env), settings)


def task_for(name: str, checkpoint: "Checkpoint", words: Sequence[str]) -> "tuple[Task, dict[str, Any]]":
    """The task that `words` name, else the checkpoint's own, and the settings of its environment.

    Args:
        name: Of the yaml that the words override.
    """
    cfg = config.load(name, with_task(words, checkpoint.task))
    task = make_task(cfg)
    return task, dict(task.settings)
