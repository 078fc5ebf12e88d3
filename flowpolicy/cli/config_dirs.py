"""`--config-dir DIR`: folders of yaml files beside ours, for one command and the processes that it starts."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from flowpolicy.plugins import FOLDERS, require_folder

_FLAG = "--config-dir"


@contextmanager
def config_dirs(folders: Sequence[str]) -> Iterator[None]:
    """While it is open the yaml files of these folders count. Raises ValueError for a folder that is none."""
    before = os.environ.get(FOLDERS)
    if folders:
        named = [*(str(require_folder(folder)) for folder in folders), *(before.split(os.pathsep) if before else [])]
        os.environ[FOLDERS] = os.pathsep.join(named)
    try:
        yield
    finally:
        if folders:
            os.environ.pop(FOLDERS)
            os.environ.update({} if before is None else {FOLDERS: before})


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words without `--config-dir DIR` and `--config-dir=DIR`, and the folders. Raises ValueError without one."""
    words, folders, rest = [], [], iter(argv)
    for word in rest:
        name, equals, value = word.partition("=")
        if name != _FLAG:
            words.append(word)
            continue
        folder = value if equals else next(rest, "")
        if not folder or os.pathsep in folder:
            raise ValueError(f"{_FLAG}: wanted one folder, got {folder!r}; as in {_FLAG} my_configs, once for each")
        folders.append(folder)
    return words, folders
