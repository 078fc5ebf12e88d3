"""The three streams of a command as its caller left them: closed, without a reader, or short of letters."""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TextIO, final

_READER_GONE = 141  # what a shell reports for a writer whose reader has gone, as in `flowpolicy train --help | head`


@final
class _Lasting(io.FileIO):
    """A descriptor whose loss stops nobody's work: what cannot be written is dropped, and `lost` says why."""

    lost: OSError | None = None

    def write(self, data: Any, /) -> int:
        if self.lost is None:
            try:
                return super().write(data)
            except OSError as error:
                self.lost = error
        return memoryview(data).nbytes


def outlive_readers() -> None:
    """Let stdout and stderr of this process take every word, whoever reads it; a closed descriptor becomes the null
    device, also for child processes. For a program's first line: later, a file could have a closed one's number.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest free number: this one
    sys.stdin = open(os.devnull) if sys.stdin is None else sys.stdin  # noqa: SIM115 - as long as the process
    sys.stdout, sys.stderr = _lasting(1, sys.stdout), _lasting(2, sys.stderr)


def _lasting(number: int, before: TextIO | None) -> TextIO:
    if before is None:  # its number may be a file's by now
        number = os.open(os.devnull, os.O_WRONLY)
    like = before if isinstance(before, io.TextIOWrapper) else io.TextIOWrapper(io.BytesIO(), "utf-8")
    return io.TextIOWrapper(
        io.BufferedWriter(_Lasting(number, "w", closefd=False)),
        encoding=like.encoding,
        errors=like.errors,
        line_buffering=like.line_buffering,
        write_through=like.write_through,
    )


def concluded(code: int) -> int:
    """The exit code of a command that would return `code`, when all that it said has been written where that goes.

    A terminal that has gone is no failure of it; a reader that has, ends quietly too; a full disk does not.

    Args:
        code: The exit code so far.
    """
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    lost = raw.lost if isinstance(raw, _Lasting) else None
    if code or lost is None or lost.errno == errno.EIO:
        return code
    if lost.errno == errno.EPIPE:
        return _READER_GONE
    print(
        f"flowpolicy: what was to be printed could not be written: {lost.strerror}; the work is done", file=sys.stderr
    )
    return 2


@contextmanager
def readable() -> Iterator[None]:
    """While the block runs, printing works: without a stream into nothing, and a letter that it lacks becomes `?`."""
    with ExitStack() as undo:
        for name in ("stdout", "stderr"):
            stream: TextIO | None = getattr(sys, name)
            if stream is None:
                undo.callback(setattr, sys, name, None)
                setattr(sys, name, undo.enter_context(open(os.devnull, "w", encoding="utf-8")))
            elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
                undo.callback(stream.reconfigure, errors="strict")
                stream.reconfigure(errors="replace")
        yield
