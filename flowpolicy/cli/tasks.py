"""The environment that the command line names: `task=… task.id=…`, or the checkpoint's own."""

import json
import re
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from flowpolicy.cli import config
from flowpolicy.cli.makers import maker
from flowpolicy.cli.recorded import is_own, own_words

if TYPE_CHECKING:  # loads torch: a second, which `data collect` need not wait for
    from flowpolicy.checkpoint import Checkpoint
    from flowpolicy.evaluation.evaluate import Task


def with_task(
    argv: Sequence[str],
    own: dict[str, Any],
    *,
    source: str = "the checkpoint's config.json",
    trusted: Sequence[str] = (),
) -> list[str]:
    """The overrides, led by the task `own` unless they name one.

    The yaml of its name says the rest, not the `source`; only a simulator that no yaml names is the source's.

    Args:
        trusted: Packages whose simulators the source may name, beside those of installed plug-ins.
    """
    if any(argument.startswith("task=") for argument in argv):
        return list(argv)
    if is_own(own):
        return [*own_words(own, argv, trusted=trusted, source=source), *argv]
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

    make = maker(cfg.task, "env", render=False)
    settings = {key: value for key, value in config.plain(cfg.task)["env"].items() if not key.startswith("_")}
    return Task(cfg.task.name, cfg.task.id, make, settings)


def task_for(
    name: str, checkpoint: "Checkpoint", words: Sequence[str], *, trusted: Sequence[str]
) -> "tuple[Task, dict[str, Any]]":
    """The task that `words` name, else the checkpoint's own, and the settings of its environment.

    Args:
        name: Of the yaml that the words override.
        trusted: Packages whose simulators the checkpoint may name.
    """
    cfg = config.load(name, with_task(words, checkpoint.task, trusted=trusted))
    task = make_task(cfg)
    return task, dict(task.settings)


def task_groups(family: str) -> ModuleType | None:
    """What names sets of a family's tasks, None where nothing does."""
    name = f"flowpolicy_envs.{family}_tasks"
    return import_module(name) if find_spec(name) else None
