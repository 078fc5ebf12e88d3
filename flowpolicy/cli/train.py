"""flowpolicy train: imitation. Demonstrations in, a one-step policy out.

  flowpolicy train dataset.path=demos.zarr out=runs/pick
  flowpolicy train dataset.path=demos.zarr policy/head=meanflow trainer.steps=8000
  flowpolicy train -m seed=0,1,2 dataset.path=toy.zarr 'out=runs/toy_${seed}'
  flowpolicy train dataset.path=assembly.zarr policy/encoder=point_cloud policy/head=mp1_small trainer.batch_size=64

  dataset.path=PATH          store from `flowpolicy data collect` (required)
  task=toy|reach|maniskill|metaworld|own   task.id=...   task.obs=state   default: what the store says that it is of; to
                             train on demonstrations of one task as another is refused. Demonstrations of a task of
                             your own, which has no simulator here: task.env=null; which has one of your own:
                             task=own task.id=NAME task.env._target_=my_package.make_env +task.env.ARGUMENT=VALUE
  policy/head=...            the first of a line is the method, the others published or smaller settings of it
      meanflow|dm1|dm1_legacy|mp1|mp1_released|mp1_small|omp   imf_dual|uca   alpha_flow|ofp
      shortcut|shortcut_published   consistency|consistency_published   flow_matching|flow_matching_published
      drift|dbp   diffusion|dp3   regression   mip|idp
  policy/times=one_step|whole_path|logit_normal|uniform   flow times in training, in place of the head's own numbers
  policy/weighting=adaptive|squared_error                 and the weight of its errors; the same for every head
  policy/net=mlp|unet1d|unet1d_mp1|unet1d_dp3|joint_transformer|joint_transformer_small|joint_transformer_uca
  policy/encoder=state|point_cloud|point_cloud_relative|resnet18|vit
  policy.horizon=16   policy.obs_horizon=1   policy.action_horizon=12   policy.action_representation=...
  trainer.steps   trainer.batch_size   trainer.lr   trainer.eval_every   trainer.checkpoint_every   ...
  dataset.val_episodes=0     keep the last so many from training; logs val/loss and val/action_mse
  dataset.max_outside=0.01   refuse a store with more of its steps' actions outside the declared bounds
  dataset.in_memory=auto|true|false   false, and auto where it does not fit: mapped from a file (dataset.cache=FOLDER)
  trainer.obs_noise   trainer.augment.image_shift   trainer.augment.point_jitter_m   ...   disturb what it sees
  out=DIR (default runs/<task>/<id>/<time>)   seed=0   device=auto   threads=1
  -m KEY=A,B …   a run per combination; one that fails stops no other, and the exit code is how many did
  resume=true    go on from the newest checkpoint of out=DIR, bit for bit; starts fresh where there is none. Data, seed,
                 policy, trainer and threads must be the run's; trainer.steps may differ, but the learning rate then
                 jumps to the cosine that ends there. So may trainer.log_every, eval_every, checkpoint_every, keep_best.
                 Where the newest checkpoint is damaged, an older one is taken and a warning says so
  trainer.max_hours=H        write a checkpoint and end after so long. SIGTERM does it too, with exit code 143
  trusted=[]     your own packages whose simulator the store names; what the words name themselves runs anyway
  debug=true     every stage in seconds, with 2 episodes where the task has a simulator (task.env=null: it has none)
  wandb.enabled=true         offline without a key or a network; metrics.jsonl is always written
  experiment=NAME            a named recipe
Any number of a head or net can be set too: policy.head.p_equal=0.25 policy.net.width=1024
What is seen goes with an encoder, and with the view that the demonstrations were collected with (task.view.points=...):
  task.obs=state         policy/encoder=state
  task.obs=point_cloud   policy/encoder=point_cloud|point_cloud_relative (each point also relative to the hand)
  task.obs=rgb           policy/encoder=vit|resnet18 (vit is the light one; policy.encoder.image.weights=FILE starts
                         resnet18 from torchvision's)
"""

