"""flowpolicy bench: does the policy keep up with the robot on this machine? Nothing moves.

  flowpolicy bench checkpoint=runs/pick
  flowpolicy bench checkpoint=runs/pick num_steps=[1,2,4,10] hz=50 cpus=[3]
  flowpolicy bench checkpoint=runs/pick sampler=heun num_steps=4
  flowpolicy bench checkpoint=runs/assembly task=metaworld task.id=assembly-v3 task.obs=point_cloud

  checkpoint=DIR     run folder (its best, else its last checkpoint), checkpoint or folder of save_policy (required)
  hz=…               control steps per second; default: the embodiment's
  num_steps=K        network evaluations per chunk; a list measures each; default: as in training, mostly 1
  sampler=NAME       how chunks are drawn: jump, heun, hybrid, ancestral, warm_start; default: as in training, else jump
  task=… task.id=…   observations from this simulator, and the time per stage of making their clouds (unproject, crop,
                     thin, sample). Without it: a black observation, and no such stages
  threads=1          CPU threads of torch       cpus=[N,…]    processors to stay on      device=auto
  repeats=500        measured calls, after warmup=50, taking turns
  observations=64    of the simulator            start_seed=100000
  trusted=[]         your own packages whose encoders, nets, heads or simulators the checkpoint names: it may run them
  edited=false       true takes a checkpoint whose files are not as they were saved
  out=DIR            default: RUN_DIR/bench/<checkpoint>
Prints and writes to bench.json the percentiles per stage (encode, head, decode), of predict, of what prepare(policy)
makes of it and of the bare net, the share of predictions that take longer than one control step, and what to do.
"""

from pathlib import Path

import torch

from flowpolicy.checkpoint import Checkpoint
from flowpolicy.cli import config
from flowpolicy.cli.samplers import samplers_for
from flowpolicy.cli.tasks import make_task, with_task, without_task
from flowpolicy.inference.bench import bench, describe_processor, format_bench, pin_to
from flowpolicy.inference.latency import example_observation
from flowpolicy.json_files import write_json
from flowpolicy.provenance import versions


def main(argv: list[str]) -> int:
    """Measure, print the tables and where bench.json lies."""
    facts = config.plain(config.load("bench", without_task(argv)))
    checkpoint = Checkpoint.open(facts["checkpoint"])
    samplers = samplers_for(facts, checkpoint)
    torch.set_num_threads(facts["threads"])
    if facts["cpus"] is not None:
        pin_to(facts["cpus"])
    policy = checkpoint.policy(
        device=config.pick_device(facts["device"]), trusted_modules=facts["trusted"], edited=facts["edited"]
    )
    device, preprocess_ms, task = policy.device, None, None
    obs, source = example_observation(policy, device), "zeros"
    if without_task(argv) != argv:
        from flowpolicy.evaluation.observations import observe_simulator
        from flowpolicy.rollout.vector_env import make_vector_env

        cfg = config.load("bench", with_task(argv, checkpoint.task, trusted=facts["trusted"]))
        env = make_vector_env(make_task(cfg).make_env, 1)
        try:
            seen = observe_simulator(policy, env, count=cfg.observations, start_seed=cfg.start_seed)
        finally:
            env.close()
        obs = {key: value.to(device) for key, value in seen.one(0).items()}
        preprocess_ms, source, task = seen.preprocess_ms, seen.source, {"name": cfg.task.name, "id": cfg.task.id}
    reports = [
        bench(
            policy,
            obs,
            sampler=sampler,
            hz=facts["hz"],
            preprocess_ms=preprocess_ms,
            warmup=facts["warmup"],
            repeats=facts["repeats"],
        )
        for sampler in samplers
    ]
    folder = checkpoint.folder
    inside = folder.parent.name == "checkpoints"
    default = folder.parents[1] / "bench" / folder.name if inside else folder / "bench"
    about = {
        "checkpoint": str(folder),
        "task": task,
        "observations": source,
        **describe_processor(),
        "versions": versions(),
        "reports": reports,
    }
    print(format_bench(reports))
    print(write_json((Path(facts["out"]) if facts["out"] else default).absolute() / "bench.json", about))
    return 0
