"""flowpolicy evaluate: seeded rollouts of a checkpoint, with a 95 % interval and batch-1 latency.

  flowpolicy evaluate checkpoint=runs/pick
  flowpolicy evaluate checkpoint=runs/pick num_steps=[1,2,4,10] video=4
  flowpolicy evaluate checkpoint=runs/pick sampler=heun num_steps=8
  flowpolicy evaluate checkpoint=runs/pick/checkpoints/004000 task=maniskill task.id=PickCube-v1 episodes=500 out=eval

  checkpoint=DIR     run folder (its best, else its last checkpoint), checkpoint or folder of save_policy (required)
  task=… task.id=…   another task with the same embodiment; default: the one in the checkpoint
  episodes=100       on seeds start_seed, start_seed+1, …      start_seed=100000
  num_steps=K        network evaluations per chunk; a list evaluates each, in a folder steps_<K> of its own; default: as
                     in training (eval.num_steps, or what a fine-tuned policy was made for), 1 unless said otherwise
  sampler=NAME       how chunks are drawn: jump (num_steps network evaluations), heun (2 num_steps - 1), hybrid,
                     ancestral (diffusion heads), warm_start (begins at the last chunk); sampler.tau=0.2 and the like
                     set its numbers; its folder is NAME_steps_<K>; default: as in training (eval.sampler), else jump
  envs=2             parallel simulators; the result does not depend on it
  video=0            record the first so many episodes
  demonstrations=PATH   store for the chunk picture; default: the training data, if it is still there
  out=DIR            default: RUN_DIR/evaluation/<checkpoint>/steps_<K>, with the task's id before steps_<K> if it is
                     not the checkpoint's own      device=auto   threads=1
  allow_seen_seeds=false   true: also seeds that the policy has seen, those of its demonstrations or that chose the
                     checkpoint (both are in its config.json); table, page and summary.json then say so
  trusted=[]         your own packages whose encoders, nets, heads or simulators the checkpoint names: it may run them
  edited=false       true takes a checkpoint whose files are not as they were saved
A folder appears whole, with results.jsonl, summary.json, latency.json, chunks.json and videos/. After a kill the same
command goes on at the episode where it was, and a finished evaluation is not done again (more videos are added); other
seeds, numbers, weights or versions need another out=. n and success are of episodes that were not solved at reset.
"""

from pathlib import Path

import torch

from flowpolicy.checkpoint import Checkpoint
from flowpolicy.cli import config
from flowpolicy.cli.samplers import samplers_for
from flowpolicy.cli.tasks import make_task, with_task, without_task
from flowpolicy.evaluation.chunk_panels import training_data
from flowpolicy.evaluation.evaluate import evaluate, evaluation_folders, format_table


def main(argv: list[str]) -> int:
    """Evaluate, print the table and where everything lies."""
    about = config.plain(config.load("evaluate", without_task(argv)))
    checkpoint = Checkpoint.open(about["checkpoint"])
    own = checkpoint.task
    cfg = config.load("evaluate", with_task(argv, own, trusted=about["trusted"]))
    facts = config.plain(cfg)
    task = facts["task"]
    foreign = None if (task["name"], task["id"]) == (own.get("name"), own.get("id")) else task["id"]
    several = samplers_for(facts, checkpoint)
    samplers = several if isinstance(facts["num_steps"], list) else several[0]
    torch.set_num_threads(cfg.threads)
    evaluations = evaluate(
        checkpoint,
        make_task(cfg),
        outs=evaluation_folders(checkpoint.folder, samplers, out=Path(cfg.out) if cfg.out else None, task_id=foreign),
        episodes=cfg.episodes,
        start_seed=cfg.start_seed,
        envs=cfg.envs,
        video=cfg.video,
        device=config.pick_device(cfg.device),
        demonstrations=Path(cfg.demonstrations) if cfg.demonstrations else training_data(checkpoint.record),
        trusted_modules=facts["trusted"],
        edited=facts["edited"],
        allow_seen_seeds=cfg.allow_seen_seeds,
    )
    print(format_table([one.summary for one in evaluations]))
    for one in evaluations:
        print(one.out)
    return 0
