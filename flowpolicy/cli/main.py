"""flowpolicy VERB [key=value ...]: one-step flow policies for robots.

  data       collect, convert, inspect, validate or view demonstrations
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
--config-dir DIR, anywhere and more than once, adds your own yaml files to ours: DIR/task/NAME.yaml is task=NAME,
DIR/policy/head/NAME.yaml is policy/head=NAME; so does FLOWPOLICY_CONFIGS=DIR:DIR. Installed plug-ins bring theirs.
Exit codes: 0 done, 1 a check failed, 2 usage or bad input, 130 Ctrl-C, 143 SIGTERM (where it is training: after
a checkpoint), 141 when the reader of the output has gone.
FLOWPOLICY_DEBUG=1 shows the traceback of an error.
"""

import importlib
import os
import sys

from flowpolicy.cli.config_dirs import config_dirs, split
from flowpolicy.processes import end_children
from flowpolicy.stopping import SIGINT_CODE, SIGTERM_CODE, Terminated, leave_at_once, signals_raise
from flowpolicy.streams import concluded, outlive_readers, readable

VERBS = (
    "data",
    "train",
    "finetune",
    "evaluate",
    "compare",
    "sweep",
    "protocol",
    "bench",
    "export",
    "report",
    "info",
    "doctor",
)


def main(argv: list[str]) -> int:
    """Run one verb; returns the exit code. Another program may call it: signals and streams are its own again after."""
    with readable():
        try:
            words, folders = split(argv)
        except ValueError as error:
            print(f"flowpolicy: {error}", file=sys.stderr)
            return 2
        if not words or words[0] in ("-h", "--help"):
            print(__doc__)
            return 0 if words else 2
        verb, arguments = words[0], words[1:]
        if verb not in VERBS:
            print(f"flowpolicy: unknown verb '{verb}'; verbs are {', '.join(VERBS)}", file=sys.stderr)
            return 2
        # not before its signals are heard: this takes a while
        from flowpolicy.cli.failures import EXPECTED, notes, one_line
        from flowpolicy.cli.remedies import on_the_command_line, warnings_said_for

        try:
            module = importlib.import_module(f"flowpolicy.cli.{verb}")
            if any(argument in ("-h", "--help") for argument in arguments):
                print(module.__doc__)
                return 0
            with signals_raise(), config_dirs(folders), warnings_said_for(verb):
                return module.main(arguments)
        except EXPECTED as error:
            if os.environ.get("FLOWPOLICY_DEBUG") == "1":
                raise
            print("\n".join([f"flowpolicy {verb}: {one_line(error, verb)}", *notes(error, verb)]), file=sys.stderr)
            return 2
        except (Terminated, KeyboardInterrupt) as stop:
            end_children()  # here, where the exception still keeps what they were given
            said = on_the_command_line(str(stop), verb) or "interrupted"
            print("\n".join([*notes(stop, verb), f"flowpolicy {verb}: {said}"]), file=sys.stderr)
            return SIGTERM_CODE if isinstance(stop, Terminated) else SIGINT_CODE


def entry() -> None:
    """Console script."""
    outlive_readers()
    leave_at_once(" ".join(["flowpolicy", *sys.argv[1:2]]))
    sys.exit(concluded(main(sys.argv[1:])))
