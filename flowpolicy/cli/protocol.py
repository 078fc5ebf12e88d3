"""flowpolicy protocol: a published comparison's whole procedure: collect, train, evaluate; every task, every seed.

  flowpolicy protocol experiment=mp1_metaworld_small tasks=[assembly-v3] out=runs/mp1_small
  flowpolicy protocol experiment=mp1_metaworld tasks=all seeds=[0,1,2] out=runs/mp1
  flowpolicy protocol task=metaworld tasks=[hard,coffee-pull-v3] seeds=[0] trainer.eval_every=1200 out=runs/hard
  flowpolicy protocol experiment=heads_metaworld workers=2 out=runs/heads

  experiment=…           mp1_metaworld, dp3_metaworld, flowpolicy_metaworld: as published; the same with _small, and
                         regression_metaworld_small: at a size that trains on a CPU
                         heads_metaworld, nets_metaworld: arms (every head; nets times heads) against each other
  tasks=[ID,…]           ids, or easy, medium, hard, very_hard, all: Meta-World's 34; default: task.id
  seeds=[0,1,2]          of training; the seeds of a task share its demonstrations
  demonstrations=10      demonstration_seed=0   workers=1 (processes that collect)
  episodes=50            unseen ones for the last checkpoint, from start_seed=100000, in envs=2 simulators
  out=DIR                (required)
With arms (an experiment names them: arm -> words of `flowpolicy train`) each is trained on every task, workers= of them
at a time, and then all run the same seeds in a sweep: out/sweep/sweep.html.
  only=[ARM,…]           some of them           num_steps=[1]   network evaluations per chunk
It writes no results.jsonl of its own, and envs= does not count: each worker has one simulator.
Every key of `flowpolicy train` works too; without arms trainer.eval_every must be set, for the literature's convention.
Run it again after a kill: finished stages are skipped, training goes on bit for bit.
Writes results.jsonl, one line per task and seed: top5, the mean of the five best in-training evaluations (as DP3,
FlowPolicy and MP1 report), and success_once of the last checkpoint with its 95 % interval. Prints one table.
"""

import re
from pathlib import Path

import torch
from omegaconf import OmegaConf

from flowpolicy.checkpoint import Checkpoint
from flowpolicy.cli import config, data
from flowpolicy.cli.protocol_arms import Fit, run_arms
from flowpolicy.cli.samplers import samplers_for
from flowpolicy.cli.tasks import task_for, task_groups
from flowpolicy.evaluation.chunk_panels import training_data
from flowpolicy.evaluation.evaluate import evaluate, format_table
from flowpolicy.evaluation.protocol import Cell, Stages, format_protocol, run_protocol
from flowpolicy.provenance import recipe
from flowpolicy.trainers.imitate import DEBUG_STEPS

# what a rerun may change
_CELLS = (
    "tasks",
    "seeds",
    "out",
    "envs",
    "workers",
    "device",
    "threads",
    "only",
    "num_steps",
    "trainer.max_hours",
    "allow_seen_seeds",
)
_OWN = (
    "tasks",
    "seeds",
    "out",
    "envs",
    "workers",
    "demonstrations",
    "demonstration_seed",
    "episodes",
    "start_seed",
    "arms",
    "only",
    "num_steps",
    "allow_seen_seeds",
)


def main(argv: list[str]) -> int:
    """Finish what is missing; print the table and where the rows are."""
    facts = config.plain(config.load("protocol", [*argv, "dataset.path=none"]))
    if facts["out"] is None:
        raise ValueError("protocol: where to? pass out=DIR, for example out=runs/mp1")
    out = Path(facts["out"]).absolute()
    groups = task_groups(facts["task"]["name"])
    tasks = facts["tasks"] if isinstance(facts["tasks"], list) else [facts["tasks"] or facts["task"]["id"]]
    tasks = groups.expand(tasks) if groups else list(dict.fromkeys(tasks))
    words = [word for word in argv if re.split(r"[.=]", word)[0] not in _OWN]
    same = [word for word in argv if word.partition("=")[0] not in _CELLS]
    planned = config.load("train", [*words, "dataset.path=none"])

    def collect(task: str, store: Path) -> None:
        cfg = planned.copy()
        cfg.task.id = task
        wanted = {"episodes": facts["demonstrations"], "seed": facts["demonstration_seed"]}
        data.record(cfg.task, store, **wanted, workers=facts["workers"])

    if facts["arms"]:
        return run_arms(facts, words, tasks=tasks, out=out, collect=collect, same=same)
    if facts["only"] is not None or facts["num_steps"] is not None:
        raise ValueError(
            "protocol: only= and num_steps= choose among arms, and there are none; the steps of an "
            "evaluation are eval.num_steps"
        )
    if not facts["trainer"]["eval_every"]:
        raise ValueError(
            "protocol: the top-5 convention needs trainer.eval_every, for example a fifth of trainer.steps"
        )

    def measure(cell: Cell, run: Path, folder: Path) -> None:
        checkpoint = Checkpoint.open(run / "checkpoints" / "last")
        torch.set_num_threads(facts["threads"])
        evaluations = evaluate(
            checkpoint,
            task_for("evaluate", checkpoint, [], trusted=[])[0],
            outs={samplers_for({"num_steps": facts["eval"]["num_steps"], "trusted": []}, checkpoint)[0]: folder},
            device=config.pick_device(facts["device"]),
            demonstrations=training_data(checkpoint.record),
            **{name: facts[name] for name in ("episodes", "start_seed", "envs", "allow_seen_seeds")},
        )
        print(format_table([one.summary for one in evaluations]), folder, sep="\n")

    fit = Fit({"": OmegaConf.to_container(planned)}, {"": words})  # type: ignore[arg-type]
    cells = [Cell(task, seed) for task in tasks for seed in facts["seeds"]]
    steps = DEBUG_STEPS if facts["debug"] else facts["trainer"]["steps"]
    stages = Stages(lambda cell, store: collect(cell.task_id, store), fit, measure, steps)
    rows = run_protocol(cells, out, stages, words=same, recipe=recipe(facts))
    print(format_protocol(rows, groups.difficulty if groups else lambda task: ""))
    print(out / "results.jsonl")
    return 0
