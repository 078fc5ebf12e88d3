"""What was typed, held against what the yaml files offer: unknown keys, unknown options, values of another kind."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError

from flowpolicy.cli.choices import group_choices
from flowpolicy.cli.kinds import require_kind
from flowpolicy.ranges import require_ranges


def compose_checked(name: str, argv: Sequence[str]) -> DictConfig:
    """`hydra.compose` with errors that say what was wanted. Call it inside `initialize_config_dir`.

    Raises:
        ValueError: For a key or an option that does not exist, for a value of another kind than the yaml's, and for a
            number out of its range.
    """
    groups = group_choices(name, argv)
    try:
        offered = compose(name, overrides=groups)
    except MissingConfigException as error:
        group, _, option = (error.missing_cfg_file or "").rpartition("/")
        raise ValueError(f"there is no {group}={option}; {_near(option, error.options or [])}") from error
    except ConfigCompositionException as error:
        chosen = next((group for word in groups if (group := word.partition("=")[0]) not in _groups(name)), "")
        if not chosen:
            raise
        raise ValueError(f"there is no group {chosen} here; {_near(chosen, _groups(name))}") from error
    try:
        config = compose(name, overrides=list(argv))
    except ConfigCompositionException as error:
        if not isinstance(error.__cause__, ConfigKeyError | AttributeError):
            raise
        key = str(getattr(error.__cause__, "full_key", ""))
        parent, dot, last = key.rpartition(".")
        beside = OmegaConf.select(offered, parent) if parent else [*offered, *_groups(name)]
        raise ValueError(f"there is no key {key}; {_near(last, beside or [], parent + dot)}") from error
    for override in OverridesParser.create().parse_overrides([word for word in argv if word not in groups]):
        if not override.is_delete() and not override.is_add():
            require_kind(override.key_or_group, _raw(offered, override.key_or_group), override.value())
    content = OmegaConf.to_container(config, resolve=False)
    assert isinstance(content, dict)
    require_ranges(name, {str(key): value for key, value in content.items()})
    return config


def _near(word: str, names: Iterable[Any], prefix: str = "") -> str:
    names = sorted(str(name) for name in names if not str(name).startswith("_"))
    close = difflib.get_close_matches(word, names, n=1)
    return f"did you mean {prefix}{close[0]}?" if close else f"there are {', '.join(names) or 'none'}"


def _groups(name: str) -> list[str]:
    """The groups that the yaml `name` chooses from."""
    choices = compose(name, return_hydra_config=True).hydra.runtime.choices
    return [str(group).partition("@")[0] for group in choices if not str(group).startswith("hydra/")]


def _raw(config: DictConfig, key: str) -> Any:
    """The value at a dotted key with its interpolations as they are written; None where there is none."""
    value: Any = OmegaConf.to_container(config, resolve=False)
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
