"""flowpolicy finetune: reinforcement learning with PPO. A policy that half works in, a better one out.

  flowpolicy finetune checkpoint=runs/push out=runs/push_rl
  flowpolicy finetune checkpoint=runs/push experiment=rl_metaworld out=runs/push_rl
  flowpolicy finetune checkpoint=runs/reach experiment=rl_toy loop.iterations=30 out=runs/reach_rl

  checkpoint=DIR     run folder, checkpoint or folder of save_policy (required); its task is the default
  task=… task.id=…   another task with the same embodiment; single keys too: task.max_episode_steps=100
  exploration=flow_noise|flow_noise_wide|flow_noise_4|renoise|flow_sde|flow_sde_1|langevin   how it explores; any number
                     of it: exploration.std_max=0.3
  reward.env=0  reward.success=1  reward.terminate_on_success=true   what is rewarded per step
  envs=32   workers=2        simulators, and the processes that they share
  batched=true   task=maniskill from states: all envs as one batch on a GPU, in the place of processes
  rl.total_steps=N           control steps, in the place of loop.iterations
  loop.iterations  loop.decisions  loop.eval_every  loop.checkpoint_every   ppo.actor_lr  ppo.clip_high  ppo.bc_weight …
  ppo.advantage=gae|group     group: GRPO, no critic; loop.decisions must span an episode   ppo.group_size=8
  actor.rows=auto|executed|all   actor.log_prob_reduction=sum|mean   actor.freeze_encoder=false
  eval.episodes=50  eval.start_seed=50000      noise-free evaluations, which choose `best`
  preflight.episodes=50  preflight.min_success=0.03   before: ratio, gradients, success with noise; 0 episodes: none
  receipt.episodes=100  receipt.start_seed=100000     after: before and after on unseen seeds, receipt.html; 0: none
  out=DIR (default runs/<task>/<id>_rl/<time>)   seed=0   device=auto   threads=1   wandb.enabled=false
  resume=true    go on from the newest checkpoint of out=DIR, bit for bit on the CPU
  loop.max_hours=H   write a checkpoint and end after so long; so does SIGTERM, with exit code 143. All episodes begin
                 anew there, as at every checkpoint, so a run that was stopped in between differs from one that was not
  debug=true     every stage in seconds
  trusted=[]     your own packages whose encoders, nets, heads or simulators the checkpoint names: it may run them
  edited=false   true takes a checkpoint whose files are not as they were saved
The policy that comes out has no noise and no critic: every other verb takes it.
"""

from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig

from flowpolicy.checkpoint import Checkpoint
from flowpolicy.cli import config
from flowpolicy.cli.makers import maker
from flowpolicy.cli.remedies import speaker
from flowpolicy.cli.start import start_run
from flowpolicy.cli.tasks import with_task, without_task
from flowpolicy.files import claim_folder
from flowpolicy.rl.group import refuse_batch
from flowpolicy.rollout.batched_env import BatchedSimulator
from flowpolicy.trainers.finetune import finetune
from flowpolicy.trainers.finetune_settings import FinetuneSettings, shortened


def load(argv: list[str]) -> tuple[DictConfig, Checkpoint]:
    """The composed config, whose task is the checkpoint's own unless the words name another; and the checkpoint."""
    about = config.plain(config.load("finetune", without_task(argv)))
    checkpoint = Checkpoint.open(about["checkpoint"])
    return config.load("finetune", with_task(argv, checkpoint.task, trusted=about["trusted"])), checkpoint


def main(argv: list[str]) -> int:
    """Fine-tune, print where everything lies."""
    cfg, checkpoint = load(argv)
    facts = config.plain(cfg)
    settings = FinetuneSettings.from_dict(facts)
    settings = shortened(settings) if cfg.debug else settings
    make_batch = _batch(cfg)
    torch.set_num_threads(cfg.threads)
    device = config.pick_device(cfg.device)
    default = Path("runs", cfg.task.name, f"{cfg.task.id}_rl", datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
    env, exploration = maker(cfg.task, "env"), config.instantiate(cfg.exploration)
    out = Path(cfg.out).absolute() if cfg.out else claim_folder(default).absolute()

    last = finetune(
        checkpoint,
        env,
        exploration,
        out=out,
        settings=settings,
        make_batch=make_batch,
        start=partial(start_run, "finetune", cfg, argv, out, facts=facts, device=device),
        facts={
            "task": facts["task"],
            "finetune": {
                "checkpoint": str(cfg.checkpoint),
                "exploration": facts["exploration"],
                "batched": cfg.batched,
            },
        },
        seed=cfg.seed,
        device=device,
        resume=cfg.resume,
        trusted_modules=facts["trusted"],
        edited=cfg.edited,
        say=speaker("finetune"),
    )
    print(f"metrics     {out / 'metrics.jsonl'}\ncheckpoint  {last}\nrun         {out}")
    print(f"next        flowpolicy evaluate checkpoint={out}")
    return 0


def _batch(cfg: DictConfig) -> Callable[[int], BatchedSimulator] | None:
    """What batched=true asks for."""
    if not cfg.batched:
        return None
    if not cfg.task.get("batched") or cfg.task.get("obs", "state") != "state":
        raise ValueError("batched=true: only task=maniskill with task.obs=state simulates as one batch (task.batched)")
    refuse_batch(cfg.ppo.advantage)
    return config.instantiate(cfg.task.batched)
