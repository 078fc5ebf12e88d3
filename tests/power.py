"""What a disk holds after a power cut: only what was flushed; recorded while code runs, then laid out as folders."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

Tree = dict[str, bytes | None]
"""Path -> content of a file, None for a folder."""


class Disk:
    """Follows every flush and rename below `root`, and notes what a power cut right there would leave.

    Two kinds of disk: "late" keeps a name only when its folder was flushed, as the standard allows; "early" keeps every
    name at once but a content only when the file was flushed, which is what leaves files of 0 bytes on ext4 and XFS.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.states: list[tuple[str, Tree]] = []  # (kind, what is left), in order, repetitions left out
        self._latest: dict[str, Tree] = {}
        self._content: dict[int, bytes] = {}  # of an inode when it was last flushed
        self._names: dict[int, dict[str, int]] = {self._inode(root): {}}
        self._held: list[int] = []  # descriptors that keep a number from being given to another file
        for name in ("replace", "rename", "unlink", "rmdir", "mkdir", "symlink"):
            monkeypatch.setattr(os, name, self._followed(getattr(os, name)))
        monkeypatch.setattr(os, "fsync", self._flushed(os.fsync))

    @staticmethod
    def _inode(path: Path) -> int:
        return path.lstat().st_ino

    def _followed(self, call: Callable) -> Callable:
        def wrapped(*arguments, **options):
            found = call(*arguments, **options)
            self._note()
            return found

        return wrapped

    def _flushed(self, call: Callable) -> Callable:
        def wrapped(descriptor: int) -> None:
            call(descriptor)
            about = os.fstat(descriptor)
            self._held.append(os.dup(descriptor))
            if stat.S_ISDIR(about.st_mode):
                self._names[about.st_ino] = {name: self._hold(name, descriptor) for name in os.listdir(descriptor)}
            else:
                self._content[about.st_ino] = Path(f"/proc/self/fd/{descriptor}").read_bytes()
            self._note()

        return wrapped

    def _hold(self, name: str, folder: int) -> int:
        descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=folder)
        self._held.append(descriptor)
        return os.fstat(descriptor).st_ino

    def _note(self) -> None:
        for kind, tree in (("late", self._late(self._inode(self.root), "")), ("early", self._early())):
            if self._latest.get(kind) != tree:
                self._latest[kind] = tree
                self.states.append((kind, tree))

    def _late(self, folder: int, path: str) -> Tree:
        found: Tree = {}
        for name, inode in self._names[folder].items():
            if inode in self._names:
                found |= {f"{path}{name}": None} | self._late(inode, f"{path}{name}/")
            else:
                found[f"{path}{name}"] = self._content.get(inode, b"")
        return found

    def _early(self) -> Tree:
        return {
            str(path.relative_to(self.root)): None if path.is_dir() else self._content.get(self._inode(path), b"")
            for path in sorted(self.root.rglob("*"))
            if path.is_dir() or path.is_file()
        }

    def close(self) -> None:
        for descriptor in self._held:
            os.close(descriptor)


def lay_out(tree: Tree, folder: Path) -> Path:
    """Write the tree to the new folder `folder`; returns it."""
    folder.mkdir(parents=True)
    for name, content in tree.items():
        path = folder / name
        if content is None:
            path.mkdir(exist_ok=True)
        else:
            path.write_bytes(content)
    return folder
