"""flowpolicy compare: which policy is better? Common seeds, exact tests, a verdict in words, one page.

  flowpolicy compare runs/dm1 runs/mp1 out=runs/dm1_mp1
  flowpolicy compare runs/dm1 runs/flow_matching:10 episodes=200 out=runs/one_against_ten
  flowpolicy compare runs/flow_matching samplers=[jump,heun] num_steps=4 out=runs/solvers
  flowpolicy compare runs/new runs/old sequential=true max_episodes=500 require=not_beaten out=runs/gate

  DIR[:K] …          run, checkpoint or evaluation folders (required); K network evaluations per chunk. An evaluation
                     folder is taken as it is; the others are rolled out, all on seeds start_seed, start_seed+1, …
  num_steps=4        for each DIR without :K, in the place of its own; a list makes an arm of each
  samplers=[jump,heun]   how chunks are drawn, an arm each (see `flowpolicy evaluate --help`), or one for all:
                     sampler=heun; default: as in training, else jump
  task=… task.id=…   another task with the same embodiment; default: the checkpoints' own, which must be the same
  episodes=100       of each arm      start_seed=100000      envs=2 (the result does not depend on it)
  sequential=true    look every 20 episodes after the first `episodes`, leave out arms that are decided, stop when all
                     are, at the latest after max_episodes=500; the error rate holds however often it looks
  alpha=0.05         chance of calling any equal pair different, over all pairs (Holm)
  require=…          exit code 1 unless the first DIR is …   margin=0.05
                       better      it beats every other
                       no_worse    shown to be worse than no other by margin or more (95 % interval of the difference)
                       not_beaten  no other beats it
  may_differ=[]      arms must share the task's settings (but for what they see), the executed steps of a chunk and the
                     simulator's version; may_differ=[action_horizon] lets that differ
  allow_seen_seeds=false   true: also seeds of the demonstrations, or that chose the checkpoint; the result says so
  names=[A,B]        one per DIR      out=DIR (required)      device=auto   threads=1   trusted=[]   edited=false
Run it again after a kill or for more episodes: finished ones are kept. Seeds that are common to two arms are compared
pairwise (exact McNemar), seeds of their own by Barnard's test.
Writes compare.json, compare.html and, per arm, results.jsonl, summary.json, latency.json, chunks.json.
Exit codes: 0 done, 1 `require` not met, 2 bad input.
"""

import re
from pathlib import Path
from typing import Any

import torch

from flowpolicy.checkpoint import Checkpoint
from flowpolicy.cli import config
from flowpolicy.cli.remedies import speaker
from flowpolicy.cli.samplers import samplers_for
from flowpolicy.cli.tasks import task_for, without_task
from flowpolicy.evaluation.arms import Arm, arm_names, recorded_arm
from flowpolicy.evaluation.compare import Plan, compare
from flowpolicy.results.comparison import format_comparison
from flowpolicy.samplers.jump import Jump

_PLAN = (
    "episodes",
    "start_seed",
    "envs",
    "sequential",
    "max_episodes",
    "alpha",
    "require",
    "margin",
    "may_differ",
    "allow_seen_seeds",
)


def main(argv: list[str]) -> int:
    """Compare, print the verdicts and where everything lies."""
    words = [word for word in argv if re.match(r"[+~]*[\w./]+=|[+~](?!/)", word) and not Path(word).exists()]
    facts = config.plain(config.load("compare", without_task(words)))
    if facts["out"] is None:
        raise ValueError("where to? pass out=DIR, for example out=runs/compare")
    out = Path(facts["out"]).absolute()
    plan = Plan(**{name: facts[name] for name in _PLAN})
    torch.set_num_threads(facts["threads"])
    comparison = compare(
        _arms([word for word in argv if word not in words], words, facts, out),
        out=out,
        plan=plan,
        device=config.pick_device(facts["device"]),
        trusted_modules=facts["trusted"],
        edited=facts["edited"],
    )
    speaker("compare")(format_comparison(comparison))
    print(f"{out / 'compare.json'}\n{out / 'compare.html'}")
    return 1 if comparison.gate and not comparison.gate.passed else 0


def _arms(given: list[str], words: list[str], facts: dict[str, Any], out: Path) -> list[Arm]:
    """One arm per DIR:K, one per DIR, sampler and entry of num_steps, one per evaluation folder."""
    arms, places = [], []
    opened: dict[Path, Checkpoint] = {}
    for word in given:
        match = re.fullmatch(r"(.+):(\d+)", word)
        place = Path(match[1] if match else word).expanduser()
        if (place / "results.jsonl").is_file() and not match:
            found = [recorded_arm("", place)]
        else:
            if place not in opened:
                opened[place] = Checkpoint.open(place)
            checkpoint = opened[place]
            task, settings = task_for("compare", checkpoint, words, trusted=facts["trusted"])
            own = {**facts, "num_steps": int(match[2])} if match else facts
            found = [Arm("", one, Path(), checkpoint, task, settings) for one in samplers_for(own, checkpoint)]
        arms, places = arms + found, places + [place] * len(found)
    names = arm_names(places, [arm.sampler for arm in arms], labels=facts["names"] or ())
    plain = arm_names(places, [Jump()] * len(arms), labels=facts["names"] or ())
    return [
        Arm(
            name,
            arm.sampler,
            arm.folder if arm.task is None else out / "arms" / folder.replace("/", "_") / arm.drawn.folder,
            arm.checkpoint,
            arm.task,
            arm.conditions,
        )
        for name, folder, arm in zip(names, plain, arms, strict=True)
    ]
