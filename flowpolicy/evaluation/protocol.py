"""A protocol: demonstrations, training and evaluation for every (task, seed), in an order that survives a kill."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, pstdev
from typing import Any, NamedTuple, final

from flowpolicy.files import write_atomic
from flowpolicy.locks import only_writer
from flowpolicy.pointers import STEP_FILE, choose
from flowpolicy.records import read_object
from flowpolicy.results.folders import read_lines
from flowpolicy.results.seen_seeds import remarks
from flowpolicy.statistics.tests import wilson_interval
from flowpolicy.tracking import write_json

TOP = 5  # DP3, FlowPolicy and MP1 report the mean of the five best evaluations of a training run


class Cell(NamedTuple):
    """One training run: a task's id and the seed of weights, data order and noise."""

    task_id: str
    seed: int


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
    store, run = out / "demonstrations" / f"{cell.task_id}.zarr", out / cell.task_id / f"seed_{cell.seed}"
    evaluation = run / "evaluation" / "last"
    if not store.exists():
        stages.collect(cell, store)
    if trained_steps(run) < stages.steps:
        stages.train(cell, store, run)
        if (steps := trained_steps(run)) < stages.steps:
            raise ValueError(
                f"{run} stopped at step {steps} of {stages.steps} (trainer.max_hours); run it again to go on"
            )
    if not (evaluation / "summary.json").exists():
        stages.evaluate(cell, run, evaluation)
    return cell_row(cell, run, evaluation)


def trained_steps(run: Path) -> int:
    """Step of the newest checkpoint of a run folder, 0 without one."""
    last = choose(run / "checkpoints", "last", (STEP_FILE,))
    return read_object(last / STEP_FILE, {"step": int})["step"] if last is not None else 0


def cell_row(cell: Cell, run: Path, evaluation: Path) -> dict[str, Any]:
    """Both conventions for one cell: the top five of the in-training evaluations, and the last checkpoint's summary.

    top5 is optimistic: it picks checkpoints by the episodes that it reports. Fewer than five evaluations: all of them.

    Raises:
        ValueError: When training made none.
    """
    lines = read_lines(run / "metrics.jsonl")
    scores = [line["eval/success_once"] for line in lines if isinstance(line.get("eval/success_once"), float)]
    if not scores:
        raise ValueError(
            f"{run} has no in-training evaluation; set trainer.eval_every, here for example a fifth of "
            f"trainer.steps={trained_steps(run)}, and choose another out="
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


def require_same(file: Path, words: Sequence[str], recipes: Mapping[str, str]) -> None:
    """Keep what was asked for in `file`, or raise ValueError where it holds something else.

    Args:
        words: As they were typed.
        recipes: Name of what is trained -> digest of all its numbers, which a file of defaults may change though the
            words stay; names that are new are added.
    """
    record = {"words": sorted(words), "recipes": dict(recipes)}
    before = read_object(file, {"words": list}) if file.exists() else record
    if before["words"] != record["words"]:
        raise ValueError(
            f"{file.parent} was begun with {' '.join(before['words'])}, now {' '.join(record['words'])}; "
            "choose another out=, or the same words"
        )
    known = before["recipes"] if isinstance(before.get("recipes"), dict) else {}
    if changed := [name for name in recipes if known.get(name, recipes[name]) != recipes[name]]:
        what = f"other numbers of {', '.join(changed)}" if changed[0] else "other numbers"
        raise ValueError(
            f"{file.parent} was begun with {what} (an edited yaml, or another version of flowpolicy); "
            "choose another out="
        )
    write_json(file, record | {"recipes": known | record["recipes"]})
