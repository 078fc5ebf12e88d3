"""Which keys and options the yaml files offer, read from them without composing a config."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from flowpolicy.paths import config_dir

# settings of another name than the last part of their key
_KEYS = {
    "trusted_modules": "trusted",
    "obs": "task.obs",
    **{f"check.{name}": f"eval.{name}" for name in ("episodes", "start_seed", "num_steps", "envs")},
    "eval_seed": "eval.start_seed",
    "receipt_seed": "receipt.start_seed",
    "obs_mode": "normalization.obs",
    "action_mode": "normalization.action",
}


def key_of(name: str, verb: str) -> str:
    """The key of `verb` for a setting, or that of training, which made what other verbs take; "" where none or several
    could be meant."""
    name = _KEYS.get(name, name)
    if verb == "data" and name in ("format", "to"):  # of `data convert`, which has no yaml
        return name
    for known in (keys(config_dir(), "collect" if verb == "data" else verb), keys(config_dir(), "train")):
        parts = {key: key.split(".") for key in known}
        fits = [key for key, words in parts.items() if any(name in _ends(words[i:]) for i in range(len(words)))]
        far = {key: (key.startswith(("task.", "policy.", "exploration.")), key.count(".")) for key in fits}
        nearest = [key for key in fits if far[key] == min(far.values())]
        if fits:
            return nearest[0] if len(nearest) == 1 else ""
    group = next(config_dir().glob(f"**/{name}/"), None)
    return str(group.relative_to(config_dir())) if group else ""


def _ends(parts: list[str]) -> tuple[str, str]:
    return ".".join(parts), "_".join(parts)


@cache
def keys(folder: Path, verb: str) -> tuple[str, ...]:
    """Every dotted key of a verb's yaml and of the groups that it chooses from."""
    found: dict[str, None] = {}

    def read(file: Path, start: str) -> None:
        content = yaml.safe_load(file.read_text()) or {}
        for entry in content.pop("defaults", []):
            group, option = next(iter(entry.items())) if isinstance(entry, dict) else (str(entry), None)
            inside = folder / start.replace(".", "/") / group
            for option_file in sorted(inside.rglob("*.yaml")) if inside.is_dir() and group != "experiment" else ():
                parent = option_file.parent.relative_to(folder)
                read(option_file, ".".join(parent.parts) + ".")
            if option is None and not start and (folder / f"{group}.yaml").is_file():
                read(folder / f"{group}.yaml", start)
        found.update(dict.fromkeys(_leaves(content, start)))

    if (folder / f"{verb}.yaml").is_file():
        read(folder / f"{verb}.yaml", "")
    return tuple(key for key in found if not key.rpartition(".")[2].startswith("_"))


def _leaves(content: Any, start: str) -> Iterator[str]:
    for name, value in content.items():
        yield from _leaves(value, f"{start}{name}.") if isinstance(value, dict) and value else (f"{start}{name}",)


@cache
def options(folder: Path) -> dict[str, str]:
    """Class -> the words that choose it, as MLP -> policy/net=mlp; the plainest where there are several."""
    chosen: dict[str, str] = {}
    for file in sorted(folder.glob("[pe]*/**/*.yaml"), key=lambda file: (len(file.stem), file.stem)):
        target = str((yaml.safe_load(file.read_text()) or {}).get("_target_", ""))
        chosen.setdefault(target.rpartition(".")[2], f"{file.parent.relative_to(folder)}={file.stem}")
    return chosen
