"""What a simulator and an expert must be, and what makes them: held against it once, so that one of the user's own that
does not fit is told what is missing before anything runs on it."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from flowpolicy.embodiment import Embodiment, KeySpec

_ENV = ("reset", "step", "render", "close", "get_wrapper_attr")
_ENV_FACTS = ("observation_space", "action_space", "metadata", "render_mode", "spec")
_RESULT = "(obs, reward, terminated, truncated, info)"


def maker_name(make: Callable[..., Any]) -> str:
    """The function that is called, as "my_package.make_env".

    Args:
        make: What makes an environment or an expert.
    """
    called = make.func if isinstance(make, partial) else make
    return f"{called.__module__}.{getattr(called, '__qualname__', type(called).__name__)}"


def require_maker(make: Any, key: str, **given: Any) -> None:
    """Raise ValueError unless `make` can be called with the arguments that it has, and those.

    Args:
        make: What makes an environment or an expert.
        key: What names it on the command line, as "task.env".
        given: Keyword arguments that are added when it is called.
    """
    if not callable(make):
        raise ValueError(f"{key} makes {type(make).__name__} at once; write _partial_: true beside its _target_")
    called, has = (make.func, make.keywords) if isinstance(make, partial) else (make, {})
    try:
        signature = inspect.signature(called)
    except ValueError:  # of a built-in
        return
    try:
        signature.bind(*(make.args if isinstance(make, partial) else ()), **{**has, **given})
    except TypeError as error:
        added = f", and {', '.join(f'{name}={value!r}' for name, value in given.items())}" if given else ""
        raise ValueError(
            f"{key}: {maker_name(make)}{signature} does not fit: {error}; it is called with the entries of {key}{added}"
        ) from error


def require_env(env: Any, make: Callable[..., Any]) -> Embodiment:
    """The embodiment of an environment that has just been made.

    Args:
        env: What `make` returned.
        make: What made it, for the message.

    Raises:
        ValueError: Naming what is missing or disagrees: it must be a gymnasium.Env with an attribute `embodiment` (an
            `Embodiment`), Dict observations with its keys and shapes, and a Box of its action's.
    """
    name = maker_name(make)
    if missing := [part for part in (*_ENV, *_ENV_FACTS) if not hasattr(env, part)]:
        raise ValueError(f"{name} made {type(env).__name__} without {', '.join(missing)}: wanted a gymnasium.Env")
    try:
        embodiment = env.get_wrapper_attr("embodiment")
    except AttributeError as error:
        raise ValueError(
            f"{name} made {type(env).__name__} without embodiment: wanted a flowpolicy.embodiment.Embodiment that says "
            "what it sees and accepts"
        ) from error
    if not isinstance(embodiment, Embodiment):
        raise ValueError(f"{name}: embodiment: wanted a flowpolicy.embodiment.Embodiment, got {embodiment!r:.60}")
    spaces = getattr(env.observation_space, "spaces", None)
    if not isinstance(spaces, Mapping) or set(embodiment.obs) - set(spaces):
        raise ValueError(
            f"{name}: observation_space: wanted a gymnasium.spaces.Dict with {', '.join(embodiment.obs)}, got "
            f"{env.observation_space}"
        )
    for key, spec in embodiment.obs.items():
        _require_shape(f"{name}: observation_space[{key!r}]", spaces[key], spec)
    _require_shape(f"{name}: action_space", env.action_space, embodiment.action)
    return embodiment


def require_first(result: Any, embodiment: Embodiment, make: Callable[..., Any]) -> None:
    """Raise ValueError unless the first `reset` gave (obs, info), with the observations that the embodiment names.

    Args:
        result: What `reset` returned.
        embodiment: The robot's contract: observation keys, shapes, units, action bounds.
        make: What made it, for the message.
    """
    name = maker_name(make)
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], Mapping):
        raise ValueError(f"{name}: reset: wanted (obs, info), got {_of(result)}")
    _require_obs(f"{name}: reset", result[0], embodiment)


def require_second(result: Any, embodiment: Embodiment, make: Callable[..., Any]) -> None:
    """Raise ValueError unless the first `step` gave gymnasium's five results and info says whether it is a success.

    Args:
        result: What `step` returned.
        embodiment: The robot's contract: observation keys, shapes, units, action bounds.
        make: What made it, for the message.
    """
    name = maker_name(make)
    if not isinstance(result, tuple) or len(result) != 5 or not isinstance(result[4], Mapping):
        raise ValueError(f"{name}: step: wanted {_RESULT}, got {_of(result)}")
    if "success" not in result[4]:
        raise ValueError(f"{name}: step: wanted info['success'], true or false, got info with {sorted(result[4])}")
    _require_obs(f"{name}: step", result[0], embodiment)


def require_expert(expert: Any, make: Callable[..., Any]) -> Embodiment:
    """The embodiment of an expert that has just been made. Raises ValueError naming what it lacks.

    Args:
        expert: What was made.
        make: What made it, for the message.
    """
    name = maker_name(make)
    if missing := [part for part in ("embodiment", "episode", "close") if not hasattr(expert, part)]:
        raise ValueError(
            f"{name} made {type(expert).__name__} without {', '.join(missing)}: wanted an expert with embodiment, "
            "episode(seed) and close()"
        )
    if not isinstance(expert.embodiment, Embodiment):
        raise ValueError(
            f"{name}: embodiment: wanted a flowpolicy.embodiment.Embodiment, got {expert.embodiment!r:.60}"
        )
    return expert.embodiment


def _require_shape(where: str, space: Any, spec: KeySpec) -> None:
    shape, pixels = getattr(space, "shape", None), str(getattr(space, "dtype", "")) == "uint8"
    if shape != spec.shape or pixels != (spec.dtype == "uint8"):
        raise ValueError(f"{where}: wanted a Box of {spec.dtype} {spec.shape} as in its embodiment, got {space}")


def _require_obs(where: str, obs: Any, embodiment: Embodiment) -> None:
    if not isinstance(obs, Mapping) or set(embodiment.obs) - set(obs):
        raise ValueError(f"{where}: wanted observations {', '.join(embodiment.obs)}, got {_of(obs)}")
    for key, spec in embodiment.obs.items():
        if getattr(obs[key], "shape", None) != spec.shape:
            raise ValueError(f"{where}: observation {key!r}: wanted an array {spec.shape}, got {_of(obs[key])}")


def _of(value: Any) -> str:
    """What a result is, in a few words."""
    if isinstance(value, tuple):
        return f"{len(value)} results"
    if isinstance(value, Mapping):
        return f"a dict with {', '.join(map(str, value)) or 'nothing'}"
    return f"{type(value).__name__} {tuple(value.shape)}" if hasattr(value, "shape") else type(value).__name__
