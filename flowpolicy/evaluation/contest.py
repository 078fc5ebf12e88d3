"""A contest: every arm (a head, a net, …) trained on every task from the same demonstrations, several at a time."""

import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, final

from tqdm import tqdm

from flowpolicy.evaluation.protocol import trained_steps
from flowpolicy.launch.local import run_all


class Entry(NamedTuple):
    """One training run. arm: its name.

    Args:
        seed: Of weights, data order and noise.
    """

    task_id: str
    arm: str
    seed: int

    def store(self, out: Path) -> Path:
        """The demonstrations, which all entries of a task share."""
        return out / "demonstrations" / f"{self.task_id}.zarr"

    def run(self, out: Path) -> Path:
        """Folder of the training run."""
        return out / self.task_id / self.arm / f"seed_{self.seed}"

    def log(self, out: Path) -> Path:
        """What it printed."""
        return out / self.task_id / self.arm / f"seed_{self.seed}.log"


@final
@dataclass(frozen=True)
class Training:
    """What trains an entry, in a process of its own; picklable.

    Args:
        train: (entry, store, run folder), going on where an earlier call stopped.
    """

    out: Path
    train: Callable[[Entry, Path, Path], None]

    def __call__(self, entry: Entry) -> str:
        """Train, with all that is printed in <run>.log; what went wrong, "" for nothing."""
        log = entry.log(self.out)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file, redirect_stdout(file), redirect_stderr(file):
            try:
                self.train(entry, entry.store(self.out), entry.run(self.out))
            except (ValueError, RuntimeError, OSError) as error:
                traceback.print_exc()
                return f"{entry.task_id} {entry.arm} seed {entry.seed}: {error}; see {log}"
        return ""


def train_all(
    entries: Sequence[Entry],
    out: Path,
    *,
    collect: Callable[[str, Path], None],
    train: Callable[[Entry, Path, Path], None],
    steps: Mapping[str, int],
    workers: int,
) -> None:
    """Collect and train what is missing; a killed contest goes on where it was.

    Args:
        collect: (task id, store to write).
        steps: arm -> at which its training is complete.
        workers: Trainings at a time.

    Raises:
        RuntimeError: Naming the trainings that failed, after all others.
    """
    for entry in entries:
        if not (store := entry.store(out)).exists():
            collect(entry.task_id, store)
    missing = [entry for entry in entries if trained_steps(entry.run(out)) < steps[entry.arm]]
    with tqdm(
        total=len(entries), initial=len(entries) - len(missing), desc="trainings", unit="run", disable=not missing
    ) as bar:
        failed = []
        for outcome in run_all(Training(out, train), missing, workers=workers) if missing else ():
            entry, own = outcome.job, outcome.result
            bar.set_postfix_str(f"{entry.task_id} {entry.arm}")
            bar.update()
            wrong = own or ""
            if outcome.error:
                wrong = f"{entry.task_id} {entry.arm} seed {entry.seed}: {outcome.error}; see {entry.log(out)}"
            elif not wrong and (reached := trained_steps(entry.run(out))) < steps[entry.arm]:
                wrong = f"{entry.run(out)} stopped at step {reached} of {steps[entry.arm]} (trainer.max_hours)"
            failed += [wrong] if wrong else []
    if failed:
        raise RuntimeError(
            f"{len(failed)} of {len(missing)} trainings failed; leave them out with only=…, or mend and "
            "run it again: " + "; ".join(failed)
        )
