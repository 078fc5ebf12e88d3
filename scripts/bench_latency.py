"""Batch-1 latency of the presets without a checkpoint: python scripts/bench_latency.py [net=unet1d] [num_steps=1] ...

net=mlp          of configs/policy/net      num_steps=1      threads=1      repeats=500
experiment=…     instead of net: a recipe on Meta-World's point clouds, such as mp1_metaworld or mp1_metaworld_small
The policy is untrained, without experiment= of the quickstart's shapes (PickCube). Prints what `flowpolicy bench`
prints of a checkpoint, and predict, the prepared policy and, with the extra `export`, the ONNX bundle taking turns.
"""

import sys
import tempfile
from pathlib import Path

import torch
from bench_cloud_training import METAWORLD

from flowpolicy.checkpoint import create_policy
from flowpolicy.cli import config
from flowpolicy.deploy.export import require_export, write_bundle
from flowpolicy.deploy.runtime import OnnxPolicy
from flowpolicy.embodiment import Embodiment, KeySpec
from flowpolicy.evaluation.certificate import compare_latency, format_latency
from flowpolicy.inference.bench import bench, describe_processor, format_bench
from flowpolicy.inference.latency import example_observation
from flowpolicy.policy import FlowPolicy

DEFAULTS = {"net": "mlp", "experiment": "", "num_steps": "1", "threads": "1", "repeats": "500"}


def quickstart_policy(net: str = "mlp") -> FlowPolicy:
    """The default policy on PickCube's state observation: 9 joint positions, 24 other numbers, 8 actions."""
    embodiment = Embodiment(
        robot="panda",
        obs={"agent_pos": KeySpec((9,)), "env_state": KeySpec((24,))},
        action=KeySpec((8,)),
        action_kind="joint_position",
        control_hz=20.0,
        action_low=(-3.0,) * 8,
        action_high=(3.0,) * 8,
        reference_key="agent_pos",
        reference_index=(*range(7), -1),
    )
    settings = config.plain(config.load("train", ["dataset.path=none", "task=maniskill", f"policy/net={net}"]))
    return create_policy(settings["policy"], embodiment).eval().requires_grad_(False)


def cloud_policy(experiment: str) -> FlowPolicy:
    """A recipe's policy on the clouds and hand states of Meta-World."""
    settings = config.plain(config.load("train", ["dataset.path=none", f"experiment={experiment}"]))
    return create_policy(settings["policy"], METAWORLD).eval().requires_grad_(False)


def main(argv: list[str]) -> int:
    """Measure and print."""
    given = dict(argument.split("=", 1) for argument in argv if "=" in argument)
    if len(given) != len(argv) or set(given) - set(DEFAULTS):
        print(__doc__, file=sys.stderr)
        return 2
    options = DEFAULTS | given
    threads, num_steps, repeats = (int(options[name]) for name in ("threads", "num_steps", "repeats"))
    torch.set_num_threads(threads)
    policy = cloud_policy(options["experiment"]) if options["experiment"] else quickstart_policy(options["net"])
    obs = example_observation(policy)
    print(f"{describe_processor()['processor']}, {sum(p.numel() for p in policy.parameters()):,} parameters")
    print(format_bench([bench(policy, obs, num_steps=num_steps, repeats=repeats)]))
    try:
        require_export()
    except ImportError as error:
        print(error)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        write_bundle(policy, Path(folder), num_steps=num_steps)
        bundle = OnnxPolicy(folder, threads=threads)
        print(format_latency(compare_latency(policy, bundle, obs, repeats=repeats)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
