"""`-m`: several runs of one command, one after the other; one that fails stops no other."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from flowpolicy.cli.failures import EXPECTED, one_line

Job = TypeVar("Job")
_MOST = 125  # a shell has its own meanings for the codes above


def run_jobs(jobs: Sequence[Job], run: Callable[[Job], int], words: Sequence[Sequence[str]]) -> int:
    """Run each; the exit code, 0 or how many failed, which stderr names.

    Ctrl-C and SIGTERM stop all.

    Args:
        words: What was typed for each.
    """
    failed = []
    for number, (job, typed) in enumerate(zip(jobs, words, strict=True), start=1):
        own = [word for word in typed if any(word not in others for others in words)]
        try:
            run(job)
        except EXPECTED as error:
            failed.append(f"job {number} of {len(jobs)} ({' '.join(own)})")
            print(f"{failed[-1]}: {one_line(error, 'train')}", file=sys.stderr, flush=True)
    if failed:
        print(f"{len(failed)} of {len(jobs)} jobs failed: {', '.join(failed)}", file=sys.stderr)
    return min(len(failed), _MOST)


def require_own_folders(outs: Sequence[Path | None]) -> None:
    """Raise ValueError where two jobs would write to one folder.

    Args:
        outs: None is a new one.
    """
    named = [out.resolve() for out in outs if out is not None]
    if twice := sorted({str(out) for out in named if named.count(out) > 1}):
        raise ValueError(
            f"-m: {len([out for out in named if str(out) == twice[0]])} jobs would write to {twice[0]}; "
            "name in out= what they differ in, for example 'out=runs/a_${seed}'"
        )
