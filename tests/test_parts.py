"""Somebody else's encoder, net and training loop: they work, and a mistake in them is named in Python's words."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flowpolicy import Batch, FlowPolicy, MemoryStore, build_policy, load_policy, save_policy, train
from flowpolicy.encoders import Encoder, StateEncoder
from flowpolicy.heads import FlowMatchingHead, MeanFlowHead
from flowpolicy.nets import Features, ResidualMLP, UNet1D, VelocityNet
from tests.helpers import EMBODIMENT, observation, small_policy


class OwnEncoder(Encoder):
    """Two layers over every state."""

    def __init__(self, *, obs_shapes: dict[str, tuple[int, ...]], obs_horizon: int, width: int = 8) -> None:
        super().__init__()
        self.keys, self.feature_dim = list(obs_shapes), width
        self.layers = nn.Linear(obs_horizon * sum(shape[0] for shape in obs_shapes.values()), width)

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        return self.layers(torch.cat([obs[key].flatten(1) for key in self.keys], dim=-1)).relu()


class OwnNet(VelocityNet):
    """One layer, with dropout, which must not draw while it is tried."""

    def __init__(self, *, action_dim: int, horizon: int, cond_dim: int, steps: int = 0) -> None:
        super().__init__()
        self.cond_dim, self.steps = cond_dim, steps
        self.size = (horizon + steps, action_dim)
        self.drop, self.layer = nn.Dropout(0.5), nn.Linear(horizon * action_dim + 2 + cond_dim, int(np.prod(self.size)))

    def forward_with_features(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> tuple[Tensor, Features]:
        hidden = self.drop(torch.cat([x_t.flatten(1), t[:, None], r[:, None], cond], dim=-1))
        return self.layer(hidden).unflatten(-1, self.size), {}


def build(**changes: Any) -> FlowPolicy:
    options = {"encoder": OwnEncoder, "net": OwnNet, "head": FlowMatchingHead, "horizon": 8, "action_horizon": 4}
    return build_policy(**{"embodiment": EMBODIMENT, "obs_horizon": 2, **options, **changes})


def test_parts_of_ones_own_are_trained_saved_and_loaded(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    obs = {key: [rng.normal(size=(12, *spec.shape)) for _ in range(2)] for key, spec in EMBODIMENT.obs.items()}
    store = MemoryStore(obs, [rng.uniform(-1, 1, size=(12, 3)) for _ in range(2)], embodiment=EMBODIMENT)
    policy = train(build(encoder=partial(OwnEncoder, width=6)), store, steps=3, progress=False).policy
    folder = save_policy(policy, tmp_path / "policy")
    with pytest.raises(ValueError, match=r"test_parts.OwnEncoder.*trusted_modules="):
        load_policy(folder)
    loaded = load_policy(folder, trusted_modules=[__name__.partition(".")[0]])
    assert torch.equal(loaded.predict(observation(2), noise="zero"), policy.predict(observation(2), noise="zero"))


def test_trying_a_part_changes_neither_modes_nor_random_numbers() -> None:
    torch.manual_seed(0)
    policy = build()
    after = torch.rand(1)
    torch.manual_seed(0)
    OwnEncoder(obs_shapes={key: spec.shape for key, spec in EMBODIMENT.obs.items()}, obs_horizon=2)
    OwnNet(action_dim=3, horizon=8, cond_dim=8)
    assert torch.equal(torch.rand(1), after)
    assert all(module.training for module in policy.modules())


class NoFeatures(OwnEncoder):
    """Gives one feature more than it says."""

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        return torch.cat([super().forward(obs), torch.ones(len(obs[self.keys[0]]), 1)], dim=-1)


class Unlike(nn.Module):
    """No part of ours."""

    def __init__(self, **shapes: Any) -> None:
        super().__init__()
        self.feature_dim = 4


class OtherKey(OwnEncoder):
    """Reads what the robot does not have."""

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        return self.layers(obs["image"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"encoder": OwnEncoder(obs_shapes={"a": (3,)}, obs_horizon=1)},
            r"encoder must be a class.*functools.partial\(",
        ),
        ({"encoder": Unlike}, "encoder Unlike must derive from flowpolicy.encoders.Encoder"),
        ({"net": Unlike}, "net Unlike must derive from flowpolicy.nets.VelocityNet"),
        ({"head": lambda net: Unlike()}, "head Unlike must derive from flowpolicy.heads.Head"),
        ({"encoder": NoFeatures}, r"NoFeatures must give float32 \(1, 8\) = \(B, feature_dim\).*got float32 \(1, 9\)"),
        ({"encoder": OtherKey}, "OtherKey failed where it should give .*'image'"),
        (
            {"net": partial(OwnNet, steps=2)},
            r"OwnNet must give float32 \(1, 8, 3\) = \(B, horizon, action_dim\).*10, 3",
        ),
        ({"net": lambda **shapes: OwnNet(**{**shapes, "cond_dim": 5})}, "net OwnNet must set self.cond_dim = cond_dim"),
        (
            {"net": lambda **shapes: ResidualMLP(**{**shapes, "horizon": 9})},
            r"net ResidualMLP must set self.shape = \(horizon, action_dim\) = \(8, 3\)",
        ),
    ],
)
def test_a_part_that_does_not_fit_is_named_when_the_policy_is_built(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"build_policy: {said}"):
        build(**changes)


def batch(**changes: Any) -> Batch:
    return Batch(observation(4), torch.zeros(4, 8, 3), torch.ones(4, 8))._replace(**changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"action": torch.zeros(4, 8, 2)}, r"action of the batch must be \(B, 8, 3\), got float32 \(4, 8, 2\)"),
        ({"action": torch.zeros(4, 6, 3)}, r"action of the batch must be \(B, 8, 3\)"),
        ({"mask": None}, r"mask of the batch must be \(B, 8\), got NoneType None"),
        ({"mask": torch.ones(4, 8, 1)}, r"mask of the batch must be \(B, 8\)"),
        ({"obs": {"agent_pos": torch.zeros(4, 2, 3)}}, "observation 'env_state' is missing"),
        (
            {"obs": {**observation(4), "agent_pos": torch.zeros(4, 1, 3)}},
            r"'agent_pos' of the batch must be \(4, 2, 3\)",
        ),
        ({"obs": {**observation(4), "agent_pos": torch.zeros(4, 3)}}, r"'agent_pos' of the batch must be \(4, 2, 3\)"),
        ({"obs": observation(3)}, r"of the batch must be \(4, 2, 3\), got float32 \(3, 2, 3\)"),
        ({"obs": {**observation(4), "agent_pos": np.zeros((4, 2, 3))}}, "got ndarray"),
    ],
)
def test_a_batch_of_other_shapes_is_refused_by_name(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        small_policy().loss(batch(**changes), torch.Generator())


@pytest.mark.parametrize("net", [partial(ResidualMLP, width=16, depth=1), partial(UNet1D, dims=(8, 16, 16))])
def test_a_head_alone_trains_in_a_loop_of_ones_own(net: Callable[..., VelocityNet]) -> None:
    torch.manual_seed(0)
    head = MeanFlowHead(net(action_dim=2, horizon=8, cond_dim=3))
    action, cond, mask = torch.rand(16, 8, 2) * 2 - 1, torch.rand(16, 3), torch.ones(16, 8)
    seed = torch.Generator().manual_seed(1)
    assert torch.equal(
        head(action, cond, mask, seed).loss, head.loss(action, cond, mask, torch.Generator().manual_seed(1)).loss
    )
    torch.manual_seed(2)
    first = head(action, cond)
    torch.manual_seed(2)
    assert torch.equal(first.loss, head(action, cond).loss)
    assert not torch.equal(first.loss, head(action, cond).loss)
    first.loss.backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


@pytest.mark.parametrize(
    ("action", "cond", "mask", "said"),
    [
        ((4, 8), (4, 3), None, r"action must be \(B, 8, 2\) = \(B, H, A\), as the net was made, got \(4, 8\)"),
        ((4, 9, 2), (4, 3), None, r"action must be \(B, 8, 2\)"),
        ((4, 8, 2), (4, 5), None, r"cond must be \(4, 3\) = \(B, cond_dim of the net\), got \(4, 5\)"),
        ((4, 8, 2), (3, 3), None, r"cond must be \(4, 3\)"),
        ((4, 8, 2), (4, 3), (4, 8, 2), r"mask must be \(4, 8\) = \(B, H\), got \(4, 8, 2\)"),
    ],
)
def test_a_head_alone_names_the_shape_that_is_wrong(action: Any, cond: Any, mask: Any, said: str) -> None:
    head = MeanFlowHead(ResidualMLP(action_dim=2, horizon=8, cond_dim=3, width=16, depth=1))
    with pytest.raises(ValueError, match=f"MeanFlowHead: {said}"):
        head(torch.zeros(action), torch.zeros(cond), None if mask is None else torch.zeros(mask))


def test_a_policy_of_the_wrong_width_says_so_and_not_mat1() -> None:
    store = MemoryStore({"state": [np.zeros((9, 4))]}, [np.zeros((9, 2))], control_hz=10)
    policy = build_policy(embodiment=store.require_record(), encoder=StateEncoder, net=ResidualMLP, head=MeanFlowHead)
    for obs in (
        {"state": torch.zeros(1, 1, 3)},
        {"state": torch.zeros(1, 4)},
        {"state": torch.zeros(1, 1, 4).double()},
    ):
        with pytest.raises(ValueError, match=r"observation 'state' must be float32 \(B, 1, 4\), got"):
            policy.predict(obs)
