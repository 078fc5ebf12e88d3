"""One writer per folder: a lock that the system frees however its holder ends."""

import errno
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from flowpolicy.files import make_folder


@contextmanager
def only_writer(folder: Path, name: str = "lock") -> Iterator[None]:
    """Hold `folder` for this process while the block runs; the system frees it however the process ends.

    The folder is made, and goes again when nothing was written to it.

    Warns where the file system has no locks.

    Args:
        folder: That is written to.
        name: Of the hidden lock file, which is there while the lock is held and after a kill; another one is another
            lock.

    Raises:
        ValueError: With host and process where known, when a process that runs holds it.
    """
    made = [path for path in (folder, *folder.parents) if not path.is_dir()]
    lock = folder / f".{name}"
    try:
        with _open_locked(lock) as file:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
    finally:
        with suppress(OSError):  # of the folders made here, those that are empty go
            for path in made:
                path.rmdir()


def _open_locked(lock: Path) -> IO[str]:
    """The lock file, open and locked; closing it frees the lock."""
    while True:
        make_folder(lock.parent)
        with suppress(FileNotFoundError):  # its last holder removed it, or the folder, between two of these lines
            file = lock.open("a+")
            try:
                _lock(file, lock.parent)
                if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                    return file
            except (ValueError, OSError):
                file.close()
                raise
            file.close()


def _lock(file: IO[str], folder: Path) -> None:
    import fcntl  # POSIX, as the simulators are

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = " ".join(file.read(200).split())
        who = f"another command ({holder})" if holder else "another command"
        raise ValueError(f"{folder} is being written by {who}; wait for it, or choose another `out=`") from error
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
            raise
        warnings.warn(
            f"{folder}: this file system has no locks ({error.strerror}); a second command writing there would not be "
            "refused",
            stacklevel=4,
        )
