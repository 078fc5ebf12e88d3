"""Of which kind a typed value must be: that of the yaml's own, or what a table says where the yaml has null."""

import math
from typing import Any

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list"}
# Keys that are null or ??? in the yaml: one example of what they take; in a list, a list of such.
_EXAMPLES: dict[str, tuple[Any, ...]] = {
    "num_steps": (1, [1]),
    "hz": (1.0,),
    "cpus": ([0],),
    "names": ([""],),
    "tasks": ("", [""]),
    "samplers": ([""],),
    "only": ("", [""]),
    "require": ("",),
    "eval.sampler": ("",),
    "rl.total_steps": (1,),
    "checkpoints": ([""],),
    "trusted": ([""],),
    "policy.obs_keys": ([""],),
    **{key: ("",) for key in ("out", "checkpoint", "demonstrations", "dataset.path", "task.id")},
}
# What a key takes beside the kind of the yaml's value.
_ALSO: dict[str, tuple[Any, ...]] = {"dataset.in_memory": (True,)}


def require_kind(key: str, old: Any, new: Any) -> None:
    """Raise ValueError unless `new`, typed for the dotted `key`, is of the kind of `old`, the yaml's value."""
    if old == "???" and new is None:
        raise ValueError(f"{key}=... is required, got null")
    if isinstance(new, float) and not math.isfinite(new):
        raise ValueError(f"{key} must be finite, got {new}")
    if str(new).startswith("${") or (old is None and new is None):
        return
    open_ = old is None or str(old).startswith(("${", "???"))
    examples = _EXAMPLES.get(key, ()) if open_ or old == [] else (old,)
    examples += _ALSO.get(key, ()) if examples else ()
    needed = isinstance(old, str | list) and not open_ and not key.startswith(("policy.", "task.", "exploration."))
    if examples and not any(_fits(example, new) and not (needed and new is None) for example in examples):
        wanted = " or ".join(map(_describe, examples)) or f"a group ({key.replace('.', '/')}=NAME or {key}.KEY=VALUE)"
        default = "" if open_ or isinstance(old, dict) else f" (default {old})"
        fix = f"; for example {key}=[{new}]" if any(_fits(example, [new]) for example in examples) else ""
        raise ValueError(f"{key} must be {wanted}{default}, got {new!r}{fix}")


def _fits(old: Any, new: Any) -> bool:
    """Whether `new` is of the kind of `old`; text, lists and groups may become null."""
    if isinstance(old, list) and isinstance(new, list) and old:
        return all(_fits(old[0], item) and item is not None for item in new)
    if isinstance(old, dict | list | str):
        return new is None or isinstance(new, type(old))
    return type(new) is type(old) or (isinstance(old, float) and type(new) is int)


def _describe(example: Any) -> str:
    if isinstance(example, list) and example:
        return f"a list, of {_describe(example[0])} each"
    return _KINDS.get(type(example), "")
