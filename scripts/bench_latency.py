"""Batch-1 latency of a policy beside its net's own forward pass: python scripts/bench_latency.py [checkpoint=DIR] ...

checkpoint=DIR   run or checkpoint folder; default: an untrained policy of the quickstart's shapes (PickCube)
experiments=A,B  untrained policies of these recipes on Meta-World's clouds instead, one after the other, and how many
                 times longer the first takes: experiments=mp1_metaworld,mp1_metaworld_small
num_steps=1      threads=1      repeats=500      device=cpu
"""

import sys

import torch
from bench_cloud_training import METAWORLD

from flowpolicy.checkpoint import create_policy, load_policy
from flowpolicy.cli import config
from flowpolicy.deploy.latency import example_observation, measure_latency
from flowpolicy.embodiment import Embodiment, KeySpec
from flowpolicy.policy import FlowPolicy

DEFAULTS = {"checkpoint": "", "experiments": "", "num_steps": "1", "threads": "1", "repeats": "500", "device": "cpu"}


def quickstart_policy() -> FlowPolicy:
    """The default policy on PickCube's state observation: 9 joint positions, 24 other numbers, 8 actions."""
    embodiment = Embodiment(
        robot="panda", obs={"agent_pos": KeySpec((9,)), "env_state": KeySpec((24,))}, action=KeySpec((8,)),
        action_kind="joint_position", control_hz=20.0, action_low=(-3.0,) * 8, action_high=(3.0,) * 8,
        reference_key="agent_pos", reference_index=(*range(7), -1),
    )  # fmt: skip
    settings = config.plain(config.load("train", ["dataset.path=none", "task=maniskill"]))
    return create_policy(settings["policy"], embodiment).eval().requires_grad_(False)


def cloud_policy(experiment: str) -> FlowPolicy:
    """An untrained policy of a recipe for Meta-World's point clouds."""
    settings = config.plain(config.load("train", [f"experiment={experiment}", "dataset.path=none"]))
    return create_policy(settings["policy"], METAWORLD).eval().requires_grad_(False)


def report(name: str, policy: FlowPolicy, options: dict[str, str]) -> float:
    """Measure one policy and print it; the median of its predict, ms."""
    device = policy.action_low.device
    found = measure_latency(policy, example_observation(policy, device), num_steps=int(options["num_steps"]),
                            repeats=int(options["repeats"]))  # fmt: skip
    size = sum(parameter.numel() for parameter in policy.parameters())
    print(f"{name or 'policy'} ({size:,} parameters), {found.device}, {found.threads} thread(s), "
          f"num_steps={found.num_steps}, batch 1, ms, {len(found.samples_ms)} repeats")  # fmt: skip
    print(f"{'':<18}{'p50':>9}{'p95':>9}{'p99':>9}{'max':>9}")
    rows = {"predict": found.predict, "bare net (floor)": found.floor} | found.stages
    for row, times in rows.items():
        print(f"{row:<18}" + "".join(f"{times[p]:9.3f}" for p in ("p50", "p95", "p99", "max")))
    times = found.predict["p50"] / found.floor["p50"]
    print(f"overhead {found.overhead:.0%} of predict, which takes {times:.3f} times as long as the bare net")
    return found.predict["p50"]


def main(argv: list[str]) -> int:
    """Measure and print."""
    given = dict(argument.split("=", 1) for argument in argv if "=" in argument)
    if len(given) != len(argv) or set(given) - set(DEFAULTS):
        print(__doc__, file=sys.stderr)
        return 2
    options = DEFAULTS | given
    torch.set_num_threads(int(options["threads"]))
    device = config.pick_device(options["device"])
    if options["experiments"]:
        policies = {name: cloud_policy(name) for name in options["experiments"].split(",")}
    else:
        policies = {"": load_policy(options["checkpoint"]) if options["checkpoint"] else quickstart_policy()}
    medians = [report(name, policy.to(device), options) for name, policy in policies.items()]
    if len(medians) > 1:
        print(f"{next(iter(policies))} takes {medians[0] / medians[-1]:.1f} times as long as {list(policies)[-1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
