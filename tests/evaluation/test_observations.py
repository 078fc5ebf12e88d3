"""Observations to measure on: the ones that the policy sees, with their history, and what their clouds cost."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium")

from flowpolicy.data.store import EpisodeStore  # noqa: E402
from flowpolicy.embodiment import CloudSpec, Embodiment, KeySpec  # noqa: E402
from flowpolicy.encoders.multimodal import MultiModalEncoder  # noqa: E402
from flowpolicy.encoders.pointnet import PointNet  # noqa: E402
from flowpolicy.encoders.resnet import ResNet18  # noqa: E402
from flowpolicy.encoders.state import StateEncoder  # noqa: E402
from flowpolicy.evaluation.chunk_panels import RecordingPolicy  # noqa: E402
from flowpolicy.evaluation.observations import observe_simulator, observe_store  # noqa: E402
from flowpolicy.heads.regression import RegressionHead  # noqa: E402
from flowpolicy.nets.mlp import ResidualMLP  # noqa: E402
from flowpolicy.pointcloud.cloud import make_cloud, unproject  # noqa: E402
from flowpolicy.policy import FlowPolicy, build_policy  # noqa: E402
from flowpolicy.rollout.episodes import run_episodes  # noqa: E402
from flowpolicy.rollout.vector_env import make_vector_env  # noqa: E402
from tests.helpers import small_policy, write_store  # noqa: E402
from tests.rollout.counting import EMBODIMENT, CountingEnv, length  # noqa: E402


def policy_for(embodiment: Embodiment, obs_horizon: int = 2) -> FlowPolicy:
    torch.manual_seed(0)
    seeing = partial(MultiModalEncoder, point=PointNet, image=ResNet18)
    encoder = seeing if "point_cloud" in embodiment.obs else StateEncoder
    return build_policy(
        embodiment=embodiment,
        encoder=encoder,
        net=partial(ResidualMLP, width=8, depth=1),
        head=RegressionHead,
        horizon=4,
        obs_horizon=obs_horizon,
        action_horizon=2,
    ).eval()


def test_every_control_step_gives_one_with_the_history_that_the_policy_sees() -> None:
    policy, env = policy_for(EMBODIMENT), make_vector_env(CountingEnv, 1)
    seen = observe_simulator(policy, env, count=6, start_seed=10)
    (value,) = seen.obs.values()
    assert value.shape == (6, 2, 3) and length(10) == 4
    assert value[:, :, 0].tolist() == [[0, 0], [0, 1], [1, 2], [2, 3], [3, 4], [0, 0]]  # the first one is repeated
    assert value[:, -1, 1].tolist() == [10] * 5 + [11]
    assert seen.preprocess_ms == {} and seen.source == "6 observations of 2 episodes in the simulator"
    recorder = RecordingPolicy(policy)
    run_episodes(recorder, env, [10])
    chunks = [obs["agent_pos"][0] for obs in recorder.seen]  # at steps 0 and 2: chunks of two
    assert torch.equal(torch.stack(chunks), value[[0, 2]])
    assert torch.equal(seen.one(3)["agent_pos"], value[3:4])


CLOUD = CloudSpec(points=8, crop_low=(-1.0, -1.0, 0.0), crop_high=(1.0, 1.0, 3.0), voxel_m=0.01)


class CloudEnv(CountingEnv):
    """Sees a wall through two cameras."""

    embodiment = Embodiment(
        robot="counter",
        obs={"point_cloud": KeySpec(CLOUD.shape, "m", "world", cloud=CLOUD)},
        action=KeySpec((1,)),
        action_kind="number",
        control_hz=10.0,
        action_low=(-100.0,),
        action_high=(100.0,),
    )
    observation_space = CountingEnv.observation_space.__class__(
        {"point_cloud": CountingEnv.observation_space["agent_pos"].__class__(-9.0, 9.0, CLOUD.shape, np.float32)}
    )

    def observe(self, last_action):
        matrix = np.array([[20.0, 0.0, 8.0], [0.0, 20.0, 8.0], [0.0, 0.0, 1.0]])
        views = [unproject(np.full((16, 16), depth), matrix, np.eye(4)) for depth in (1.0, 2.0)]
        return {"point_cloud": make_cloud(np.concatenate(views), CLOUD)}


def test_what_clouds_cost_is_noted_per_observation() -> None:
    policy, env = policy_for(CloudEnv.embodiment, 1), make_vector_env(CloudEnv, 1)
    seen = observe_simulator(policy, env, count=5, start_seed=0)
    assert list(seen.preprocess_ms) == ["unproject", "crop", "thin", "sample"]
    assert all(len(times) == 5 and min(times) > 0 for times in seen.preprocess_ms.values())


def test_a_store_gives_observations_spread_over_all_of_it(tmp_path: Path) -> None:
    policy, path = small_policy(), write_store(tmp_path / "demos.zarr", episodes=3, steps=20)
    seen = observe_store(policy, path, count=10)
    position = EpisodeStore.open(path).load("agent_pos")
    rows = np.linspace(0, 59, 10).astype(int)
    np.testing.assert_array_equal(seen.obs["agent_pos"][:, -1], position[rows])
    assert seen.source == "10 observations of demos.zarr" and seen.preprocess_ms == {}
    assert len(observe_store(policy, path, count=999).obs["agent_pos"]) == 60


def test_another_embodiment_is_refused(tmp_path: Path) -> None:
    path = write_store(tmp_path / "demos.zarr")
    with pytest.raises(ValueError, match="checkpoint and dataset disagree"):
        observe_store(policy_for(EMBODIMENT), path, count=3)
    with pytest.raises(ValueError, match="policy and environment disagree"):
        observe_simulator(small_policy(), make_vector_env(CountingEnv, 1), count=3, start_seed=0)
