"""Nets: sizes against the reference counts, shapes, taps, and what they refuse."""

import pytest
import torch

from flowpolicy.encoders.state import StateEncoder
from flowpolicy.nets.embedding import TimeEmbedding
from flowpolicy.nets.mlp import ResidualMLP
from flowpolicy.nets.unet1d import UNet1D
from flowpolicy.seeding import stream
from tests.catalogue import catalogue_policy, observations

MP1 = {"dims": (512, 1024, 2048), "second_time": "r", "min_time_frequency": 1e-4, "max_time_frequency": 1.0}


def _inputs(horizon: int = 16, action: int = 4, cond: int = 6, batch: int = 3) -> tuple[torch.Tensor, ...]:
    generator = stream(0, "net")
    t = torch.rand(batch, generator=generator)
    return torch.randn(batch, horizon, action, generator=generator), t, 0.5 * t, torch.randn(batch, cond)


def test_mp1_unet_has_the_reference_number_of_parameters() -> None:
    """The official module counts 255,734,533, of which 528,385 belong to an estimator that nothing uses."""
    with torch.device("meta"):
        net = UNet1D(action_dim=4, horizon=4, cond_dim=256, **MP1)
    assert sum(p.numel() for p in net.parameters()) == 255_206_148


@pytest.mark.parametrize(
    ("net", "widths"),
    [
        (ResidualMLP(action_dim=4, horizon=16, cond_dim=6, width=64), (64, 64, 64, 64)),
        (UNet1D(action_dim=4, horizon=16, cond_dim=6, dims=(16, 32, 48)), (16, 32, 48, 16)),
    ],
)
def test_output_has_the_shape_of_the_chunk_and_taps_their_widths(net: torch.nn.Module, widths: tuple) -> None:
    x_t, t, r, cond = _inputs()
    output, features = net.forward_with_features(x_t, t, r, cond)
    assert output.shape == x_t.shape and list(features) == ["early", "second", "mid", "late"]
    assert tuple(features[name].shape[1] for name in features) == widths
    assert torch.equal(net(x_t, t, r, cond), output)


@pytest.mark.parametrize("index", [0, 1, 2, 3])
@pytest.mark.parametrize("build", [ResidualMLP, UNet1D])
def test_every_input_changes_the_output(build: type, index: int) -> None:
    torch.manual_seed(0)
    net = build(action_dim=4, horizon=16, cond_dim=6)
    inputs = list(_inputs())
    before = net(*inputs)
    inputs[index] = inputs[index] * 0.5
    assert float((net(*inputs) - before).detach().abs().max()) > 1e-3


def test_second_time_r_reads_r_and_not_the_gap() -> None:
    """Moving t and r together leaves t - r alone; only the first embedding and r's may react."""
    torch.manual_seed(0)
    net = UNet1D(action_dim=4, horizon=16, cond_dim=6, second_time="r")
    x_t, t, r, cond = _inputs()
    with torch.no_grad():
        for layer in net.first_time.parameters():
            layer.zero_()
    assert torch.equal(net(x_t, t, r, cond), net(x_t, t * 0.9, r, cond))
    assert not torch.equal(net(x_t, t, r, cond), net(x_t, t, r * 0.9, cond))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: UNet1D(action_dim=4, horizon=6, cond_dim=1), "divisible by 4"),
        (lambda: UNet1D(action_dim=4, horizon=8, cond_dim=1, dims=(12, 24)), "groups=8"),
        (lambda: UNet1D(action_dim=4, horizon=8, cond_dim=1, dims=(16,)), r"at least 2 levels, got \[16\]"),
        (lambda: UNet1D(action_dim=4, horizon=8, cond_dim=1, second_time="t"), "'r' or 't-r'"),
        (lambda: ResidualMLP(action_dim=4, horizon=8, cond_dim=1, depth=0), "at least 1 block"),
        (lambda: TimeEmbedding(7), "even number"),
        (lambda: StateEncoder(obs_shapes={}, obs_horizon=1), "at least one"),
        (lambda: StateEncoder(obs_shapes={"c": (9, 3)}, obs_horizon=1), "'c'.*`encoder='point_cloud'`.* or leave it"),
        (lambda: StateEncoder(obs_shapes={"i": (9, 9, 3)}, obs_horizon=1), "'i'.*`encoder='resnet18'`"),
    ],
)
def test_impossible_sizes_are_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_time_embedding_spans_its_frequencies() -> None:
    embedding = TimeEmbedding(8, min_frequency=1.0, max_frequency=27.0)
    torch.testing.assert_close(embedding.frequency, torch.tensor([27.0, 9.0, 3.0, 1.0]))
    torch.testing.assert_close(embedding(torch.tensor([0.5]))[0, :4], torch.tensor([13.5, 4.5, 1.5, 0.5]).sin())


def test_state_encoder_puts_keys_and_steps_side_by_side() -> None:
    encoder = StateEncoder(obs_shapes={"a": (2,), "b": (1,)}, obs_horizon=2)
    obs = {"b": torch.tensor([[[5.0], [6.0]]]), "a": torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])}
    assert encoder.feature_dim == 6
    assert encoder(obs).tolist() == [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]
    encoder = StateEncoder(obs_shapes={"a": (2,), "b": (1,)}, obs_horizon=2, step_by_step=True)
    assert encoder(obs).tolist() == [[1.0, 2.0, 5.0, 3.0, 4.0, 6.0]]


@pytest.mark.parametrize("encoder", ["state", "point_cloud"])
def test_the_catalogue_encoders_put_step_after_step_for_transformers(encoder: str) -> None:
    """Each of To equal parts of the condition changes with its own step alone."""
    policy = catalogue_policy(encoder=encoder, net="joint_transformer", obs_horizon=2)
    obs = observations(policy)
    changed = {key: value.clone() for key, value in obs.items()}
    for value in changed.values():
        value[:, 1] = value[:, 0] * 0.5
    first, second = policy.encode(obs).isclose(policy.encode(changed)).chunk(2, dim=-1)
    assert bool(first.all()) and not bool(second.all())


def test_the_second_tap_of_a_u_net_is_its_second_level_and_not_the_bottleneck() -> None:
    """What MP1 disperses besides the first: 1024 channels at half the steps, before the next halving."""
    net = UNet1D(action_dim=4, horizon=16, cond_dim=6, dims=(16, 32, 48))
    features = net.forward_with_features(*_inputs())[1]
    assert [tuple(features[tap].shape[1:]) for tap in ("early", "second", "mid")] == [(16, 16), (32, 8), (48, 4)]
