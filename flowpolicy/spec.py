"""PolicySpec: what a policy was built from, as data, so that it can be built again from a file or by somebody else."""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any, Self, final

from flowpolicy.plugins import how_to_import, trusted_packages

ROOT = "flowpolicy.policy.build_policy"
_PARTS = ("flowpolicy.encoders", "flowpolicy.nets", "flowpolicy.heads", "flowpolicy.flow.sources")

_MOVED = {
    f"flowpolicy.heads.{name}.": f"flowpolicy.heads.terms.{name}."
    for name in ("dispersive", "dispersive_legacy", "direction", "guidance")
}  # where older checkpoints look for a class -> where it is

Node = dict[str, Any]
"""`_target_`: the class, as "module.Class"; `_partial_`: true where shapes are still to come; and its arguments."""


class Described:
    """A part that is handed over ready made, and can still be saved: it keeps the arguments that it was made with.

    For classes of your own that stand in an argument of an encoder, net or head; they take keyword arguments only.
    """

    _arguments: dict[str, Any]

    def __new__(cls, **arguments: Any) -> Self:
        """Keep them; `__init__` does the rest."""
        made = super().__new__(cls)
        object.__setattr__(made, "_arguments", arguments)  # of nn.Module, which is not ready yet, too
        return made


@final
@dataclass(frozen=True)
class PolicySpec:
    """The arguments of `build_policy` but for the embodiment.

    Whoever makes one says which classes it names; only `from_dict` checks them.

    Args:
        encoder: A class, a `functools.partial` of one, or the same as a `Node`.
        net: The same.
        head: The same.
        numbers: The horizons, the action representation, the observation keys and the source, by their names in
            `build_policy`; what is missing has the default there.
    """

    encoder: Any
    net: Any
    head: Any
    numbers: Mapping[str, Any]

    @staticmethod
    def from_dict(config: Any, *, trusted_modules: Sequence[str] = ()) -> "PolicySpec":
        """The spec that `to_dict` wrote, which is also the composed `policy` node of Hydra's configs.

        Args:
            config: Resolved: no interpolation.
            trusted_modules: Packages outside flowpolicy whose classes it may name, beside those of installed plug-ins.

        Raises:
            ValueError: For a `_target_` that is neither `build_policy` nor a class of ours below encoders, nets,
                heads and sources, nor of those packages: a config file must not be able to run arbitrary code.
        """
        config = with_names_of_today(config)
        for target in targets(config):
            _require_trusted(target, (*_PARTS, *trusted_modules))
        if not isinstance(config, dict) or config.get("_target_") != ROOT:
            raise ValueError(f"the policy config must be an object with _target_: {ROOT}, got {str(config)[:60]}")
        arguments = {key: value for key, value in config.items() if key not in ("_target_", "_partial_")}
        missing = [name for name in ("encoder", "net", "head") if not isinstance(arguments.get(name), dict)]
        if missing:
            raise ValueError(
                f"the policy config does not fit its parts: {', '.join(missing)} must be objects with _target_"
            )
        parts = [arguments.pop(name) for name in ("encoder", "net", "head")]
        return PolicySpec(*parts, numbers=arguments)

    def to_dict(self) -> Node:
        """The spec as JSON-ready data.

        Raises:
            ValueError: Naming a part that is neither data nor a class, a `functools.partial` of one, or `Described`.
        """
        parts = {name: _data(getattr(self, name), name) for name in ("encoder", "net", "head")}
        numbers = {name: _data(value, name) for name, value in self.numbers.items()}
        return {"_target_": ROOT, **parts, **numbers}

    def constructors(self) -> dict[str, Any]:
        """The keyword arguments of `build_policy`: classes in the place of their names.

        Raises:
            TypeError, ValueError: What the parts' constructors raise for arguments that they do not take.
        """
        parts: dict[str, Callable[..., Any]] = {
            name: _made(part) if isinstance(part := getattr(self, name), dict) else part
            for name in ("encoder", "net", "head")
        }
        return {**parts, **{name: _made(value) for name, value in self.numbers.items()}}


def create(node: Mapping[str, Any], package: str, *, trusted_modules: Sequence[str] = ()) -> Any:
    """The object that a description names, `_target_` and its arguments, and the objects inside it.

    Args:
        node: Resolved: no interpolation.
        package: Where its classes lie, such as "flowpolicy.samplers".
        trusted_modules: Packages outside flowpolicy whose classes it may name.

    Raises:
        ValueError: For a class of elsewhere, and for arguments that it does not take.
    """
    config = with_names_of_today(dict(node))
    for target in targets(config):
        _require_trusted(target, (package, *trusted_modules))
    try:
        return _made(config)
    except TypeError as error:
        raise ValueError(f"{config.get('_target_')} does not take what its description says: {error}") from error


def with_names_of_today(config: Any) -> Any:
    """The same config, also where an older version wrote it and its classes have moved since.

    Args:
        config: A policy config, resolved.
    """
    if isinstance(config, dict):
        return {
            key: _moved(value) if key == "_target_" else with_names_of_today(value) for key, value in config.items()
        }
    return [with_names_of_today(item) for item in config] if isinstance(config, list | tuple) else config


