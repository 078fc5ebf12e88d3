"""flowpolicy sweep: every policy on every task at every number of steps; resumable, in processes, one page.

  flowpolicy sweep checkpoints=[runs/dm1,runs/mp1] num_steps=[1,2,4] out=runs/sweep workers=2
  flowpolicy sweep checkpoints=[runs/multi] task=metaworld tasks=[push-v3,assembly-v3] seeds=[100000,200000] out=s
  flowpolicy sweep checkpoints=[runs/a,runs/b] num_steps=[1,10] part=$SLURM_ARRAY_TASK_ID/8 out=/shared/sweep
  flowpolicy sweep checkpoints=[runs/a] samplers=[jump,heun] num_steps=[2,4] out=runs/solvers

  checkpoints=[DIR,…]    run or checkpoint folders (required)      names=[A,B] one per checkpoint, instead of its path
  tasks=[ID,…]           ids of task=…'s family (or the checkpoint's own), or FAMILY/ID; default: each checkpoint on
                         its own task.  Other task words (task.max_episode_steps=…) hold for all
  num_steps=[1]          network evaluations per chunk; a head that does not take so many is left out there
  samplers=[jump,heun]   how chunks are drawn, an arm each (see `flowpolicy evaluate --help`), or one: sampler=heun;
                         default: as in training, else jump
  seeds=[100000]         first seeds of blocks of episodes=50
  workers=1              processes, with one simulator each
  part=1/1               I/N: every N-th cell (policy × task × num_steps × block) only. N jobs of a cluster may share
                         out=; whichever finishes last writes the page
  may_differ=[]   allow_seen_seeds=false   see `flowpolicy compare --help`
  out=DIR (required)     device=auto   threads=1 (of each process)   trusted=[]   edited=false
Run it again after a kill, or with more checkpoints, steps, tasks or seeds: finished episodes are kept.
A cell that fails stops no other; it is named with its error, and the same command tries it again. (workers=1 runs in
this process: a simulator that crashes it ends the sweep. With workers=2 it ends its cell.)
All arms run the same seeds, so each pair on a task is tested as by `flowpolicy compare`.
Of more than 100 arms per task all pairs are tested, and those with the first and the most successful arms shown.
Exit codes: 0 done, 1 a cell failed, 2 bad input, or no cell could be run.
Writes results.jsonl (a line per episode, in the order they finish), latency.jsonl, sweep.json, sweep.md and sweep.html.
"""

import re
from pathlib import Path
from typing import Any

import torch

from flowpolicy.cli import config
from flowpolicy.cli.remedies import speaker
from flowpolicy.cli.sweep_arms import sweep_arms
from flowpolicy.cli.tasks import without_task
from flowpolicy.evaluation.sweep import Grid, sweep
from flowpolicy.report.sweep_page import format_failed, format_sweep


def main(argv: list[str]) -> int:
    """Run what is missing; print the table and where everything lies."""
    return run(config.plain(config.load("sweep", without_task(argv))), argv)


def run(facts: dict[str, Any], words: list[str]) -> int:
    """Run what is missing; print the table and where everything lies; the exit code.

    Args:
        facts: The composed sweep.yaml, plain.
        words: That may name another task.
    """
    if facts["out"] is None:
        raise ValueError("where to? pass out=DIR, for example out=runs/sweep")
    if not (part := re.fullmatch(r"(\d+)/(\d+)", facts["part"])):
        raise ValueError(f"part must be I/N, for example 2/8, got {facts['part']!r}")
    grid = Grid(facts["seeds"], facts["episodes"], facts["workers"], int(part[1]), int(part[2]))
    torch.set_num_threads(facts["threads"])
    out = Path(facts["out"]).absolute()
    arms, unreadable = sweep_arms(words, facts)
    found = sweep(
        arms,
        out=out,
        grid=grid,
        device=str(config.pick_device(facts["device"])),
        threads=facts["threads"],
        trusted_modules=facts["trusted"],
        edited=facts["edited"],
        failed=unreadable,
        may_differ=facts["may_differ"],
        allow_seen_seeds=facts["allow_seen_seeds"],
    )
    if found.left_out:
        names = ", ".join(dict.fromkeys(found.left_out))
        print(f"left out, since the head does not take that sampler, or that many steps: {names}")
    say = speaker("sweep")
    if found.waits:
        say("\n".join([*format_failed(found.failed), f"part {facts['part']} is done, others are not", str(out)]))
    else:
        say(f"{format_sweep(found.comparisons, failed=found.failed)}\n{out / 'sweep.json'}\n{out / 'sweep.html'}")
    return 1 if found.failed else 0
