"""Validation, rollouts beside the training and rollouts of its checkpoint see every frame as it was taken."""

from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from flowpolicy.checkpoint import load_policy
from flowpolicy.data.augment import Augmentation
from flowpolicy.data.dataset import SequenceDataset
from flowpolicy.embodiment import Embodiment, KeySpec
from flowpolicy.encoders.base import Encoder
from flowpolicy.heads.regression import RegressionHead
from flowpolicy.nets.mlp import ResidualMLP
from flowpolicy.policy import FlowPolicy, build_policy
from flowpolicy.rollout.episodes import run_episodes
from flowpolicy.rollout.vector_env import make_vector_env
from flowpolicy.tracking import JsonlTracker
from flowpolicy.trainers.checkpoints import Checkpoints
from flowpolicy.trainers.fitting import fit_normalizers
from flowpolicy.trainers.imitate import SimulatorCheck
from flowpolicy.trainers.imitation import ImitationTrainer, TrainerSettings
from flowpolicy.trainers.validation import Validation
from flowpolicy.types import Observation

KEYS = {
    "agent_pos": KeySpec((3,)),
    "point_cloud": KeySpec((20, 3)),
    "image": KeySpec((12, 16, 3), dtype="uint8"),
}
EMBODIMENT = Embodiment("eye", KEYS, KeySpec((2,)), "velocity", 10.0, (-1.0, -1.0), (1.0, 1.0))
EVERYTHING = Augmentation(image_crop=0.7, point_jitter_m=0.05, point_dropout=0.5, rotation_deg=10.0)


def frame(number: int) -> dict[str, np.ndarray]:
    """What is seen at a time: random, and fixed by a number."""
    rng = np.random.default_rng(number)
    return {
        "agent_pos": rng.normal(size=3).astype(np.float32),
        "point_cloud": rng.normal(size=(20, 3)).astype(np.float32),
        "image": rng.integers(0, 256, (12, 16, 3), dtype=np.uint8),
    }


class Theatre(gymnasium.Env):
    """Shows frame 1000 x seed + step, for six steps."""

    embodiment = EMBODIMENT
    observation_space = spaces.Dict(
        {
            key: spaces.Box(0, 255, spec.shape, np.uint8)
            if spec.dtype == "uint8"
            else spaces.Box(-np.inf, np.inf, spec.shape, np.float32)
            for key, spec in KEYS.items()
        }
    )
    action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.number, self.last = 1000 * seed, 1000 * seed + 6
        return frame(self.number), {}

    def step(self, action):
        self.number += 1
        return frame(self.number), 0.0, False, self.number == self.last, {"success": False}


class Witness(Encoder):
    """Remembers what every copy of it is shown: frames, and whether for a gradient."""

    testimony: list[tuple[bool, Observation]] = []

    def __init__(self, *, obs_shapes: dict[str, tuple[int, ...]], obs_horizon: int) -> None:
        super().__init__()
        self.weight, self.feature_dim = torch.nn.Parameter(torch.ones(3)), obs_horizon * obs_shapes["agent_pos"][0]

    def forward(self, obs: Observation) -> Tensor:
        Witness.testimony.append((torch.is_grad_enabled(), {key: value.clone() for key, value in obs.items()}))
        return (self.weight * obs["agent_pos"]).flatten(1)


def unseen(policy: FlowPolicy, testimony: list[Observation], numbers: range) -> dict[str, int]:
    """How many of the shown values of each key belong to none of the frames `numbers`, and how many were shown."""
    counts = {}
    for key in KEYS:
        true = torch.from_numpy(np.stack([frame(number)[key] for number in numbers]))
        true = policy.normalizer(key)(true) if key in policy.normalized_keys else true
        known = {row.numpy().tobytes() for row in true}
        shown = [row.numpy().tobytes() for obs in testimony for row in obs[key].flatten(0, 1)]
        counts[key] = sum(row not in known for row in shown)
    return counts


@pytest.fixture
def trainer(tmp_path: Path) -> ImitationTrainer:
    policy = build_policy(
        embodiment=EMBODIMENT,
        encoder=Witness,
        net=partial(ResidualMLP, width=16),
        head=RegressionHead,
        horizon=4,
        obs_horizon=2,
        action_horizon=2,
    )
    frames = [frame(number) for number in range(40)]
    obs = {key: torch.from_numpy(np.stack([one[key] for one in frames])) for key in KEYS}
    action = torch.rand(40, 2, generator=torch.Generator().manual_seed(0))
    dataset = SequenceDataset(obs, action, [20, 40], horizon=4, obs_horizon=2)
    fit_normalizers(policy, dataset)
    Witness.testimony.clear()
    return ImitationTrainer(
        policy,
        dataset,
        settings=TrainerSettings(
            steps=2, batch_size=8, checkpoint_every=1, eval_every=1, obs_noise=0.1, augment=EVERYTHING, precision="fp32"
        ),
        checkpoints=Checkpoints(tmp_path / "checkpoints", facts={}),
        tracker=JsonlTracker(tmp_path / "metrics.jsonl"),
        seed=0,
        evaluate=SimulatorCheck(Theatre, episodes=2, start_seed=1),
        validate=Validation(dataset, seed=0),
        progress=False,
    )


def test_only_what_is_seen_for_a_gradient_is_disturbed(trainer: ImitationTrainer, tmp_path: Path) -> None:
    trainer.run()
    trainer.tracker.close()
    learning = [obs for gradient, obs in Witness.testimony if gradient]
    judging = [obs for gradient, obs in Witness.testimony if not gradient]
    frames = range(3000)  # of the data (0 to 39) and of the episodes (1000 to 1006, 2000 to 2006)
    assert len(learning) == 2 and unseen(trainer.policy, learning, frames) == dict.fromkeys(KEYS, 2 * 8 * 2)
    assert len(judging) == 2 * (2 + 2 * 3)  # each time: twice in validation, three chunks in each of two episodes
    assert unseen(trainer.policy, judging, frames) == dict.fromkeys(KEYS, 0)

    policy = load_policy(tmp_path, trusted_modules=[Witness.__module__.partition(".")[0]])
    Witness.testimony.clear()  # of the zeros on which building tries it, too
    run_episodes(policy, make_vector_env(Theatre, 1), [5, 6, 7])
    assert len(Witness.testimony) == 9
    assert unseen(policy, [obs for _, obs in Witness.testimony], range(5000, 7010)) == dict.fromkeys(KEYS, 0)
