"""The task that a checkpoint or a store recorded, where no yaml file says it: a simulator of the user's own."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from flowpolicy.cli import config
from flowpolicy.plugins import options
from flowpolicy.spec import require_code_of

OWN = "own"  # the yaml for a simulator without one
_OTHERS = ("env", "expert", "batched", "keys_of")  # entries that are no plain facts


def is_own(own: Mapping[str, Any]) -> bool:
    """Whether the simulator of a recorded task is another than that of the yaml file of its name."""
    env, name = own.get("env"), own.get("name")
    if not isinstance(env, dict) or not isinstance(target := env.get("_target_"), str):
        return False
    if name not in options("task"):
        return True
    if target.startswith("flowpolicy_envs.") and name != OWN:  # ours may have moved since
        return False
    return OmegaConf.select(config.load("collect", [f"task={name}"]), "task.env._target_") != target


def own_words(own: Mapping[str, Any], typed: Sequence[str], *, trusted: Sequence[str], source: str) -> list[str]:
    """Overrides that compose the recorded task. What has the name of an entry of the task follows it.

    Args:
        typed: The user's own overrides; one that names a simulator takes the place of the recorded one.
        trusted: Packages that it may name functions of.

    Raises:
        ValueError: For code of a package that is not trusted, and for what cannot be an entry of a yaml file.
    """
    env = {} if any(word.startswith("task.env._target_=") for word in typed) else own["env"]
    facts = {key: value for key, value in own.items() if key not in _OTHERS}
    require_code_of([env, facts], [*trusted, "flowpolicy_envs"], source=source)
    words = [f"++task.{_name(key, source)}={_value(value, source)}" for key, value in facts.items()]
    follows = {key: f"${{task.{key}}}" for key, value in env.items() if key in facts and facts[key] == value}
    words += [f"++task.env.{_name(key, source)}={follows.get(key) or _value(env[key], source)}" for key in env]
    return [f"task={OWN}", *words]


def store_facts(task: dict[str, Any]) -> dict[str, Any]:
    """What a store records of the task it is of, as group attributes.

    Args:
        task: Its composed node, plain.
    """
    facts = {f"task_{key}": value for key, value in task.items() if not isinstance(value, dict)}
    view = {key: value for key, value in (task.get("view") or {}).items() if re.fullmatch(r"[a-z]\w*", key)}
    env = task.get("env") or {}
    is_ours = str(env.get("_target_") or "flowpolicy_envs.").startswith("flowpolicy_envs.")  # its yaml says the rest
    parts = {"task_view": view, "task_env": {} if is_ours else env}
    return {"task": facts.pop("task_name"), **facts, **{key: part for key, part in parts.items() if part}}


def _name(key: Any, source: str) -> str:
    if not re.fullmatch(r"[A-Za-z_]\w*", str(key)):
        raise ValueError(f"{source}: task: {str(key)[:40]!r} is no name of an entry; pass task=… task.id=…")
    return str(key)


def _value(value: Any, source: str) -> str:
    """In Hydra's grammar."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{_name(key, source)}:{_value(item, source)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_value(item, source) for item in value) + "]"
    if isinstance(value, str):
        return config.quoted(value)
    return "null" if value is None else str(value).lower()
