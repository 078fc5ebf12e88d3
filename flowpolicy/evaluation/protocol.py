"""A protocol: demonstrations, training and evaluation for every (task, seed), in an order that survives a kill."""

import json
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, pstdev
from typing import Any, NamedTuple, final

from tqdm import tqdm

from flowpolicy import provenance
from flowpolicy.files import write_atomic
from flowpolicy.json_files import read_object, write_json
from flowpolicy.launch.local import run_all
from flowpolicy.locks import only_writer
from flowpolicy.pointers import STEP_FILE, choose
from flowpolicy.results.folders import read_lines
from flowpolicy.results.seen_seeds import remarks
from flowpolicy.statistics.tests import wilson_interval

TOP = 5  # DP3, FlowPolicy and MP1 report the mean of the five best evaluations of a training run


class Cell(NamedTuple):
    """One training run.

    Args:
        task_id: Of the task.
        seed: Of weights, data order and noise.
        arm: Name of what is compared, a head or a net; "" where there is one recipe alone.
    """

    task_id: str
    seed: int
    arm: str = ""

    def __str__(self) -> str:
        return " ".join([self.task_id, *([self.arm] if self.arm else []), "seed", str(self.seed)])

    def store(self, out: Path) -> Path:
        """The demonstrations, which all cells of a task share.

        Args:
            out: Folder of the protocol.
        """
        return out / "demonstrations" / f"{self.task_id}.zarr"

    def run(self, out: Path) -> Path:
        """Folder of the training run.

        Args:
            out: Folder of the protocol.
        """
        return out / self.task_id / self.arm / f"seed_{self.seed}"

    def log(self, out: Path) -> Path:
        """What it printed, where several are trained at a time.

        Args:
            out: Folder of the protocol.
        """
        return self.run(out).with_suffix(".log")


@final
@dataclass(frozen=True)
class Stages:
    """What a cell consists of; each is called only when what it writes is not there yet.

    Args:
        collect: (cell, store to write).
        train: (cell, store, run folder), going on where an earlier call stopped.
        evaluate: (cell, run folder, evaluation folder).
        steps: At which training is complete.
    """

    collect: Callable[[Cell, Path], None]
    train: Callable[[Cell, Path, Path], None]
    evaluate: Callable[[Cell, Path, Path], None]
    steps: int


def run_protocol(
    cells: Sequence[Cell], out: Path, stages: Stages, *, words: Sequence[str], recipe: str = ""
) -> list[dict[str, Any]]:
    """Finish every cell in turn and return one row each, as in out/results.jsonl, which grows by one line per cell.

        out/demonstrations/<task>.zarr   out/<task>/seed_<n>/   out/<task>/seed_<n>/evaluation/last/   out/protocol.json

    Args:
        cells: One training each.
        out: Folder of the protocol.
        stages: What collects, trains and evaluates.
        words: What was asked for, apart from which cells.
        recipe: Digest of all numbers. Both kept in protocol.json.

    Raises:
        ValueError: When `out` was begun with others: its cells would not be comparable; and while another process
            writes to it.
    """
    with only_writer(out):
        require_same(out / "protocol.json", words, {"": recipe})
        results = out / "results.jsonl"
        rows = {Cell(row["task_id"], row["seed"]): row for row in read_lines(results, {"task_id": str, "seed": int})}
        for cell in cells:
            if cell not in rows:
                rows[cell] = _finish(cell, out, stages)
                # the whole file: a line that a kill cut short must not swallow the next one
                write_atomic(results, "".join(json.dumps(row) + "\n" for row in rows.values()))
    return [rows[cell] for cell in cells]


def _finish(cell: Cell, out: Path, stages: Stages) -> dict[str, Any]:
    """Do what is missing of one cell; its row."""
    store, run = cell.store(out), cell.run(out)
    evaluation = run / "evaluation" / "last"
    if not store.exists():
        stages.collect(cell, store)
    if trained_steps(run) < stages.steps:
        stages.train(cell, store, run)
        if (steps := trained_steps(run)) < stages.steps:
            raise ValueError(f"{run} stopped at step {steps} of {stages.steps} (`max_hours`); run it again to go on")
    if not (evaluation / "summary.json").exists():
        stages.evaluate(cell, run, evaluation)
    return cell_row(cell, run, evaluation)