def _moved(target: Any) -> Any:
    old = next((name for name in _MOVED if str(target).startswith(name)), None)
    return target if old is None else _MOVED[old] + target.removeprefix(old)


def targets(config: Any, *, source: str = "the policy config") -> Iterator[str]:
    """Every `_target_` of a resolved config. Raises ValueError for an interpolation: it could grow another one.

    Args:
        config: Resolved.
        source: What it is of, for the error.
    """
    if isinstance(config, str) and "${" in config:
        raise ValueError(f"{source} must be resolved, got {config!r}; write the value itself")
    if isinstance(config, dict):
        if "_target_" in config:
            yield str(config["_target_"])
        for value in config.values():
            yield from targets(value, source=source)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from targets(value, source=source)


def packages(config: Any) -> list[str]:
    """The packages outside flowpolicy whose classes a resolved config names.

    Args:
        config: As for `targets`.
    """
    return sorted({target.partition(".")[0] for target in targets(config)} - {"flowpolicy"})


def _made(value: Any) -> Any:
    """What a node stands for; other values as they are."""
    if isinstance(value, dict):
        arguments = {key: _made(item) for key, item in value.items() if key not in ("_target_", "_partial_")}
        if "_target_" not in value:
            return arguments
        cls: Any = _find(value["_target_"])
        return partial(cls, **arguments) if value.get("_partial_") else cls(**arguments)
    return [_made(item) for item in value] if isinstance(value, list | tuple) else value


def _data(value: Any, name: str) -> Any:
    """The node of a constructor; data as they are.   name: of the argument, for the error."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _data(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_data(item, f"{name}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, type):
        return {"_target_": _path(value, name), "_partial_": True}
    if isinstance(value, partial) and isinstance(value.func, type) and not value.args:
        arguments = {key: _data(item, f"{name}.{key}") for key, item in value.keywords.items()}
        return {"_target_": _path(value.func, name), "_partial_": True, **arguments}
    if isinstance(value, Described):
        arguments = {key: _data(item, f"{name}.{key}") for key, item in value._arguments.items()}
        return {"_target_": _path(type(value), name), **arguments}
    raise ValueError(
        f"{name} is {value!r:.80}, which cannot be written down: wanted a class, functools.partial of one with keyword "
        "arguments, an object of a flowpolicy.spec.Described class, or JSON-ready data"
    )


def _path(cls: type, name: str) -> str:
    path = f"{cls.__module__}.{cls.__qualname__}"
    if "." in cls.__qualname__ or cls.__module__ == "__main__":
        raise ValueError(
            f"{name} is of {path}, which nobody could import again: define it at the top of a module's file"
        )
    return path


def _require_trusted(target: str, packages: Sequence[str]) -> None:
    """Raise ValueError unless `target` is `build_policy` or a class that one of `packages`, or a plug-in, defines."""
    if target == ROOT:
        return
    package = package_of(target, packages)
    found = _find(target) if package else None  # imports modules of the package, nothing else
    if package and isinstance(found, type) and f"{found.__module__}.".startswith(f"{package}."):
        return
    word = target.partition(".")[0]
    fix = (
        "take another checkpoint"
        if word == "flowpolicy"
        else f"if you trust that package pass `trusted_modules={[word]}`"
    )
    raise ValueError(f"the policy config names {target}: wanted {ROOT} or a class below {', '.join(packages)}; {fix}")


def package_of(target: str, packages: Sequence[str]) -> str | None:
    """Which of `packages`, or of the installed plug-ins, the dotted name lies in; None for no such.

    Args:
        target: Dotted name of a class or function.
        packages: Names of packages.
    """
    for every in (lambda: packages, trusted_packages):  # plug-ins are looked for where they are needed
        if (package := next((name for name in every() if target.startswith(f"{name}.")), None)) is not None:
            return package
    return None


def _find(target: str, source: str = "the policy config") -> object:
    """What a module defines under this name. Raises ValueError where there is no such module or name."""
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{source} names {target}, which is not there: {error}{how_to_import(target)}") from error


def require_code_of(config: Any, packages: Sequence[str], *, source: str) -> None:
    """Raise ValueError unless every `_target_` of a config is a function or class that these packages define.

    Args:
        config: Resolved, of a simulator, from a file that somebody else may have written.
        packages: Those that are trusted, beside installed plug-ins.
        source: What names them, for the error.
    """
    for target in list(targets(config, source=source)):  # all are looked at before one is imported
        package = package_of(target, packages)
        if package is None:
            word = target.partition(".")[0]
            raise ValueError(
                f"{source} names the simulator {target}; if you trust that package pass `trusted_modules={[word]}`, or "
                "name another with `task=...` `id=...`"
            )
        found = _find(target, source)
        if not isinstance(found, type | FunctionType) or not f"{found.__module__}.".startswith(f"{package}."):
            raise ValueError(f"{source} names {target}: wanted a function or class that {package} itself defines")
