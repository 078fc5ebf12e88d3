"""flowpolicy evaluate: seeded rollouts of a checkpoint, with a 95 % interval and batch-1 latency.

  flowpolicy evaluate checkpoint=runs/pick
  flowpolicy evaluate checkpoint=runs/pick num_steps=[1,2,4,10] video=4
  flowpolicy evaluate checkpoint=runs/pick/checkpoints/004000 task=maniskill task.id=PickCube-v1 episodes=500 out=eval

  checkpoint=DIR     run folder (its best, else its last checkpoint) or checkpoint folder (required)
  task=… task.id=…   another task with the same embodiment; default: the one in the checkpoint
  episodes=100       on seeds start_seed, start_seed+1, …      start_seed=100000
  num_steps=1        network evaluations per chunk; a list evaluates each, in a folder steps_<K> of its own
  envs=2             parallel simulators; the result does not depend on it
  video=0            record the first so many episodes
  demonstrations=PATH   store for the chunk picture; default: the training data, if it is still there
  out=DIR            default: RUN_DIR/evaluation/<checkpoint>/steps_<K>      device=auto   threads=1
Writes results.jsonl, summary.json, latency.json, chunks.json and videos/.
"""

import json
from pathlib import Path
from typing import Any

import torch

from flowpolicy.checkpoint import read_config, resolve_checkpoint
from flowpolicy.cli import config
from flowpolicy.evaluation.chunks import training_data
from flowpolicy.evaluation.evaluate import Task, evaluate, evaluation_folders, format_table


def main(argv: list[str]) -> int:
    """Evaluate, print the table and where everything lies."""
    about = config.plain(config.load("evaluate", [a for a in argv if not a.lstrip("+~").startswith("task")]))
    recorded = read_config(about["checkpoint"])
    cfg = config.load("evaluate", _with_task(argv, recorded["task"]))
    facts = config.plain(cfg)
    torch.set_num_threads(cfg.threads)
    folder = resolve_checkpoint(cfg.checkpoint)
    evaluations = evaluate(
        folder, Task(facts["task"]["name"], facts["task"]["id"], config.instantiate(cfg.task.env)),
        outs=evaluation_folders(folder, facts["num_steps"], out=Path(cfg.out) if cfg.out else None),
        episodes=cfg.episodes, start_seed=cfg.start_seed, envs=cfg.envs, video=cfg.video,
        device=config.pick_device(cfg.device),
        demonstrations=Path(cfg.demonstrations) if cfg.demonstrations else training_data(recorded),
    )  # fmt: skip
    print(format_table([one.summary for one in evaluations]))
    for one in evaluations:
        print(one.out)
    return 0


def _with_task(argv: list[str], recorded: dict[str, Any]) -> list[str]:
    """The overrides, led by the checkpoint's own task unless they name one; the yaml is ours, not the checkpoint's."""
    if any(argument.startswith("task=") for argument in argv):
        return argv
    scalars = {key: value for key, value in recorded.items() if key != "name" and not isinstance(value, dict | list)}
    return [f"task={recorded['name']}", *(f"task.{key}={json.dumps(value)}" for key, value in scalars.items()), *argv]
