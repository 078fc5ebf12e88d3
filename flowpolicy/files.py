"""Write beside, then rename: a file or folder is there whole or not at all.

What is not finished yet, or not needed any more, has the hidden name .NAME.PID.part; the next writer of NAME removes
what a killed process left under such a name.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def beside(path: Path) -> Path:
    """The hidden sibling under which this process prepares `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def remove_leftovers(path: Path, name: str | None = None) -> None:
    """Remove what a killed process left beside `path` under its hidden names; put back what it had only set aside.

    name: regular expression of the names to look after; `path`'s own by default.
    """
    pattern = re.compile(rf"\.({re.escape(path.name) if name is None else name})\.(\d{{1,9}})\.(part|old)")
    for sibling in list(path.parent.iterdir()) if path.parent.is_dir() else []:
        match = pattern.fullmatch(sibling.name)
        if match is None or _runs_elsewhere(int(match[2])):
            continue
        if match[3] == "old" and not path.with_name(match[1]).exists():
            os.replace(sibling, path.with_name(match[1]))
        elif sibling.is_dir() and not sibling.is_symlink():
            shutil.rmtree(sibling, ignore_errors=True)
        else:
            sibling.unlink(missing_ok=True)


def _runs_elsewhere(pid: int) -> bool:
    """Whether another process has this number; ours may be that of a killed one, which is the rule in containers."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


@contextmanager
def atomic_directory(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling folder that becomes `path` when the block ends, and is removed when it raises.

    replace: whether an existing `path` gives way; otherwise FileExistsError before anything is written.
    """
    if path.exists() and not replace:
        raise FileExistsError(f"{path} exists already; choose another path or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    new = beside(path)
    new.mkdir()
    try:
        yield new
        replace_folder(new, path)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def replace_folder(new: Path, path: Path) -> None:
    """Move the folder `new` to `path`; an older `path` is set aside first, put back if that fails, deleted if not."""
    if not path.exists():
        os.replace(new, path)
        return
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    os.replace(path, old)
    try:
        os.replace(new, path)
    except OSError:
        os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)  # what cannot go now, goes as a leftover


def remove_folder(path: Path) -> None:
    """Delete the folder; a kill in the middle leaves nothing under its name."""
    os.replace(path, beside(path))
    shutil.rmtree(beside(path), ignore_errors=True)


def claim_folder(path: Path) -> Path:
    """Make the new folder `path`, or path_2, path_3, ... where it exists: two processes never get the same one."""
    folder, n = path, 1
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            n += 1
            folder = path.with_name(f"{path.name}_{n}")


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a whole file beside and rename it over `path`."""
    data = content.encode() if isinstance(content, str) else content
    remove_leftovers(path)
    new = beside(path)
    try:
        new.write_bytes(data)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def drop_cut_line(path: Path) -> None:
    """A process killed while appending leaves half a line; without its end it would swallow the next one."""
    if path.exists() and not (data := path.read_bytes()).endswith(b"\n"):
        write_atomic(path, data[: data.rfind(b"\n") + 1])


def atomic_symlink(link: Path, target: str) -> None:
    """Make `link` point to `target` (relative to the link's folder), replacing what it pointed to before."""
    remove_leftovers(link)
    new = beside(link)
    os.symlink(target, new)
    os.replace(new, link)
