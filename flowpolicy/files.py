"""Write beside, flush, then rename: a file or folder is there whole or not at all, also after a power cut.

What is not finished yet, or not needed any more, has a hidden name: .NAME.HOST-PID-PROCESS-CALL.part (.old: a folder
set aside while another takes its place). HOST is a digest of host, boot and process namespace, PROCESS and CALL are
random, so that two writers never share a name, not even on a shared file system. The next writer of NAME removes what
is provably left over: of a process of this HOST that has ended, or of anybody after a day.
"""

import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

STALE_S = 24 * 3600.0  # age at which a leftover of another host counts as one: no writer is still for so long
SWAP_S = 60.0  # age at which a folder that was set aside, and that nothing replaced, is put back
_PROCESS = secrets.token_hex(4)
_OWNER = r"(?:(?P<host>[0-9a-f]{8})-)?(?P<pid>\d{1,9})(?:-(?P<process>[0-9a-f]{8})-[0-9a-f]{8})?"


@cache
def host() -> str:
    """Where process ids mean the same: a digest of the host's name, its boot and the process namespace."""
    words = [socket.gethostname()]
    for read in (
        lambda: Path("/proc/sys/kernel/random/boot_id").read_text(),
        lambda: os.readlink("/proc/self/ns/pid"),
    ):
        try:
            words.append(read().strip())
        except OSError:  # not Linux: the name has to do
            words.append("")
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:8]


def beside(path: Path, kind: str = "part") -> Path:
    """A hidden sibling under which this process prepares `path` (kind "old": sets it aside); another one each time.

    Args:
        path: What is prepared.
        kind: "part", or "old" for what is set aside.
    """
    return path.with_name(f".{path.name}.{host()}-{os.getpid()}-{_PROCESS}-{secrets.token_hex(4)}.{kind}")


def remove_leftovers(path: Path, name: str | None = None) -> None:
    """Remove what ended processes left beside `path` under hidden names; put back what they had only set aside.

    Args:
        path: A file or folder of ours.
        name: Regular expression of the names to look after; `path`'s own by default.
    """
    pattern = re.compile(rf"\.({re.escape(path.name) if name is None else name})\.{_OWNER}\.(part|old)(?:\.\w+)?")
    for sibling in list(path.parent.iterdir()) if path.parent.is_dir() else []:
        if (match := pattern.fullmatch(sibling.name)) is None:
            continue
        dead, age = _has_ended(match), _age(sibling)
        if match[5] == "old" and not (home := path.with_name(match[1])).exists():
            if dead or age > SWAP_S:
                os.replace(sibling, home)
                sync_folder(home.parent)
        elif dead or age > STALE_S:
            _delete(sibling)


def _has_ended(owner: re.Match[str]) -> bool:
    """Whether the writer of a leftover is certain to run no more. Other hosts and namespaces cannot be asked."""
    if owner["host"] != host():
        return False
    if int(owner["pid"]) == os.getpid():  # ours, or that of a killed one before us, which is the rule in containers
        return owner["process"] != _PROCESS
    try:
        os.kill(int(owner["pid"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's
        return False
    return False


def _age(path: Path) -> float:
    """Seconds since the file or folder last changed, its name included."""
    try:
        return time.time() - max(path.lstat().st_mtime, path.lstat().st_ctime)
    except FileNotFoundError:
        return 0.0


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling folder that becomes `path` when the block ends, and is removed when it raises.

    Args:
        path: The folder to be.
        replace: Whether an existing `path` gives way; otherwise FileExistsError before anything is written.
    """
    if path.exists() and not replace:
        raise FileExistsError(f"{path} exists already; choose another path or remove it")
    make_folder(path.parent)
    remove_leftovers(path)
    new = beside(path)
    new.mkdir()
    try:
        yield new
        replace_folder(new, path)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def replace_folder(new: Path, path: Path) -> None:
    """Flush the folder `new` and move it to `path`.

    An older `path` is set aside first, put back if that fails, deleted when the new one is safe.

    Args:
        new: The finished folder.
        path: Its place.
    """
    sync_tree(new)
    if not path.exists():
        os.replace(new, path)
        sync_folder(path.parent)
        return
    old = beside(path, "old")
    os.replace(path, old)
    try:
        os.replace(new, path)
    except OSError:
        os.replace(old, path)
        raise
    sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)  # what cannot go now, goes as a leftover


def remove_folder(path: Path) -> None:
    """Delete the folder; a kill or a power cut in the middle leaves nothing under its name.

    Args:
        path: The folder.
    """
    aside = beside(path)
    os.replace(path, aside)
    sync_folder(path.parent)
    shutil.rmtree(aside, ignore_errors=True)


def make_folder(path: Path) -> Path:
    """Make `path` and what is missing above it, and flush each new name; returns `path`.

    Args:
        path: The folder.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.is_dir()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)
    return path


def claim_folder(path: Path) -> Path:
    """Make the new folder `path`, or path_2, path_3, ... where it exists: two processes never get the same one.

    Args:
        path: The folder wished for.
    """
    make_folder(path.parent)
    folder, n = path, 1
    while True:
        try:
            folder.mkdir()
            sync_folder(folder.parent)
            return folder
        except FileExistsError:
            n += 1
            folder = path.with_name(f"{path.name}_{n}")


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a whole file beside, flush it, and rename it over `path`.

    Args:
        path: The file.
        content: All of it; text is written as UTF-8.
    """
    data = content.encode() if isinstance(content, str) else content
    remove_leftovers(path)
    new = beside(path)
    try:
        new.write_bytes(data)
        move_file(new, path)
    finally:
        new.unlink(missing_ok=True)


def move_file(new: Path, path: Path) -> None:
    """Flush the finished file `new` and rename it over `path`, both in one folder.

    Args:
        new: The finished file.
        path: Its place, in the same folder.
    """
    sync_file(new)
    os.replace(new, path)
    sync_folder(path.parent)


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Add lines (without their ends) in one write, and flush; missing folders are made. No lines: nothing is done.

    Args:
        path: The file.
        lines: Without their ends.
    """
    if not (text := "".join(line + "\n" for line in lines)):
        return
    make_folder(path.parent)
    new = not path.exists()
    with path.open("a") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    if new:
        sync_folder(path.parent)


def drop_cut_line(path: Path) -> None:
    """A process killed while appending leaves half a line; without its end it would swallow the next one.

    Args:
        path: A file of lines; nothing is done where there is none.
    """
    if path.exists() and not (data := path.read_bytes()).endswith(b"\n"):
        write_atomic(path, data[: data.rfind(b"\n") + 1])


def sync_file(path: Path) -> None:
    """Return when the file's content is on the disk.

    Args:
        path: The file.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Return when the folder's names are on the disk.

    Args:
        path: The folder.
    """
    try:
        sync_file(path)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # file systems that write names at once
            raise


def sync_tree(folder: Path) -> None:
    """Return when every file and folder below `folder`, and itself, is on the disk.

    Args:
        folder: The topmost folder.
    """
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            if not (path := Path(root, name)).is_symlink():
                sync_file(path)
        sync_folder(Path(root))
