"""flowpolicy sweep: every policy on every task at every number of steps; resumable, in processes, one page.

  flowpolicy sweep checkpoints=[runs/dm1,runs/mp1] num_steps=[1,2,4] out=runs/sweep workers=2
  flowpolicy sweep checkpoints=[runs/multi] task=metaworld tasks=[push-v3,assembly-v3] seeds=[100000,200000] out=s
  flowpolicy sweep checkpoints=[runs/a,runs/b] num_steps=[1,10] part=$SLURM_ARRAY_TASK_ID/8 out=/shared/sweep

  checkpoints=[DIR,…]    run or checkpoint folders (required)      names=[A,B] one per checkpoint, instead of its path
  tasks=[ID,…]           ids of task=…'s family (or the checkpoint's own), or FAMILY/ID; default: each checkpoint on
                         its own task.  Other task words (task.max_episode_steps=…) hold for all
  num_steps=[1]          network evaluations per chunk; a head that does not take so many is left out there
  seeds=[100000]         first seeds of blocks of episodes=50
  workers=1              processes, with one simulator each
  part=1/1               I/N: every N-th cell (policy × task × num_steps × block) only. N jobs of a cluster may share
                         out=; whichever finishes last writes the page
  out=DIR (required)     device=auto   threads=1 (of each process)   trusted=[]   edited=false
Run it again after a kill, or with more checkpoints, steps, tasks or seeds: finished episodes are kept.
All arms run the same seeds, so each pair on a task is tested as by `flowpolicy compare`.
Writes results.jsonl (a line per episode, in the order they finish), latency.jsonl, sweep.json, sweep.md and sweep.html.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from flowpolicy.checkpoint import resolve_checkpoint
from flowpolicy.cli import config
from flowpolicy.cli.tasks import task_for, without_task
from flowpolicy.evaluation.arms import Arm, arm_names
from flowpolicy.evaluation.sweep import Grid, sweep
from flowpolicy.evaluation.sweep_page import format_sweep
from flowpolicy.paths import config_dir


def main(argv: list[str]) -> int:
    """Run what is missing; print the table and where everything lies."""
    facts = config.plain(config.load("sweep", without_task(argv)))
    if facts["out"] is None:
        raise ValueError("where to? pass out=DIR, for example out=runs/sweep")
    if not (part := re.fullmatch(r"(\d+)/(\d+)", facts["part"])):
        raise ValueError(f"part must be I/N, for example 2/8, got {facts['part']!r}")
    grid = Grid(facts["seeds"], facts["episodes"], facts["workers"], int(part[1]), int(part[2]))
    torch.set_num_threads(facts["threads"])
    out = Path(facts["out"]).absolute()
    comparisons, left_out = sweep(
        _arms(argv, facts), out=out, grid=grid, device=str(config.pick_device(facts["device"])),
        threads=facts["threads"], trusted_modules=facts["trusted"], edited=facts["edited"],
    )  # fmt: skip
    if left_out:
        print(f"left out, since the head does not take that many steps: {', '.join(dict.fromkeys(left_out))}")
    if comparisons:
        print(f"{format_sweep(comparisons)}\n{out / 'sweep.json'}\n{out / 'sweep.html'}")
    else:
        print(f"part {facts['part']} is done, others are not\n{out}")
    return 0


def _arms(argv: list[str], facts: dict[str, Any]) -> list[Arm]:
    """Tasks outermost, then checkpoints, then steps: simulators change least often. Names are per task."""
    if not (isinstance(facts["checkpoints"], list) and facts["checkpoints"] and facts["num_steps"]):
        raise ValueError("checkpoints and num_steps must be lists, as in checkpoints=[runs/a,runs/b] num_steps=[1,4], "
                         f"got {facts['checkpoints']} and {facts['num_steps']}")  # fmt: skip
    steps = facts["num_steps"]
    arms, places = [], []
    for wanted in facts["tasks"] or [""]:
        family, slash, rest = wanted.partition("/")
        known = bool(slash) and (config_dir() / "task" / f"{family}.yaml").is_file()
        words = [*argv, *([f"task={family}", f"task.id={rest}"] if known else [f"task.id={wanted}"] if wanted else [])]
        for place in map(Path, facts["checkpoints"]):
            checkpoint = resolve_checkpoint(place)
            task, settings = task_for("sweep", checkpoint, words)
            arms += [Arm("", k, Path(), checkpoint, task, settings) for k in steps]
            places += [place] * len(steps)
    names = arm_names(places, [arm.num_steps for arm in arms], labels=facts["names"] or (),
                      task_ids=[arm.task.id for arm in arms if arm.task])  # fmt: skip
    return [replace(arm, name=name) for arm, name in zip(arms, names, strict=True)]
