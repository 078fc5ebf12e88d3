"""What may go wrong in a command, in one line each."""

import errno
import os

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from flowpolicy.cli.remedies import on_the_command_line
from flowpolicy.extras import missing_extra

EXPECTED = (ValueError, OSError, ImportError, RuntimeError, HydraException, OmegaConfBaseException)


def one_line(error: BaseException, verb: str = "train") -> str:
    """The message of the innermost cause on one line, in the words of `verb`; Hydra and OmegaConf wrap what went wrong
    several times."""
    if isinstance(error, OSError) and error.strerror == os.strerror(errno.ENOSPC):
        where = f" at {error.filename}" if error.filename else ""
        return f"disk full{where}; files written before are whole. Free some space and run again (train: resume=true)"
    if isinstance(error, ImportError) and (fix := missing_extra(error)):
        return fix
    while error.__cause__ is not None and isinstance(error, HydraException | OmegaConfBaseException):
        error = error.__cause__
    return on_the_command_line(" ".join(str(error).split()), verb) or type(error).__name__


def notes(error: BaseException, verb: str) -> list[str]:
    """What was added to it on the way, such as where unfinished work lies."""
    return [on_the_command_line(note, verb) for note in getattr(error, "__notes__", ())]