import os
from datetime import datetime
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig

from flowpolicy.checkpoint import create_policy
from flowpolicy.cli import config, store_task
from flowpolicy.cli.jobs import require_own_folders, run_jobs
from flowpolicy.cli.makers import maker
from flowpolicy.cli.samplers import sampler_named
from flowpolicy.cli.start import start_run
from flowpolicy.data.residence import Residence
from flowpolicy.data.store import EpisodeStore
from flowpolicy.files import claim_folder
from flowpolicy.spec import packages
from flowpolicy.trainers.imitate import SimulatorCheck, train
from flowpolicy.trainers.imitation import TrainerSettings


def main(argv: list[str]) -> int:
    """Train once, or once per combination with -m; those are all looked at before the first one trains."""
    words = config.expand(argv)
    jobs = [(*store_task.load(overrides), overrides) for overrides in words]
    require_own_folders([Path(cfg.out) if cfg.out else None for cfg, _, _ in jobs])
    return run_jobs(jobs, lambda job: run(*job), words) if jobs[1:] else run(*jobs[0])


def run(cfg: DictConfig, store: EpisodeStore, overrides: list[str]) -> int:
    """Train once; the exit code, 0.

    Args:
        cfg: The composed train.yaml.
        store: Of its dataset.path.
        overrides: What was typed, for the run's record.
    """
    facts = config.plain(cfg)
    settings = TrainerSettings.from_dict(facts["trainer"])
    torch.set_num_threads(cfg.threads)
    device = config.pick_device(cfg.device)
    has_check = facts["task"].get("env") and (settings.eval_every or cfg.debug)
    sampler = sampler_named(facts["eval"]["sampler"] or "jump", facts["eval"]["num_steps"])
    numbers = {**facts["eval"], "sampler": sampler}
    check = SimulatorCheck(maker(cfg.task, "env"), **numbers) if has_check else None
    if settings.eval_every and not has_check:
        raise ValueError(f"trainer.eval_every={settings.eval_every} needs a simulator, but task.env is null; use 0")
    dataset = {"path": str(Path(cfg.dataset.path).absolute()), "hash": store.content_hash()}
    kept = {"task": facts["task"], "dataset": dataset, "num_steps": facts["eval"]["num_steps"]}
    default = Path("runs", cfg.task.name, cfg.task.id, f"{datetime.now():%Y-%m-%d_%H-%M-%S}")
    out = Path(cfg.out).absolute() if cfg.out else claim_folder(default).absolute()

    if facts["eval"]["sampler"]:
        kept["sampler"] = sampler.to_dict()
    trusted = packages(facts["policy"])  # whoever typed it trusts them, which a checkpoint does not get to say
    try:
        trained = train(
            create_policy(facts["policy"], store.require_record(), trusted_modules=trusted, seed=cfg.seed).to(device),
            store,
            facts=kept,
            out=out,
            settings=settings,
            start=partial(
                start_run, "train", cfg, overrides, out, facts=facts, device=device, dataset_hash=dataset["hash"]
            ),
            seed=cfg.seed,
            check=check,
            val_episodes=cfg.dataset.val_episodes,
            mask_padding=cfg.dataset.mask_padding,
            max_outside=cfg.dataset.max_outside,
            residence=Residence(cfg.dataset.in_memory, cfg.dataset.cache),
            obs_mode=facts["normalization"]["obs"],
            action_mode=facts["normalization"]["action"],
            resume=cfg.resume,
            debug=cfg.debug,
        )
    finally:
        if not cfg.out and not any(out.iterdir()):
            os.removedirs(default)  # relative: it stops at runs/, and at the first folder that holds anything
    where = f"metrics     {out / 'metrics.jsonl'}\ncheckpoint  {trained.checkpoint}\nrun         {out}"
    stopped = f"stopped     after trainer.max_hours={settings.max_hours} at step {trained.step} of {settings.steps}; "
    print(where if trained.finished else f"{stopped}resume=true goes on\n{where}")
    return 0
