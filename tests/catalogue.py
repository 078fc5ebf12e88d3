"""Small policies of every encoder, net and head in the catalogue of yaml files, for tests that must hold for all."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from flowpolicy.checkpoint import create_policy, save_policy
from flowpolicy.cli import config
from flowpolicy.embodiment import CloudSpec, Embodiment, KeySpec
from flowpolicy.paths import config_dir
from flowpolicy.policy import FlowPolicy
from flowpolicy.seeding import stream

CLOUD = CloudSpec(points=24, crop_low=(-0.3, 0.4, 0.0), crop_high=(0.3, 0.9, 0.2))
SEEING = Embodiment(
    robot="seeing arm",
    obs={
        "agent_pos": KeySpec((4,), "m", "world"),
        "point_cloud": KeySpec(CLOUD.shape, "m", "world", cloud=CLOUD),
        "env_state": KeySpec((2,), "m", "world"),
        "image_front": KeySpec((40, 36, 3), dtype="uint8"),
    },
    action=KeySpec((3,), "m"),
    action_kind="eef_delta",
    control_hz=20.0,
    action_low=(-1.0, -1.0, -1.0),
    action_high=(1.0, 1.0, 1.0),
    reference_key="agent_pos",
    reference_index=(0, 1, -1),
)
SEEN_BY = {
    "state": ["agent_pos", "env_state"],
    "point_cloud": ["agent_pos", "point_cloud"],
    "point_cloud_relative": ["agent_pos", "point_cloud"],
    "resnet18": ["agent_pos", "image_front"],
    "vit": ["agent_pos", "point_cloud", "image_front"],
}
_SMALL = {
    "mlp": ["width=32", "depth=2"],
    "unet1d": ["dims=[16,24]", "time_dim=16"],
    "joint_transformer": ["dim=32", "depth=2", "heads=2"],
}
_SIZES = ("unet1d_mp1", "unet1d_dp3", "joint_transformer_small", "joint_transformer_uca")  # the same classes
_VARIANTS = {"net": ["joint_transformer:cross", "joint_transformer:adaln"]}


def options(group: str) -> list[str]:
    """What `policy_config` takes for a group, e.g. "head": the yaml files, one per class of net."""
    files = (path.stem for path in (config_dir() / "policy" / group).glob("*.yaml"))
    return sorted({*files} - {*_SIZES} | {*_VARIANTS.get(group, [])})


def policy_config(
    *, encoder: str = "state", net: str = "mlp", head: str = "meanflow", words: Sequence[str] = (), **changes: Any
) -> dict[str, Any]:
    """What `create_policy` takes.   words: of the command line; `changes` go to build_policy."""
    net, _, attention = net.partition(":")
    small = [f"policy.net.{word}" for word in _SMALL.get(net, [])]
    small += [f"policy.net.attention={attention}"] * bool(attention)
    parts = [f"policy/encoder={encoder}", f"policy/net={net}", f"policy/head={head}", "dataset.path=none", *small]
    node = config.plain(config.load("train", [*parts, *words]))["policy"]
    own = {"horizon": 8, "obs_horizon": 2, "action_horizon": 4, "action_representation": "relative"}
    return {**node, **own, "obs_keys": SEEN_BY[encoder], **changes}


def catalogue_policy(*, seed: int = 0, **parts: Any) -> FlowPolicy:
    """Random weights and normalisers that are none of them trivial, in evaluation mode; `parts` as `policy_config`."""
    torch.manual_seed(seed)
    policy = create_policy(policy_config(**parts), SEEING).eval().requires_grad_(False)
    for normalizer in (policy.action_normalizer, *(policy.normalizer(key) for key in policy.normalized_keys)):
        normalizer.scale.uniform_(1.5, 4.0)
        normalizer.offset.uniform_(-0.5, 0.5)
    policy.set_chunk_range(torch.tensor([-1.3, -0.7, -2.0]), torch.tensor([1.7, 0.8, 2.0]))
    return policy


def observations(policy: FlowPolicy, batch: int = 1, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random observations of the policy's keys, key -> (B, To, ...)."""
    generator = stream(seed, "observations")
    obs = {}
    for key in policy.obs_keys:
        spec = policy.embodiment.obs[key]
        value = torch.rand(batch, policy.obs_horizon, *spec.shape, generator=generator)
        obs[key] = (255 * value).byte() if spec.dtype == "uint8" else value
    return obs


def toy_run(folder: Path) -> Path:
    """`folder` as a run folder with an untrained checkpoint of the toy task, which allows 20 steps."""
    from flowpolicy_envs.toy import make_env

    torch.manual_seed(0)
    settings = ["dataset.path=none", "task=toy", "task.max_episode_steps=20", "policy.net.width=16"]
    facts = config.plain(config.load("train", settings))
    policy = create_policy(facts["policy"], make_env("two-ways", max_episode_steps=20).embodiment)
    dataset = {"path": str(folder.parent / "gone.zarr"), "hash": "x"}
    save_policy(policy, folder / "checkpoints" / "000010" / "policy", facts={"task": facts["task"], "dataset": dataset})
    (folder / "checkpoints" / "last").symlink_to("000010")
    return folder