def trained_steps(run: Path) -> int:
    """Step of the newest checkpoint of a run folder, 0 without one.

    Args:
        run: Its folder.
    """
    last = choose(run / "checkpoints", "last", (STEP_FILE,))
    return read_object(last / STEP_FILE, {"step": int})["step"] if last is not None else 0


def cell_row(cell: Cell, run: Path, evaluation: Path) -> dict[str, Any]:
    """Both conventions for one cell: the top five of the in-training evaluations, and the last checkpoint's summary.

    top5 is optimistic: it picks checkpoints by the episodes that it reports. Fewer than five evaluations: all of them.

    Args:
        cell: What was trained.
        run: Folder of the training.
        evaluation: Folder of the last checkpoint's evaluation.

    Raises:
        ValueError: When training made none.
    """
    lines = read_lines(run / "metrics.jsonl")
    scores = [line["eval/success_once"] for line in lines if isinstance(line.get("eval/success_once"), float)]
    if not scores:
        raise ValueError(
            f"{run} has no in-training evaluation; set `eval_every`, here for example a fifth of "
            f"`steps={trained_steps(run)}`, and choose another `out=`"
        )
    kept = {
        "task": str,
        "num_steps": int,
        "n": int,
        "success_once": float,
        "ci_low": float,
        "ci_high": float,
        "start_seed": int,
        "policy_params": int,
    }
    summary = read_object(evaluation / "summary.json", {**kept, "latency_ms": dict})
    return {
        "task_id": cell.task_id,
        "seed": cell.seed,
        "top5": mean(sorted(scores, reverse=True)[:TOP]),
        "evaluations": scores,
        "steps": trained_steps(run),
        "train_s": lines[-1].get("time_s"),
        "latency_ms_p50": summary["latency_ms"].get("p50"),
        **{name: summary[name] for name in kept},
        **{name: summary[name] for name in ("solved_at_reset", "seen_seeds") if summary.get(name)},
    }


def format_protocol(rows: Sequence[dict[str, Any]], difficulty: Callable[[str], str]) -> str:
    """A line per task over its seeds, then the mean over the tasks of each difficulty, and over all.

    top-5: mean and standard deviation over the seeds. last: all seeds' episodes together, with Wilson's interval.

    Args:
        rows: As `cell_row` makes them.
        difficulty: Task id -> its group, "" for none.
    """
    tasks = list(dict.fromkeys(row["task_id"] for row in rows))
    width = max([10, *(len(task) for task in tasks)])
    lines = [f"{'task':<{width}}  {'difficulty':<10}  seeds  top-5          last   95 % interval     n"]
    found: dict[str, list[tuple[float, float]]] = {}
    for task in tasks:
        own = [row for row in rows if row["task_id"] == task]
        top = [row["top5"] for row in own]
        n, successes = sum(row["n"] for row in own), sum(round(row["success_once"] * row["n"]) for row in own)
        low, high = wilson_interval(successes, n)
        group = difficulty(task)
        found.setdefault(group, []).append((mean(top), successes / n))
        lines.append(
            f"{task:<{width}}  {group:<10}  {len(own):5d}  {mean(top):.3f} ± {pstdev(top):.3f}  "
            f"{successes / n:.3f}  {low:.3f} - {high:.3f}  {n:4d}"
        )
    groups = [*((name, values) for name, values in found.items() if name), ("all", sum(found.values(), []))]
    for name, values in groups if len(tasks) > 1 else []:
        tops, lasts = zip(*values, strict=True)
        lines.append(
            f"{'mean of ' + str(len(values)):<{width}}  {name:<10}         {mean(tops):.3f}          {mean(lasts):.3f}"
        )
    for row in rows:
        lines += remarks(row, f"{row['task_id']}, seed {row['seed']}")
    return "\n".join(lines)


