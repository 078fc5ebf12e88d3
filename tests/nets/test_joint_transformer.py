"""Joint transformer: published sizes, an exact Jacobian product, who sees whom."""

import copy

import pytest
import torch
from torch import Tensor

from flowpolicy.flow.meanflow import time_derivative, time_difference
from flowpolicy.nets.joint_transformer import Attention, JointTransformer
from flowpolicy.seeding import stream

KINDS: list[Attention] = ["joint", "cross", "adaln"]


def _net(attention: Attention = "joint", **words) -> JointTransformer:
    """Small, with every layer that starts at zero made random."""
    torch.manual_seed(0)
    options = {"dim": 32, "depth": 3, "heads": 4, "num_obs_tokens": 2, **words}
    net = JointTransformer(action_dim=3, horizon=4, cond_dim=10, attention=attention, **options).double()
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(std=0.2)
    return net


def _inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = stream(0, "net")
    x_t, cond = torch.randn(5, 4, 3, generator=generator), torch.randn(5, 10, generator=generator)
    t = 0.2 + 0.7 * torch.rand(5, generator=generator)
    return x_t.double(), t.double(), 0.5 * t.double(), cond.double()


@pytest.mark.parametrize(
    ("action_dim", "count"), [(4, 14_647_300), (26, 14_664_218), (28, 14_665_756), (24, 14_662_680)]
)
def test_published_size(action_dim: int, count: int) -> None:
    """Meta-World, and Adroit's hammer, door and pen; MP1's encoder gives 2 x 128 entries."""
    with torch.device("meta"):
        net = JointTransformer(action_dim=action_dim, horizon=4, cond_dim=256, num_obs_tokens=2)
    assert sum(p.numel() for p in net.parameters()) == count
    assert sum(p.numel() for p in net.blocks[0].parameters()) == 1_774_464


@pytest.mark.parametrize("attention", KINDS)
def test_output_is_a_chunk_and_taps_are_the_action_tokens(attention: Attention) -> None:
    net, inputs = _net(attention), _inputs()
    output, features = net.forward_with_features(*inputs)
    assert output.shape == (5, 4, 3) and list(features) == ["early", "second", "mid", "late"]
    assert {tuple(value.shape) for value in features.values()} == {(5, 4, 32)}
    assert torch.equal(net(*inputs), output)
    fresh = JointTransformer(action_dim=3, horizon=4, cond_dim=10, attention=attention).double()
    assert not fresh(*inputs).any(), "a new net answers zero"


@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_every_input_changes_the_output(attention: Attention, index: int) -> None:
    net, inputs = _net(attention), list(_inputs())
    before = net(*inputs)
    inputs[index] = inputs[index] * 0.5
    assert float((net(*inputs) - before).detach().abs().max()) > 1e-3


@pytest.mark.parametrize("attention", KINDS)
def test_jacobian_product_is_the_limit_of_the_difference_quotient(attention: Attention) -> None:
    net, (x_t, t, r, cond) = _net(attention), _inputs()
    tangent = torch.randn(x_t.shape, generator=stream(1, "v")).double()
    exact = time_derivative(net, x_t, t, r, cond, tangent)
    with torch.no_grad():
        errors = [
            float((time_difference(net, x_t, t, r, cond, tangent, step=step) - exact).norm() / exact.norm())
            for step in (5e-3, 1e-3)
        ]
    assert errors[0] < 1e-3 and 20 < errors[0] / errors[1] < 30, errors


@pytest.mark.parametrize("attention", KINDS)
def test_every_part_of_the_condition_reaches_the_action(attention: Attention) -> None:
    net, (x_t, t, r, cond) = _net(attention), _inputs()
    cond.requires_grad_()
    (gradient,) = torch.autograd.grad(net(x_t, t, r, cond).square().sum(), cond)
    assert bool((gradient.unflatten(-1, (2, 5)).norm(dim=-1) > 1e-6).all())


@pytest.mark.parametrize("attention", KINDS)
def test_observation_tokens_are_told_apart_by_their_positions_alone(attention: Attention) -> None:
    net, (x_t, t, r, cond) = _net(attention), _inputs()
    swapped = copy.deepcopy(net)
    with torch.no_grad():
        swapped.obs_position.copy_(net.obs_position.flip(0))
    other = cond.unflatten(-1, (2, 5)).flip(1).flatten(1)
    torch.testing.assert_close(swapped(x_t, t, r, other), net(x_t, t, r, cond))
    if attention != "adaln":  # it adds the tokens up
        assert float((net(x_t, t, r, other) - net(x_t, t, r, cond)).detach().abs().max()) > 1e-4


def test_only_joint_attention_lets_the_condition_follow_the_action() -> None:
    """What the first block makes of the observation tokens depends on the action there, and is nothing elsewhere."""
    seen = {}
    for attention in KINDS:
        net, (x_t, t, r, cond) = _net(attention), _inputs()
        outputs = []
        net.blocks[0].register_forward_hook(lambda _, __, output: outputs.append(output))  # noqa: B023
        for action in (x_t, x_t + 1.0):
            net(action, t, r, cond)
        seen[attention] = [output.shape[1] for output in outputs]
        if attention == "joint":
            assert float((outputs[0][:, :2] - outputs[1][:, :2]).detach().abs().max()) > 1e-3
    assert seen == {"joint": [8, 8], "cross": [4, 4], "adaln": [4, 4]}  # 2 observations, t, t - r and 4 actions


def test_written_out_attention_is_torchs() -> None:
    attention = _net().blocks[0].attention
    x = torch.randn(5, 8, 32, generator=stream(0, "x")).double()
    query, key, value = (
        part.unflatten(-1, (4, 8)).transpose(1, 2) for part in attention.query_key_value(x).chunk(3, dim=-1)
    )
    fused = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(attention(x), attention.project(fused.transpose(1, 2).flatten(2)), rtol=0, atol=1e-6)
    torch.testing.assert_close(attention(x), attention(x, x))


def test_more_time_tokens_are_more_tokens() -> None:
    net = _net(time_tokens=2, interval_tokens=3)
    lengths = []
    net.blocks[0].register_forward_hook(lambda _, inputs, __: lengths.append(inputs[0].shape[1]))
    net(*_inputs())
    assert lengths == [2 + 2 + 3 + 4]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"attention": "self"}, "joint, cross, adaln"),
        ({"num_obs_tokens": 3}, "num_obs_tokens must divide the condition's 10 entries"),
        ({"heads": 5}, "divisible by heads"),
        ({"depth": 0}, "depth"),
        ({"time_tokens": 0}, "number of tokens"),
    ],
)
def test_impossible_sizes_are_refused(words: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _net(**words)
