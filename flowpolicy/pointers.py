"""checkpoints/best and checkpoints/last: text files that name a numbered folder, and what stands in for a damaged one.

Older runs have symbolic links there, runs copied with `cp -L` whole folders: both are read, and replaced by the next
checkpoint. Without any of them the folders' own numbers and scores say which one is meant.
"""

import json
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from flowpolicy.files import remove_folder, write_atomic

POLICY_FILES = ("policy/config.json", "policy/embodiment.json", "policy/model.safetensors")
STEP_FILE = "state/step.json"


def choose(folder: Path, name: Literal["best", "last"], needed: Sequence[str] = POLICY_FILES) -> Path | None:
    """The checkpoint in `folder` that `name` means; None where there is none at all.

    Args:
        folder: checkpoints/ of a run.
        name: "best" or "last".
        needed: Files that must be whole, relative to a checkpoint. Where they are not, the next best (or next older)
            one with whole files is taken and a warning says so; where none has them, the one that was meant is
            returned, for the reader to say what is wrong with it.
    """
    found = list(dict.fromkeys(_candidates(folder, name)))
    for path in found:
        if damage(path, needed) is None:
            if path != found[0]:
                warnings.warn(
                    f"{folder / name}: checkpoint {found[0].name} is damaged ({damage(found[0], needed)}); "
                    f"{path.name} is taken in its place",
                    stacklevel=3,
                )
            return path.resolve()
    return found[0].resolve() if found else None


def _candidates(folder: Path, name: str) -> Iterator[Path]:
    """The checkpoints of `folder`, the one that `name` means first; some may be missing or come twice."""
    if not folder.is_dir():
        return
    numbered = sorted((path for path in folder.iterdir() if path.name.isdecimal()), key=lambda path: -int(path.name))
    if name == "best":
        yield from _pointed(folder / "best")
        scored = [path for path in numbered if _score(path) is not None]
        yield from sorted(scored, key=lambda path: (_score(path), int(path.name)), reverse=True)
    yield from _pointed(folder / "last")
    yield from numbered


def _score(checkpoint: Path) -> float | None:
    return (_read_object(checkpoint / STEP_FILE) or {}).get("score")


def _pointed(pointer: Path) -> Iterator[Path]:
    """What a pointer names: a text file, an older run's link, or a folder that took a link's place in a copy."""
    if pointer.is_symlink():
        yield pointer.parent / Path(os.readlink(pointer)).name
    elif pointer.is_dir():
        yield _number(pointer) if _number(pointer).is_dir() else pointer
    elif pointer.is_file() and (target := pointer.read_bytes().strip()).isdigit():
        yield pointer.parent / target.decode()


def _number(copied: Path) -> Path:
    """The numbered folder of which `copied` is a copy; `copied` itself where it does not know."""
    step = (_read_object(copied / STEP_FILE) or {}).get("step")
    return copied.with_name(f"{step:06d}") if isinstance(step, int) else copied


def write_pointer(pointer: Path, target: str) -> None:
    """Make `pointer` name the folder `target` beside it; a folder in its place keeps its number, or goes.

    Args:
        pointer: Its path.
        target: The folder that it is to name.
    """
    if pointer.is_dir() and not pointer.is_symlink():
        number = _number(pointer)
        if number.exists():
            remove_folder(pointer)
        else:
            os.replace(pointer, number)
    write_atomic(pointer, target + "\n")


def remove_pointer(pointer: Path) -> None:
    """Remove `pointer`, whatever it is.

    Args:
        pointer: Its path.
    """
    if pointer.is_dir() and not pointer.is_symlink():
        remove_folder(pointer)
    else:
        pointer.unlink(missing_ok=True)


def damage(checkpoint: Path, needed: Sequence[str]) -> str | None:
    """What is wrong with the files of a checkpoint, None for nothing: one missing, empty, cut short, no JSON.

    Args:
        checkpoint: The saved policy.
        needed: Files that must be there, below it.
    """
    for name in needed:
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if not file.stat().st_size:
            return f"{name} is empty"
        if name.endswith(".safetensors"):
            if _tensor_bytes(file) != file.stat().st_size:
                return f"{name} is cut short"
        elif _read_object(file) is None:
            return f"{name} is no JSON object"
    return None


def _read_object(file: Path) -> dict | None:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _tensor_bytes(file: Path) -> int:
    """How long the header of a safetensors file says that the file is; -1 where it says nothing. Reads no tensor."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > size - 8:
            return -1
        try:
            header = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            return 8 + length + max(ends, default=0)
        except (ValueError, TypeError, AttributeError, LookupError):
            return -1