@final
@dataclass(frozen=True)
class Training:
    """What trains an cell, in a process of its own; picklable.

    Args:
        out: Folder of the protocol.
        train: (cell, store, run folder), going on where an earlier call stopped.
    """

    out: Path
    train: Callable[[Cell, Path, Path], None]

    def __call__(self, cell: Cell) -> str:
        """Train, with all that is printed in <run>.log; what went wrong, "" for nothing.

        Args:
            cell: What to train.
        """
        log = cell.log(self.out)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file, redirect_stdout(file), redirect_stderr(file):
            try:
                self.train(cell, cell.store(self.out), cell.run(self.out))
            except (ValueError, RuntimeError, OSError) as error:
                traceback.print_exc()
                return f"{cell}: {error}; see {log}"
        return ""


def train_all(
    cells: Sequence[Cell],
    out: Path,
    *,
    collect: Callable[[str, Path], None],
    train: Callable[[Cell, Path, Path], None],
    steps: Mapping[str, int],
    workers: int,
) -> None:
    """Collect and train what is missing; a killed protocol goes on where it was.

    Args:
        cells: In the order in which they begin.
        out: Folder of the protocol.
        collect: (task id, store to write).
        train: Trains one entry; picklable.
        steps: arm -> at which its training is complete.
        workers: Trainings at a time.

    Raises:
        RuntimeError: Naming the trainings that failed, after all others.
    """
    for cell in cells:
        if not (store := cell.store(out)).exists():
            collect(cell.task_id, store)
    missing = [cell for cell in cells if trained_steps(cell.run(out)) < steps[cell.arm]]
    with tqdm(
        total=len(cells), initial=len(cells) - len(missing), desc="trainings", unit="run", disable=not missing
    ) as bar:
        failed = []
        for outcome in run_all(Training(out, train), missing, workers=workers) if missing else ():
            cell, own = outcome.job, outcome.result
            bar.set_postfix_str(str(cell))
            bar.update()
            wrong = own or ""
            if outcome.error:
                wrong = f"{cell}: {outcome.error}; see {cell.log(out)}"
            elif not wrong and (reached := trained_steps(cell.run(out))) < steps[cell.arm]:
                wrong = f"{cell.run(out)} stopped at step {reached} of {steps[cell.arm]} (`max_hours`)"
            failed += [wrong] if wrong else []
    if failed:
        raise RuntimeError(
            f"{len(failed)} of {len(missing)} trainings failed; leave them out with `only=[...]`, or mend and "
            "run it again: " + "; ".join(failed)
        )


def require_same(file: Path, words: Sequence[str], recipes: Mapping[str, str]) -> None:
    """Keep what was asked for in `file`, or raise ValueError where it holds something else.

    Args:
        file: JSON, in the protocol's folder.
        words: As they were typed.
        recipes: Name of what is trained -> digest of all its numbers, which a file of defaults may change though the
            words stay; names that are new are added.
    """
    record = {"words": sorted(words), "recipes": dict(recipes)}
    before = read_object(file, {"words": list}) if file.exists() else record
    known = before["recipes"] if isinstance(before.get("recipes"), dict) else {}
    provenance.require_same(
        {"words": _by_key(before["words"]), "recipes": known},
        {"words": _by_key(words), "recipes": {name: recipes[name] for name in recipes if name in known}},
        where=str(file.parent),
        whole=("words.",),
        fix=lambda key, old: (
            "choose another `out=`, or the same words"
            if key.startswith("words.")
            else "all numbers count, also of an edited yaml or another version of flowpolicy; choose another `out=`"
        ),
    )
    write_json(file, record | {"recipes": known | record["recipes"]})


def _by_key(words: Sequence[str]) -> dict[str, str]:
    parted = (str(word).partition("=") for word in words)
    return {key: value for key, _, value in parted}
