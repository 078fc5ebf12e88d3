"""Write beside, then rename: a file or folder is there whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_directory(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling folder that becomes `path` when the block ends, and is removed when it raises.

    replace: whether an existing `path` gives way; otherwise FileExistsError before anything is written.
    """
    if path.exists() and not replace:
        raise FileExistsError(f"{path} exists already; choose another path or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        yield beside
        if path.exists():
            old = path.with_name(f".{path.name}.{os.getpid()}.old")
            os.replace(path, old)
            os.replace(beside, path)
            shutil.rmtree(old)
        else:
            os.replace(beside, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a whole file beside and rename it over `path`."""
    data = content.encode() if isinstance(content, str) else content
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        beside.write_bytes(data)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def atomic_symlink(link: Path, target: str) -> None:
    """Make `link` point to `target` (relative to the link's folder), replacing what it pointed to before."""
    beside = link.with_name(f".{link.name}.{os.getpid()}.part")
    beside.unlink(missing_ok=True)
    os.symlink(target, beside)
    os.replace(beside, link)
