"""flowpolicy VERB [key=value ...]: one-step flow policies for robots.

  data       collect, inspect, validate or view demonstrations
  train      imitation: demonstrations in, a one-step policy out
  finetune   reinforcement learning: a policy that half works, and its simulator, in; a better one out
  evaluate   seeded rollouts of a checkpoint, with intervals
  compare    which policy is better: common seeds, exact tests, a verdict
  sweep      every policy on every task at every number of steps
  protocol   collect, train and evaluate for every task and seed of a published comparison
  bench      latency per stage on this machine, missed deadlines, what to do
  export     ONNX bundle that runs without torch, with a certificate
  report     one offline HTML page of runs and evaluations
  info       versions, device, extras, renderers
  doctor     try every extra and renderer; print the fix for what fails

`flowpolicy VERB --help` shows examples and every option.
Exit codes: 0 done, 1 a check failed, 2 usage or bad input, 130 Ctrl-C, 143 SIGTERM (where it is training: after
a checkpoint).
FLOWPOLICY_DEBUG=1 shows the traceback of an error.
"""

import errno
import importlib
import os
import sys

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from flowpolicy.extras import how_to_install
from flowpolicy.stopping import SIGTERM_CODE, Terminated

VERBS = (
    "data", "train", "finetune", "evaluate", "compare", "sweep", "protocol", "bench", "export", "report", "info",
    "doctor",
)  # fmt: skip
_TRAIN_EXTRA = ("zarr", "numcodecs", "numba", "gymnasium")


def main(argv: list[str]) -> int:
    """Run one verb; returns the exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if argv else 2
    verb, arguments = argv[0], argv[1:]
    if verb not in VERBS:
        print(f"flowpolicy: unknown verb '{verb}'; verbs are {', '.join(VERBS)}", file=sys.stderr)
        return 2
    try:
        module = importlib.import_module(f"flowpolicy.cli.{verb}")
        if any(argument in ("-h", "--help") for argument in arguments):
            print(module.__doc__, flush=True)
            return 0
        code = module.main(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains as it leaves
        return 141  # what a shell reports for a writer whose reader has gone, as in `flowpolicy train --help | head`
    except (ValueError, OSError, ImportError, RuntimeError, HydraException, OmegaConfBaseException) as error:
        if os.environ.get("FLOWPOLICY_DEBUG") == "1":
            raise
        print(f"flowpolicy {verb}: {_one_line(error)}", file=sys.stderr)
        return 2
    except Terminated as stop:
        print(f"flowpolicy {verb}: {stop}", file=sys.stderr)
        return SIGTERM_CODE
    except KeyboardInterrupt:
        print(f"flowpolicy {verb}: interrupted", file=sys.stderr)
        return 130


def _one_line(error: BaseException) -> str:
    """The message of the innermost cause on one line; Hydra and OmegaConf wrap what went wrong several times."""
    if isinstance(error, OSError) and error.strerror == os.strerror(errno.ENOSPC):
        where = f" at {error.filename}" if error.filename else ""
        return f"disk full{where}; files written before are whole. Free some space and run again (train: resume=true)"
    if isinstance(error, ImportError) and (missing := (error.name or "").partition(".")[0]) in _TRAIN_EXTRA:
        return f"{missing} is not installed; {how_to_install('train')}"
    while error.__cause__ is not None and isinstance(error, HydraException | OmegaConfBaseException):
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__


def entry() -> None:
    """Console script."""
    sys.exit(main(sys.argv[1:]))
