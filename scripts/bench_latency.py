"""Batch-1 latency of a policy beside its net's own forward pass: python scripts/bench_latency.py [checkpoint=DIR] ...

checkpoint=DIR   run or checkpoint folder; default: an untrained policy of the quickstart's shapes (PickCube)
num_steps=1      threads=1      repeats=500      device=cpu
"""

import sys

import torch

from flowpolicy.checkpoint import create_policy, load_policy
from flowpolicy.cli import config
from flowpolicy.deploy.latency import example_observation, measure_latency
from flowpolicy.embodiment import Embodiment, KeySpec
from flowpolicy.policy import FlowPolicy

DEFAULTS = {"checkpoint": "", "num_steps": "1", "threads": "1", "repeats": "500", "device": "cpu"}


def quickstart_policy() -> FlowPolicy:
    """The default policy on PickCube's state observation: 9 joint positions, 24 other numbers, 8 actions."""
    embodiment = Embodiment(
        robot="panda", obs={"agent_pos": KeySpec((9,)), "env_state": KeySpec((24,))}, action=KeySpec((8,)),
        action_kind="joint_position", control_hz=20.0, action_low=(-3.0,) * 8, action_high=(3.0,) * 8,
        reference_key="agent_pos", reference_index=(*range(7), -1),
    )  # fmt: skip
    settings = config.plain(config.load("train", ["dataset.path=none", "task=maniskill"]))
    return create_policy(settings["policy"], embodiment).eval().requires_grad_(False)


def main(argv: list[str]) -> int:
    """Measure and print."""
    given = dict(argument.split("=", 1) for argument in argv if "=" in argument)
    if len(given) != len(argv) or set(given) - set(DEFAULTS):
        print(__doc__, file=sys.stderr)
        return 2
    options = DEFAULTS | given
    torch.set_num_threads(int(options["threads"]))
    device = config.pick_device(options["device"])
    policy = load_policy(options["checkpoint"]) if options["checkpoint"] else quickstart_policy()
    policy = policy.to(device)
    report = measure_latency(policy, example_observation(policy, device), num_steps=int(options["num_steps"]),
                             repeats=int(options["repeats"]))  # fmt: skip
    print(f"{report.device}, {report.threads} thread(s), num_steps={report.num_steps}, batch 1, ms")
    print(f"{'':<18}{'p50':>9}{'p95':>9}{'p99':>9}{'max':>9}")
    rows = {"predict": report.predict, "bare net (floor)": report.floor} | report.stages
    for name, row in rows.items():
        print(f"{name:<18}" + "".join(f"{row[p]:9.3f}" for p in ("p50", "p95", "p99", "max")))
    print(f"overhead {report.overhead:.0%} of predict")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
