"""From any file format to any other, one episode at a time: what a format is, where they are found, and `convert`.

A format is a module with one or both of

    def read(path: Path, *, OPTION=...) -> Demonstrations
    def write(path: Path, demonstrations: Demonstrations, *, OPTION=...) -> None

and, where files are known by it, ENDINGS = (".zarr",). Its keyword-only arguments are the options of the command line.
`write` gets a path at which nothing is; the file or folder that it leaves there is moved to its place when it is whole.
"""

import importlib
import inspect
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, final

from flowpolicy.data.build import fitted
from flowpolicy.data.episode import Episode
from flowpolicy.embodiment import Embodiment
from flowpolicy.files import beside, make_folder, move_file, remove_leftovers, replace_folder
from flowpolicy.plugins import OURS, formats, how_to_import


@final
@dataclass(frozen=True)
class Demonstrations:
    """Episodes, and what their numbers mean.

    Args:
        embodiment: Keys, shapes, units and bounds.
        episodes: In their order; may be read as they are asked for.
        attrs: Facts about the task, JSON-ready; "task" is its name.
    """

    embodiment: Embodiment
    episodes: Iterable[Episode]
    attrs: Mapping[str, Any]


def find_format(name: str) -> ModuleType:
    """The format `name`, or where there is a dot in it the module of that name.

    Args:
        name: Of the format.

    Raises:
        ValueError: Where there is none, or it has neither `read` nor `write`.
    """
    known = formats()
    if name not in known and "." not in name:
        raise ValueError(
            f"there is no format {name}; there are {', '.join(known)}, or a module as my_package.my_format"
        )
    path = known[name].module if name in known else name
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        raise ValueError(f"format={name}: {error}{how_to_import(path)}") from error
    if not hasattr(module, "read") and not hasattr(module, "write"):
        raise ValueError(f"format={name}: {path} has neither read nor write")
    return module


def format_of(path: Path) -> str:
    """The format that a path's ending tells; ours are asked first. Raises ValueError where none knows it.

    Args:
        path: Of the data.
    """
    known = formats()
    for name in sorted(known, key=lambda name: known[name].origin != OURS):
        if path.name.endswith(tuple(getattr(find_format(name), "ENDINGS", ()))):
            return name
    raise ValueError(f"{path}: its ending tells no format; pass `format=` (what is read) or `to=` (what is written)")


def options(name: str, function: str) -> dict[str, inspect.Parameter]:
    """The options of a format's `read` or `write`, {} where it has none. Raises as `find_format`.

    Args:
        name: Of the format.
        function: "read" or "write".
    """
    called = getattr(find_format(name), function, None)
    parameters = inspect.signature(called).parameters if called else {}
    return {key: one for key, one in parameters.items() if one.kind is inspect.Parameter.KEYWORD_ONLY}


def convert(
    source: Path | str,
    target: Path | str,
    *,
    read_as: str | None = None,
    write_as: str | None = None,
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> int:
    """Write the demonstrations at `source` to `target`, whole or not at all; returns how many episodes.

    Args:
        source: The data to read.
        target: The file or folder to write.
        read_as: Format of the source; None goes by its ending.
        write_as: Of the target.
        settings: Options of either; each goes to the one that has it.
        overwrite: Replace a file or a zarr folder at `target`, once the new one is whole.

    Raises:
        FileNotFoundError: Where there is no source.
        FileExistsError: Where the target exists and is not to be replaced.
        ValueError: For a format that is unknown or works one way only, for an option that none has or that is missing,
            and for an episode that does not fit the embodiment.
    """
    source, target = Path(source).absolute(), Path(target).absolute()
    if not source.exists():
        raise FileNotFoundError(f"convert: there is nothing at {source}")
    _require_free(source, target, overwrite=overwrite)
    read_as, write_as = read_as or format_of(source), write_as or format_of(target)
    reading, writing = _settings(read_as, write_as, settings or {})
    found = find_format(read_as).read(source, **reading)
    if not isinstance(found, Demonstrations):
        raise ValueError(f"format={read_as}: read gave {type(found).__name__}, wanted Demonstrations")
    make_folder(target.parent)
    remove_leftovers(target)
    work, counted = beside(target), _Counted(found)
    work.mkdir()
    try:
        find_format(write_as).write(new := work / target.name, counted.demonstrations, **writing)
        _require_written(new, counted.episodes, write_as)
        if new.is_dir():
            replace_folder(new, target)
        else:
            move_file(new, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return counted.episodes


@final
class _Counted:
    """Demonstrations whose episodes are held against the embodiment, and counted, as they are taken."""

    def __init__(self, found: Demonstrations) -> None:
        self.episodes = 0
        self.demonstrations = Demonstrations(found.embodiment, self._checked(found), dict(found.attrs))

    def _checked(self, found: Demonstrations) -> Iterator[Episode]:
        for episode in found.episodes:
            try:
                yield fitted(episode, found.embodiment)
            except ValueError as error:
                raise ValueError(f"convert: episode {self.episodes}: {error}") from error
            self.episodes += 1


def _settings(read_as: str, write_as: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Whose option is whose. Raises ValueError for one that nobody has, and for one that is missing."""
    split = []
    for name, function, word in ((read_as, "read", "format"), (write_as, "write", "to")):
        if not hasattr(find_format(name), function):
            raise ValueError(f"{word}={name} cannot {function}; choose another {word}=")
        known = options(name, function)
        missing = [key for key, one in known.items() if one.default is inspect.Parameter.empty and key not in given]
        if missing:
            raise ValueError(f"{word}={name}: the files do not say {', '.join(missing)}; pass {missing[0]}=…")
        split.append({key: value for key, value in given.items() if key in known})
    if unknown := sorted(set(given) - set(split[0]) - set(split[1])):
        every = sorted({*options(read_as, "read"), *options(write_as, "write")})
        raise ValueError(f"there is no option {unknown[0]} here; there are {', '.join(every) or 'none'}")
    return split[0], split[1]


def _require_free(source: Path, target: Path, *, overwrite: bool) -> None:
    if target.resolve() == source.resolve() or source.resolve() in target.resolve().parents:
        raise ValueError(f"convert: {target} is, or lies in, what is read; choose another place")
    if not target.exists():
        return
    if not overwrite:
        raise FileExistsError(f"{target} already exists; choose another path or pass `overwrite=True`")
    if target.is_dir() and not (target / ".zgroup").is_file():
        raise FileExistsError(f"{target} is a folder and no zarr store, so `overwrite=True` will not replace it")


def _require_written(new: Path, episodes: int, name: str) -> None:
    if not episodes:
        raise ValueError("convert: there is no episode to write")
    if not new.exists():
        raise ValueError(f"to={name}: write left nothing at the path that it was given")
