"""What may go wrong in a command, in one line each."""

import errno
import os

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from flowpolicy.extras import missing_extra

EXPECTED = (ValueError, OSError, ImportError, RuntimeError, HydraException, OmegaConfBaseException)


def one_line(error: BaseException) -> str:
    """The message of the innermost cause on one line; Hydra and OmegaConf wrap what went wrong several times."""
    if isinstance(error, OSError) and error.strerror == os.strerror(errno.ENOSPC):
        where = f" at {error.filename}" if error.filename else ""
        return f"disk full{where}; files written before are whole. Free some space and run again (train: resume=true)"
    if isinstance(error, ImportError) and (fix := missing_extra(error)):
        return fix
    while error.__cause__ is not None and isinstance(error, HydraException | OmegaConfBaseException):
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__
