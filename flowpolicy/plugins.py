"""What extends flowpolicy from outside: installed plug-ins, and folders of yaml files that a user names.

A plug-in is an installed distribution with an entry point in the group `flowpolicy.plugins` whose value is a package:

    [project.entry-points."flowpolicy.plugins"]
    kitchen = "flowpolicy_kitchen"

In that package the folder configs/ holds yaml files in the groups of ours, formats/ modules that read and write data.
Looking for them runs no code of the package. To install a plug-in is to trust it: a checkpoint may name the classes
that a declared package defines, as if trusted=[flowpolicy_kitchen] were passed.
"""

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import NamedTuple, final

from flowpolicy.paths import config_dir

GROUP = "flowpolicy.plugins"
FOLDERS = "FLOWPOLICY_CONFIGS"
"""Environment variable: folders of yaml files, separated as those of PATH are; `--config-dir` adds to it."""
OURS = "flowpolicy"


@final
@dataclass(frozen=True)
class Plugin:
    """An installed package that extends flowpolicy.

    Args:
        package: Its name, as it is imported.
        distribution: What brings it, with the version, for people.
        folder: Where its files lie.
    """

    package: str
    distribution: str
    folder: Path


@final
@dataclass(frozen=True)
class Configs:
    """A folder with yaml files in the groups of ours, as policy/head/NAME.yaml.

    Args:
        folder: Absolute.
        origin: Whose it is, for people: "flowpolicy", the folder as it was named, or a plug-in's distribution.
    """

    folder: Path
    origin: str


@cache
def installed() -> tuple[Plugin, ...]:
    """The plug-ins of this interpreter, by name; looked for once.

    Raises:
        ValueError: For an entry point that names no package, or one of flowpolicy's own.
    """
    points = sorted(entry_points(group=GROUP), key=lambda point: (point.value, point.name))
    return tuple({point.value: _plugin(point) for point in points}.values())


def _plugin(point: EntryPoint) -> Plugin:
    who = f"{point.dist.name} {point.dist.version}" if point.dist else point.name
    if not point.value.isidentifier() or point.value in (OURS, "flowpolicy_envs"):
        raise ValueError(
            f"the plug-in {who}: its entry point {point.name} must name a package of its own, got {point.value!r}; "
            "correct it, or uninstall the plug-in"
        )
    spec = importlib.util.find_spec(point.value)
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        raise ValueError(
            f"the plug-in {who}: there is no package {point.value}, which its entry point {point.name} names; install "
            "it again, or uninstall it"
        )
    return Plugin(point.value, who, Path(places[0]).absolute())


class Format(NamedTuple):
    """A format that is there.

    Args:
        name: As in format=NAME.
        module: Where it is, as it is imported.
        origin: Whose it is, for people.
    """

    name: str
    module: str
    origin: str


def formats() -> dict[str, Format]:
    """Every format by its name: ours, and the modules in formats/ of installed plug-ins. Nothing is imported.

    Raises:
        ValueError: Where two have one name.
    """
    places = [(Path(__file__).parent / "data" / "convert", "flowpolicy.data.convert", OURS)]
    places += [(one.folder / "formats", f"{one.package}.formats", one.distribution) for one in installed()]
    found: dict[str, Format] = {}
    for folder, package, origin in places:
        for file in sorted(folder.glob("*.py")):
            if file.stem in ("base", "__init__"):
                continue
            if (first := found.get(file.stem)) is not None:
                raise ValueError(f"{file} has the name of a format of {first.origin}; rename it")
            found[file.stem] = Format(file.stem, f"{package}.{file.stem}", origin)
    return found


def trusted_packages() -> tuple[str, ...]:
    """Packages that a checkpoint may name classes of, since somebody installed them as plug-ins."""
    return tuple(plugin.package for plugin in installed())


def how_to_import(module: str) -> str:
    """What to do where a module of the user's is not found; "" where it is there.

    Args:
        module: That could not be imported.
    """
    package = module.partition(".")[0]
    if package.isidentifier() and importlib.util.find_spec(package) is None:
        return (
            f"; there is no package {package} here: install it, or name the folder that it lies in, as in "
            "PYTHONPATH=. flowpolicy … (the working folder is not looked into by itself)"
        )
    return ""


def require_folder(folder: str | Path) -> Path:
    """The absolute path of a folder of yaml files that somebody named.

    Args:
        folder: Should be one with yaml files.

    Raises:
        ValueError: Where there is no such folder, or none of our groups in it.
    """
    path = Path(folder).expanduser().absolute()
    if not path.is_dir():
        what = "is a file" if path.exists() else "is not there"
        raise ValueError(f"--config-dir: wanted a folder of yaml files, got {folder}, which {what}")
    if not any(any((path / group).glob("*.yaml")) for group in groups()):
        raise ValueError(
            f"--config-dir: {folder} has no yaml file in a group that flowpolicy knows, as task/NAME.yaml; "
            f"the groups are {', '.join(groups())}"
        )
    return path


def config_sources() -> tuple[Configs, ...]:
    """Where yaml files come from: ours, then the folders of `FLOWPOLICY_CONFIGS`, then those of installed plug-ins.

    Raises:
        ValueError: For a folder that is none, and for a file that two of them have: none takes the place of another.
    """
    own = Configs(config_dir(), OURS)
    named = dict.fromkeys(require_folder(name) for name in os.environ.get(FOLDERS, "").split(os.pathsep) if name)
    added = [Configs(folder, str(folder)) for folder in named]
    brought = [Configs(one.folder / "configs", one.distribution) for one in installed()]
    added += [one for one in brought if one.folder.is_dir()]
    sources = tuple({one.folder.resolve(): one for one in (own, *added)}.values())
    owners: dict[str, Configs] = {}
    for source in sources if len(sources) > 1 else ():
        for name in _names(source.folder):
            if (first := owners.setdefault(name, source)) is not source:
                raise ValueError(
                    f"{source.folder / name} has the name of a file of {first.origin}; rename it: no yaml file takes "
                    "the place of another"
                )
    return sources


def options(group: str) -> dict[str, Configs]:
    """The names that `group=NAME` takes, as of "policy/head", each with where it is. Raises as `config_sources`.

    Args:
        group: Folder below configs/.
    """
    return {file.stem: source for source in config_sources() for file in sorted((source.folder / group).glob("*.yaml"))}


@cache
def _groups_of(folder: Path) -> tuple[str, ...]:
    return tuple(sorted({file.parent.relative_to(folder).as_posix() for file in folder.glob("*/**/*.yaml")}))


def groups() -> tuple[str, ...]:
    """The groups of yaml files, as "policy/head" and "task"."""
    return _groups_of(config_dir())


def _names(folder: Path) -> Iterator[str]:
    """The yaml files of a folder that count, by their path in it."""
    for group in ("", *groups()):
        yield from (file.relative_to(folder).as_posix() for file in sorted((folder / group).glob("*.yaml")))
