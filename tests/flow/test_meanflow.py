"""Oracles of the MeanFlow identity: closed forms, finite differences, equality of the two objectives."""

import pytest
import torch
from torch import Tensor

from flowpolicy.flow.meanflow import meanflow_correction, time_derivative, time_difference
from flowpolicy.flow.path import expand, interpolate
from flowpolicy.flow.times import FlowTimes, time_grid
from flowpolicy.nets.mlp import ResidualMLP
from flowpolicy.nets.unet1d import UNet1D
from flowpolicy.samplers.jump import sample_ode
from flowpolicy.seeding import stream

COND = torch.zeros(64, 1, dtype=torch.float64)


def _batch(action: Tensor, p_equal: float = 0.5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = stream(3, "batch")
    noise = torch.randn(action.shape, generator=generator).double()
    t, r = (
        value.double()
        for value in FlowTimes(mean=-0.4, std=1.0, p_start=0.0).pairs(len(action), generator, p_equal=p_equal)
    )
    x_t, velocity = interpolate(action, noise, t)
    return x_t, velocity, t, r


def test_point_mass_has_zero_loss_and_lands_on_the_point_in_one_step() -> None:
    """If every action is a, then u(x_t, r, t) = (x_t - a) / t for every r; a wrong sign or tangent breaks this."""
    point = torch.tensor([[0.3, -0.7]]).double()
    action = point.expand(64, 4, 2)
    x_t, velocity, t, r = _batch(action)

    def u(x: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Tensor:
        return (x - point) / expand(t, x)

    correction = meanflow_correction(u, x_t, t, r, COND, velocity, num_equal=32)
    residual = u(x_t, t, r, COND) + correction - velocity
    assert float(residual.square().mean()) < 1e-28
    noise = torch.randn(64, 4, 2, generator=stream(0, "n")).double()
    assert float((sample_ode(u, noise, COND, time_grid(1).double()) - action).abs().max()) < 1e-14


def test_gaussian_actions_satisfy_the_identity_along_the_marginal_velocity() -> None:
    """Actions ~ N(0, s^2): the flow maps x_t to x_r = x_t sigma(r) / sigma(t), so u is known in closed form."""
    s = 0.5

    def sigma(t: Tensor) -> Tensor:
        return ((1 - t) ** 2 * s**2 + t**2).sqrt()

    def u(x: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Tensor:
        gap = expand(t - r, x)
        same = (t - r).abs() < 1e-12
        average = (x - x * expand(sigma(r) / sigma(t), x)) / torch.where(expand(same, x), 1.0, gap)
        instant = x * expand((t - (1 - t) * s**2) / sigma(t) ** 2, x)
        return torch.where(expand(same, x), instant, average)

    action = s * torch.randn(64, 4, 2, generator=stream(1, "a")).double()
    x_t, _, t, r = _batch(action, p_equal=0.0)
    marginal = u(x_t, t, t, COND)
    correction = meanflow_correction(u, x_t, t, r, COND, marginal, num_equal=0)
    torch.testing.assert_close(u(x_t, t, r, COND) + correction, marginal, rtol=1e-5, atol=1e-5)


def test_sampling_gaussian_actions_converges_to_their_spread() -> None:
    """Actions ~ N(0, 0.5^2) have a velocity in closed form; Euler's error is of first order in the step."""
    s = 0.5

    def velocity(x: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Tensor:
        return x * expand((t - (1 - t) * s**2) / ((1 - t) ** 2 * s**2 + t**2), x)

    noise = torch.randn(64, 4, 2, generator=stream(2, "n")).double()
    ends = [sample_ode(velocity, noise, COND, time_grid(steps).double()) for steps in (4, 16, 64, 256)]
    errors = [abs(float(end.std() / noise.std()) - s) for end in ends]  # the flow is linear, so no sampling error
    assert all(3.0 < before / after < 5.0 for before, after in zip(errors, errors[1:])) and errors[-1] < 3e-3


@pytest.mark.parametrize("objective", ["meanflow", "imf"])
def test_no_part_of_the_correction_sees_autocast(objective: str) -> None:
    seen = []

    def u(x: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return x * expand(t - r, x)

    x_t, velocity, t, r = _batch(torch.zeros(8, 4, 2).double(), 0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        meanflow_correction(u, x_t, t, r, COND[:8], velocity, num_equal=4, objective=objective)  # type: ignore[arg-type]
    assert seen == [False] * (2 if objective == "imf" else 1)


@pytest.mark.parametrize("p_equal", [0.0, 0.5, 1.0])
def test_correction_vanishes_exactly_where_r_equals_t(p_equal: float) -> None:
    net = ResidualMLP(action_dim=2, horizon=4, cond_dim=1, width=32).double()
    x_t, velocity, t, r = _batch(torch.zeros(64, 4, 2).double(), p_equal)
    equal = round(64 * p_equal)
    correction = meanflow_correction(net, x_t, t, r, COND, velocity, num_equal=equal)
    assert not correction.requires_grad
    assert bool((correction[:equal] == 0).all())
    assert bool((correction[equal:].abs().amax(dim=(1, 2)) > 0).all())


def test_both_objectives_agree_where_the_predicted_velocity_is_the_path_velocity() -> None:
    """With u(x, t, t) = noise - action exactly (a point mass), imf's tangent is meanflow's."""
    action = torch.full((64, 4, 2), 0.2).double()
    x_t, velocity, t, r = _batch(action)

    def u(x: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Tensor:
        return (x - 0.2) / expand(t, x) + expand(t - r, x) * torch.sin(x)

    first, second = (
        meanflow_correction(u, x_t, t, r, COND, velocity, num_equal=16, objective=objective)
        for objective in ("meanflow", "imf")
    )
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("build", [ResidualMLP, UNet1D])
def test_derivative_matches_finite_differences(build: type) -> None:
    kwargs = {"width": 32} if build is ResidualMLP else {"dims": (16, 32), "time_dim": 16}
    net = build(action_dim=2, horizon=4, cond_dim=1, **kwargs).double()
    x_t, velocity, t, r = _batch(torch.zeros(8, 4, 2).double(), 0.0)
    cond, step = COND[:8], 1e-5
    exact = time_derivative(net, x_t, t, r, cond, velocity)
    with torch.no_grad():
        ahead = net(x_t + step * velocity, t + step, r, cond)
        behind = net(x_t - step * velocity, t - step, r, cond)
    torch.testing.assert_close(exact, (ahead - behind) / (2 * step), rtol=1e-3, atol=1e-6)


def test_unknown_objective_is_refused() -> None:
    with pytest.raises(ValueError, match="'meanflow' or 'imf'"):
        meanflow_correction(
            lambda x, t, r, c: x,
            COND[:, :, None],
            COND[:, 0],
            COND[:, 0],
            COND,
            COND[:, :, None],
            num_equal=0,
            objective="typo",
        )  # type: ignore[arg-type]


def test_equal_steps_of_an_instantaneous_velocity_are_euler() -> None:
    """A field that ignores r, walked over a grid, is Euler's method; on v = x it gives (1 - 1/K)^K."""
    noise = torch.ones(1, 1, 1).double()
    for steps in (1, 2, 4, 10):
        result = sample_ode(lambda x, t, r, c: x, noise, COND, time_grid(steps).double())
        assert float(result) == pytest.approx((1 - 1 / steps) ** steps)


def test_difference_quotient_is_of_second_order_inside_and_one_sided_at_the_ends() -> None:
    torch.manual_seed(0)
    net = ResidualMLP(action_dim=2, horizon=4, cond_dim=1, width=32).double()
    x_t, velocity, _, _ = _batch(torch.zeros(8, 4, 2).double())
    t, r, cond = torch.full((8,), 0.6).double(), torch.full((8,), 0.2).double(), COND[:8]
    exact = time_derivative(net, x_t, t, r, cond, velocity)
    with torch.no_grad():
        errors = [
            float((time_difference(net, x_t, t, r, cond, velocity, step=step) - exact).norm() / exact.norm())
            for step in (1e-2, 5e-3, 2.5e-3)
        ]
    assert all(3.8 < before / after < 4.2 for before, after in zip(errors, errors[1:])) and errors[1] < 1e-3, errors

    asked = []

    def spy(x: Tensor, time: Tensor, end: Tensor, cond: Tensor) -> Tensor:
        asked.append(time)
        return net(x, time, end, cond)

    t, r = torch.tensor([1.0, 0.203, 0.5, 0.998]).double(), torch.tensor([0.3, 0.2, 0.2, 0.997]).double()
    with torch.no_grad():
        found = time_difference(spy, x_t[:4], t, r, cond[:4], velocity[:4])
    assert all(bool((time <= 1).all() and (time >= r).all()) for time in asked)
    torch.testing.assert_close(asked[0] - asked[1], torch.tensor([0.005, 0.008, 0.01, 0.003]).double())
    near = time_derivative(net, x_t[:4], t, r, cond[:4], velocity[:4])
    assert float((found - near).norm() / near.norm()) < 1e-2


def test_correction_can_take_the_quotient_and_has_nothing_to_divide_by_where_times_agree() -> None:
    torch.manual_seed(0)
    net = ResidualMLP(action_dim=2, horizon=4, cond_dim=1, width=32).double()
    x_t, velocity, t, r = _batch(torch.zeros(64, 4, 2).double(), 0.25)
    exact, near = (
        meanflow_correction(net, x_t, t, r, COND, velocity, num_equal=16, derivative=kind)
        for kind in ("jvp", "difference")
    )
    assert not torch.equal(exact, near) and float((exact - near).norm() / exact.norm()) < 1e-2
    same = time_derivative(net, x_t, t, t, COND, velocity, derivative="difference")
    assert bool(same.isfinite().all())
