"""One writer per folder: a lock that the system frees however its holder ends."""

import errno
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flowpolicy.files import make_folder


@contextmanager
def only_writer(folder: Path, name: str = "lock") -> Iterator[None]:
    """Hold `folder` for this process while the block runs; the system frees it however the process ends.

    name: of the hidden lock file, which stays; another one is another lock.
    Raises ValueError, with host and process where known, when a process that runs holds it. Warns where the file
    system has no locks.
    """
    import fcntl  # POSIX, as the simulators are

    make_folder(folder)
    with (folder / f".{name}").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = " ".join(file.read(200).split())
            who = f"another command ({holder})" if holder else "another command"
            raise ValueError(f"{folder} is being written by {who}; wait for it, or choose another out=") from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                raise
            warnings.warn(
                f"{folder}: this file system has no locks ({error.strerror}); a second command writing there would "
                "not be refused",
                stacklevel=3,
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
