"""PointNet: the reference size, blind to order and repetition, a fast training path with the plain gradient."""

import pytest
import torch

from flowpolicy.encoders.pointnet import PointNet
from flowpolicy.normalizer import LinearNormalizer
from flowpolicy.seeding import stream


def _size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _cloud(clouds: int = 6, points: int = 40, columns: int = 3) -> torch.Tensor:
    return 2 * torch.rand(clouds, points, columns, generator=stream(0, "cloud")) - 1


def _net(columns: int = 3, state_dim: int = 4, **changes) -> PointNet:
    torch.manual_seed(0)
    return PointNet(shape=(40, columns), state_dim=state_dim, **changes)


def test_sizes_are_those_of_the_reference() -> None:
    assert _size(_net()) == 59_072
    assert _size(_net(6)) == 207_232
    assert _size(_net(6, color=False)) == 59_072


def test_order_and_repetition_of_points_do_not_matter() -> None:
    net, cloud, state = _net(), _cloud(), torch.zeros(6, 4)
    with torch.no_grad():
        wanted = net(cloud, state)
        shuffled = cloud[:, torch.randperm(40, generator=stream(0, "order"))]
        torch.testing.assert_close(net(shuffled, state), wanted)
        torch.testing.assert_close(net(torch.cat([cloud, cloud[:, :9]], dim=1), state), wanted)
        assert not torch.allclose(net(cloud[:, :20], state), wanted, atol=1e-3)


def _plain(net: PointNet, cloud: torch.Tensor) -> torch.Tensor:
    """The textbook forward: every point with a graph."""
    return net.project(net.rest(net.first(cloud)).amax(dim=1))


@pytest.mark.parametrize("columns", [3, 6])
def test_the_training_path_has_the_value_and_the_gradient_of_the_plain_maximum(columns: int) -> None:
    net, cloud, state = _net(columns).double(), _cloud(columns=columns).double(), torch.zeros(6, 4)
    net._each = lambda points: net.rest(net.first(points))  # type: ignore[method-assign]  # without its float32
    output, wanted = net(cloud, state), _plain(net, cloud)
    torch.testing.assert_close(output, wanted)
    got = torch.autograd.grad(output.square().sum(), list(net.parameters()))
    torch.testing.assert_close(got, torch.autograd.grad(wanted.square().sum(), list(net.parameters())))


def test_training_and_inference_agree() -> None:
    net, cloud, state = _net(), _cloud(), torch.zeros(6, 4)
    trained = net(cloud, state)
    with torch.no_grad():
        torch.testing.assert_close(net(cloud, state), trained)


def test_under_bfloat16_every_parameter_still_learns_and_coordinates_are_not_rounded() -> None:
    net, cloud, state = _net(), _cloud(), torch.zeros(6, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = net(cloud, state)
    gradients = torch.autograd.grad(output.float().square().sum(), list(net.parameters()))
    assert all(float(gradient.abs().max()) > 0 for gradient in gradients)
    seen = []
    net.first.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        net(cloud, state)
    assert seen == [(torch.float32, torch.float32)]


def test_colour_is_read_only_where_it_is_wanted() -> None:
    cloud, state = _cloud(columns=6), torch.zeros(6, 4)
    grey = torch.cat([cloud[..., :3], torch.zeros(6, 40, 3)], dim=-1)
    with torch.no_grad():
        assert not torch.allclose(_net(6)(cloud, state), _net(6)(grey, state), atol=1e-3)
        assert torch.equal(_net(6, color=False)(cloud, state), _net(6, color=False)(grey, state))


def test_relative_columns_do_not_notice_when_hand_and_cloud_move_together() -> None:
    """Hand and cloud are normalised differently; `align` makes their difference one of robot units."""
    net = _net(relative=True)
    points, hand = _cloud(), torch.rand(6, 3, generator=stream(0, "hand"))
    value = LinearNormalizer(torch.tensor([2.0, 3.0, 4.0]), torch.tensor([0.1, 0.2, 0.3]))
    of_state = LinearNormalizer(torch.tensor([5.0, 1.0, 0.5, 9.0]), torch.tensor([0.3, -0.1, 0.0, 7.0]))
    net.align(value, of_state)
    with torch.no_grad():
        net.first.weight[:, 3:] = 0.0  # blind to absolute positions

    def feature(shift: torch.Tensor) -> torch.Tensor:
        state = torch.cat([hand + shift, torch.zeros(6, 1)], dim=-1)
        with torch.no_grad():
            return net(value(points + shift), of_state(state))

    torch.testing.assert_close(feature(torch.tensor([0.3, -0.2, 0.1])), feature(torch.zeros(3)))
    net.align(value, LinearNormalizer.identity(4))
    assert not torch.allclose(feature(torch.tensor([0.3, -0.2, 0.1])), feature(torch.zeros(3)), atol=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PointNet(shape=(40, 4), state_dim=4), r"\(N, 3\), or \(N, 6\) with colour, got \(40, 4\)"),
        (lambda: PointNet(shape=(40, 3), state_dim=2, relative=True), "state, which has 2 entries"),
    ],
)
def test_impossible_clouds_are_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
