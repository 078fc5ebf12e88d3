"""flowpolicy export: the policy as an ONNX bundle that runs without torch, with a certificate of what it is worth.

  flowpolicy export checkpoint=runs/pick out=bundle
  flowpolicy export checkpoint=runs/pick out=bundle dataset.path=pick.zarr episodes=0
  flowpolicy export checkpoint=runs/pick out=bundle_heun sampler=heun num_steps=2
  flowpolicy export checkpoint=runs/pick out=bundle4 num_steps=4 episodes=100

  checkpoint=DIR     run folder (its best, else its last checkpoint), checkpoint or folder of save_policy (required)
  out=DIR            bundle to write; must not exist (required)      overwrite=true replaces it
  format=onnx        the only one      num_steps=K      network evaluations, unrolled in the graph;
                     default: as in training, mostly 1
  sampler=NAME       jump or heun; those that draw noise on the way (hybrid, ancestral) or begin at the last chunk
                     (warm_start) fit no graph. Default: as in training, else jump
  dataset.path=PATH  store whose observations=256 the deviation from torch is measured on; default: the simulator's
  episodes=20        of the original and of the bundle on the same seeds (start_seed=100000); 0: none
  task=… task.id=…   simulator, with the same embodiment; default: the one in the checkpoint
  tolerance=1e-5     largest deviation, robot units      threads=1      repeats=500      trusted=[]
  edited=false       true takes a checkpoint whose files are not as they were saved
Writes policy.onnx (normalisers, encoder, head, decoding; the noise is an input), policy.json, embodiment.json,
preprocess.json and certificate.json: deviation, success of both, latency of both.

  from flowpolicy.deploy.runtime import OnnxPolicy     # numpy and onnxruntime; torch need not be installed
  chunk = OnnxPolicy("bundle").predict(obs)

Exit codes: 0 done, 1 the bundle deviates by more than the tolerance (none is written), 2 bad input.
"""

import sys
from pathlib import Path

import torch

from flowpolicy.checkpoint import Checkpoint
from flowpolicy.cli import config
from flowpolicy.cli.samplers import samplers_for
from flowpolicy.cli.tasks import make_task, with_task, without_task
from flowpolicy.deploy.export import refuse_existing, require_export
from flowpolicy.evaluation.certificate import ParityError, export_with_certificate, format_certificate
from flowpolicy.evaluation.observations import observe_simulator, observe_store
from flowpolicy.results.seen_seeds import seen_seeds
from flowpolicy.rollout.vector_env import make_vector_env
from flowpolicy.samplers.base import require_fixed, require_support


def main(argv: list[str]) -> int:
    """Export, print the certificate and the bundle's path."""
    facts = config.plain(config.load("export", without_task(argv)))
    require_export()
    if facts["format"] != "onnx":
        raise ValueError(f"format must be onnx, got {facts['format']}")
    checkpoint, out = Checkpoint.open(facts["checkpoint"]), Path(facts["out"]).absolute()
    (sampler,) = samplers_for(facts, checkpoint)
    require_fixed(sampler)
    for name, least in (("observations", 1), ("episodes", 0), ("threads", 1), ("repeats", 1)):
        if facts[name] < least:
            raise ValueError(f"{name} must be at least {least}, got {facts[name]}")
    refuse_existing(out, overwrite=facts["overwrite"])  # before a simulator starts
    torch.set_num_threads(facts["threads"])
    policy = checkpoint.policy(trusted_modules=facts["trusted"], edited=facts["edited"])
    require_support(sampler, policy.head)
    env, store, about = None, facts["dataset"]["path"], {"checkpoint": str(checkpoint.folder), "task": None}
    try:
        if store is None or facts["episodes"]:
            cfg = config.load("export", with_task(argv, checkpoint.task, trusted=facts["trusted"]))
            env = make_vector_env(make_task(cfg).make_env, 1)
            about["task"] = {"name": cfg.task.name, "id": cfg.task.id}
        count, first = facts["observations"], facts["start_seed"]
        seeds, own = range(first, first + facts["episodes"]), about["task"] or {}
        seen = seen_seeds(checkpoint.record, (own.get("name", ""), own.get("id", "")), seeds)
        if store is not None:
            observed = observe_store(policy, Path(store), count=count)
        else:
            assert env is not None
            observed = observe_simulator(policy, env, count=count, start_seed=first, sampler=sampler)
        certificate = export_with_certificate(
            policy,
            out,
            observed,
            sampler=sampler,
            facts=about,
            env=env,
            seeds=seeds,
            seen=seen,
            tolerance=facts["tolerance"],
            threads=facts["threads"],
            warmup=facts["warmup"],
            repeats=facts["repeats"],
            overwrite=facts["overwrite"],
        )
    except ParityError as error:
        print(format_certificate(error.certificate))
        print(f"flowpolicy export: {error}", file=sys.stderr)
        return 1
    finally:
        if env is not None:
            env.close()
    print(format_certificate(certificate))
    print(out)
    return 0
