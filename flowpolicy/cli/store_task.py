"""The task of `flowpolicy train`: the one that the demonstrations are of, unless a word or an experiment names one."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flowpolicy.cli import config
from flowpolicy.cli.recorded import is_own
from flowpolicy.cli.tasks import task_words, with_task, without_task
from flowpolicy.plugins import options

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from flowpolicy.data.store import EpisodeStore

_DEFAULT = "toy"  # of train.yaml: a composition that has it still has not been told a task
_FACTS = ("id", "obs", "max_episode_steps", "view", "env")  # of the environment; how to act is the yaml's affair
_SEEN = ("id", "obs", "view")  # where the family is named: its rules are then the words', its data are what they are


def load(argv: Sequence[str]) -> "tuple[DictConfig, EpisodeStore]":
    """The composed train.yaml and the store, with what the store says of its task where the overrides do not.

    Raises:
        ValueError: Where neither names a task, where the store's has no yaml, or where both disagree: a policy would be
            filed and evaluated as another task's.
    """
    from flowpolicy.data.store import EpisodeStore

    facts = config.plain(config.load("train", without_task(argv)))
    store = EpisodeStore.open(facts["dataset"]["path"])
    store.require_record()
    own, source = _recorded(store.attrs), str(store.path)
    typed = [word.partition("=")[2] for word in argv if word.startswith("task=")]
    family = typed[-1] if typed else facts["task"]["name"]  # of an experiment, or the default
    if family != _DEFAULT or typed:
        known = {key: own[key] for key in _SEEN if key in own and family == own["name"]}
        words = [*task_words({"name": family, **known}, source=source), *argv]
    else:
        words = with_task(argv, own, source=source, trusted=facts["trusted"])
        if own["name"] not in options("task") and not is_own(own):
            words = _without_yaml(argv, own, source)
    cfg = config.load("train", words)
    _require_same(own, cfg.task, source)
    return cfg, store


def _recorded(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """A store's task, {} where it names none."""
    if not isinstance(attrs.get("task"), str):
        return {}
    return {"name": attrs["task"]} | {k: v for k in _FACTS if (v := attrs.get(f"task_{k}")) is not None}


def _without_yaml(argv: Sequence[str], own: dict[str, Any], source: str) -> list[str]:
    """The overrides for a task of one's own, a real robot's: the numbers of the default, its own name, no simulator."""
    has_simulator = any(word.startswith("task.env._target_=") for word in argv)
    if "task.env=null" not in argv and not has_simulator:
        raise ValueError(
            f"{source} is of the task {own['name']}, of which there is no configs/task/{own['name']}.yaml;"
            " pass task.env=null to train without a simulator, task.env._target_=my_package.make_env to train with one "
            "of your own, or --config-dir DIR where DIR/task has its yaml file"
        )
    return [
        *(["task=own"] if has_simulator else []),
        f"task.name={own['name']}",
        f"task.id={json.dumps(own.get('id', own['name']))}",
        *argv,
    ]


def _require_same(own: Mapping[str, Any], task: Any, source: str) -> None:
    """own: what the store says.   task: the composed node."""
    if any(own[key] != task[key] for key in ("name", "id") if key in own):
        said = " ".join(str(own[key]) for key in ("name", "id") if key in own)
        raise ValueError(
            f"{source} is of {said}, the words say {task.name} {task.id}; leave task= and task.id= out, "
            f"or train on demonstrations of {task.id}"
        )
