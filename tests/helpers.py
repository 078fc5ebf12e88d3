"""Small real parts for tests: an embodiment, a policy over it, a store of random-walk episodes."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowpolicy.checkpoint import resolve_checkpoint
from flowpolicy.data.store import Episode, EpisodeWriter
from flowpolicy.embodiment import Embodiment, KeySpec
from flowpolicy.encoders.base import Encoder
from flowpolicy.encoders.state import StateEncoder
from flowpolicy.fingerprint import fingerprint
from flowpolicy.heads.meanflow import MeanFlowHead
from flowpolicy.nets.mlp import ResidualMLP
from flowpolicy.policy import FlowPolicy, build_policy

EMBODIMENT = Embodiment(
    robot="test arm",
    obs={"agent_pos": KeySpec((3,), "rad"), "env_state": KeySpec((2,), "m", "world")},
    action=KeySpec((3,), "rad, gripper unitless"),
    action_kind="joint_position",
    control_hz=20.0,
    action_low=(-2.0, -2.0, -1.0),
    action_high=(2.0, 2.0, 1.0),
    reference_key="agent_pos",
    reference_index=(1, 0, -1),
    gripper="-1 closed, 1 open",
)
POLICY_CONFIG = {
    "_target_": "flowpolicy.policy.build_policy",
    "horizon": 8,
    "obs_horizon": 2,
    "action_horizon": 4,
    "action_representation": "relative",
    "encoder": {"_target_": "flowpolicy.encoders.state.StateEncoder", "_partial_": True},
    "net": {"_target_": "flowpolicy.nets.mlp.ResidualMLP", "_partial_": True, "width": 32, "depth": 1},
    "head": {"_target_": "flowpolicy.heads.meanflow.MeanFlowHead", "_partial_": True},
}

RUNTIME_ALONE = """
import sys
absent = ("torch", "scipy", "hydra", "omegaconf", "safetensors", "tqdm", "zarr", "gymnasium", "onnx", "onnxscript")

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""  # the first lines of a program that sees what a robot has: numpy and onnxruntime


def last(run: Path) -> Path:
    """The last checkpoint of a run."""
    return resolve_checkpoint(run / "checkpoints/last")


def named(pointer: Path) -> str:
    """The folder that checkpoints/last or best names."""
    return pointer.read_text().strip()


needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile on a CPU needs g++")


class OwnEncoder(Encoder):
    """One of somebody else's package: sees the first key only."""

    def __init__(self, *, obs_shapes: dict[str, tuple[int, ...]], obs_horizon: int) -> None:
        super().__init__()
        self.key, shape = next(iter(obs_shapes.items()))
        self.feature_dim = obs_horizon * shape[0]

    def forward(self, obs: dict[str, torch.Tensor]) -> torch.Tensor:
        return obs[self.key].flatten(1)


def rerecord(file: Path, **changes: Any) -> None:
    """Change a checkpoint's config.json as if it had been saved so; without changes, take its files as they are."""
    record = json.loads(file.read_text()) | changes
    others = [path for path in sorted(file.parent.iterdir()) if path != file]
    file.write_text(json.dumps({**record, "fingerprint": fingerprint(record, file, others)}))


def small_policy(*, seed: int = 0, **changes) -> FlowPolicy:
    """Random weights; `changes` go to build_policy."""
    torch.manual_seed(seed)
    options = {
        "horizon": 8,
        "obs_horizon": 2,
        "action_horizon": 4,
        "action_representation": "relative",
        "head": MeanFlowHead,
        "embodiment": EMBODIMENT,
        **changes,
    }
    return build_policy(encoder=StateEncoder, net=partial(ResidualMLP, width=32), **options)


def observation(batch: int = 1, obs_horizon: int = 2) -> dict[str, torch.Tensor]:
    """Fixed random observations."""
    generator = torch.Generator().manual_seed(5)
    return {
        key: torch.randn(batch, obs_horizon, *spec.shape, generator=generator) for key, spec in EMBODIMENT.obs.items()
    }


def write_store(path: Path, *, episodes: int = 6, steps: int = 30) -> Path:
    """Smooth random episodes in EMBODIMENT."""
    rng = np.random.default_rng(0)
    with EpisodeWriter(path, EMBODIMENT, {"note": "test"}) as writer:
        for seed in range(episodes):
            position = rng.normal(0, 0.05, (steps, 3)).cumsum(axis=0).astype(np.float32)
            obs = {"agent_pos": position, "env_state": rng.normal(size=(steps, 2)).astype(np.float32)}
            action = np.clip(position[:, [1, 0, 2]] + 0.01, -1, 1)
            writer.add(Episode(obs, action, np.zeros(steps, np.float32), True, seed))
    return path
