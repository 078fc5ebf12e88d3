"""What a type checker sees of the exported names; pyright reads this file in every `scripts/test`."""

from typing import assert_type

import numpy as np
import torch

from flowpolicy import (
    Checkpoint,
    Embodiment,
    FlowPolicy,
    KeySpec,
    MemoryStore,
    Trained,
    build_policy,
    load_policy,
    save_policy,
    train,
)
from flowpolicy.data import EpisodeStore
from flowpolicy.deploy import OnnxPolicy
from flowpolicy.encoders import StateEncoder
from flowpolicy.heads import MeanFlowHead
from flowpolicy.nets import ResidualMLP
from flowpolicy.pointcloud import make_cloud
from flowpolicy.statistics import wilson_interval


def build(embodiment: Embodiment) -> FlowPolicy:
    """The parts of a policy by their exported names."""
    policy = build_policy(embodiment=embodiment, encoder=StateEncoder, net=ResidualMLP, head=MeanFlowHead)
    assert_type(policy, FlowPolicy)
    assert_type(policy.predict({"state": torch.zeros(1, 1, 3)}), torch.Tensor)
    return policy


def on_disk(folder: str, bundle: OnnxPolicy, points: np.ndarray) -> None:
    """Of every kind one: a function, a class, a class without torch."""
    assert_type(load_policy(folder), FlowPolicy)
    assert_type(Checkpoint.open(folder).embodiment, Embodiment)
    assert_type(EpisodeStore.open(folder).embodiment, Embodiment | None)
    assert_type(bundle.embodiment, Embodiment)
    assert_type(wilson_interval(3, 4), tuple[float, float])
    cloud = KeySpec((512, 3)).cloud
    assert cloud is not None
    assert_type(make_cloud(points, cloud), np.ndarray)
    save_policy(load_policy(folder), folder, overwrite=True)


def trained(states: list[np.ndarray], actions: list[np.ndarray]) -> Trained:
    """Arrays in, a policy out."""
    demos = MemoryStore({"state": states}, actions, control_hz=10)
    assert_type(demos.embodiment, Embodiment)
    result = train(build(demos.embodiment), demos, steps=10)
    assert_type(result, Trained)
    assert_type(result.policy, FlowPolicy)
    return result
