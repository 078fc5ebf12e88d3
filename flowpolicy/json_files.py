"""JSON files: written whole or line by line, and read back; a damaged one is named with what is wrong in it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowpolicy.files import append_lines, make_folder, write_atomic

Kind = Any
"""What a value must be: a type; a tuple of types, any of them; [kind], a list of such; {key: kind}, an object with
these keys, where "key?" may be missing and "*" stands for every other key. A whole number will do for float."""

_NAMES = {
    dict: "an object",
    list: "a list",
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def write_json(path: Path, data: Mapping[str, Any]) -> Path:
    """Write `data` indented and whole or not at all; missing folders are made. Returns `path`.

    Args:
        path: The file.
        data: JSON-ready.
    """
    make_folder(path.parent)
    write_atomic(path, json.dumps(data, indent=2) + "\n")
    return path


def append_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add a line of JSON for each in one write, and flush; missing folders are made. No rows: nothing is written.

    Args:
        path: A file of JSON lines.
        rows: JSON-ready.
    """
    append_lines(path, map(json.dumps, rows))


def read_object(file: Path, wanted: Kind = dict) -> dict[str, Any]:
    """The object in a JSON file. wanted: its keys, see `Kind`.

    Args:
        file: The JSON file.
        wanted: Its keys, see `Kind`.

    Raises:
        FileNotFoundError: Without the file.
        ValueError: Naming it for any other content.
    """
    return _parsed(file.read_bytes(), str(file), wanted)


def read_objects(file: Path, wanted: Kind = dict, *, growing: bool = False) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, [] without the file. wanted: the keys of each line, see `Kind`.

    Args:
        file: The file of JSON lines.
        wanted: Keys of each line, see `Kind`.
        growing: Leave out a last line without its end, which a run is still writing.

    Raises:
        ValueError: Naming the file and the line.
    """
    data = file.read_bytes() if file.exists() else b""
    lines = (data[: data.rfind(b"\n") + 1] if growing else data).splitlines()
    return [_parsed(line, f"{file}, line {number}", wanted) for number, line in enumerate(lines, start=1)]


def require(value: Any, wanted: Kind, where: str) -> None:
    """Raise ValueError unless `value` is of the kind `wanted`.

    Args:
        value: What was read.
        wanted: See `Kind`.
        where: The file, and the place in it.
    """
    if isinstance(wanted, dict):
        _require_type(value, (dict,), where)
        for key, kind in wanted.items():
            name = key.removesuffix("?")
            if key == "*":
                for other in value.keys() - {known.removesuffix("?") for known in wanted}:
                    require(value[other], kind, f"{where}: {other}")
            elif name in value:
                require(value[name], kind, f"{where}: {name}")
            elif name == key:
                raise ValueError(f"{where} is damaged: {key} is missing")
    elif isinstance(wanted, list):
        _require_type(value, (list,), where)
        for i, item in enumerate(value):
            require(item, wanted[0], f"{where}[{i}]")
    else:
        _require_type(value, wanted if isinstance(wanted, tuple) else (wanted,), where)


def _require_type(value: Any, kinds: tuple[type, ...], where: str) -> None:
    allowed = (*kinds, int) if float in kinds else kinds
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in kinds):
        named = " or ".join(_NAMES[kind] for kind in kinds)
        raise ValueError(f"{where} is damaged: wanted {named}, got {str(value)[:40]!r}")


def _parsed(data: bytes, where: str, wanted: Kind) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is damaged: no JSON ({error})") from error
    _require_type(content, (dict,), where)
    require(content, wanted, where)
    return content
