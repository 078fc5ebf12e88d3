"""Densities of single transitions and whole chains, against torch.distributions, by hand and by autograd."""

import math

import pytest
import torch
from torch.distributions import Normal

from flowpolicy.exploration.base import chain_log_prob, sample_chain
from flowpolicy.exploration.flow_noise import FlowNoise
from flowpolicy.exploration.flow_sde import FlowSDE
from flowpolicy.exploration.langevin import Langevin
from flowpolicy.flow.gaussian import Gaussian, sde_step
from flowpolicy.flow.times import time_grid
from flowpolicy.samplers.jump import sample_ode
from tests.exploration.exact import gaussian_velocity

SHAPE = {"action_dim": 7, "horizon": 4, "cond_dim": 3}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_log_prob_summed_over_28_entries_is_that_of_torch_distributions(dtype, tolerance):
    mean, x = torch.randn(2, 100, 4, 7, dtype=torch.float64, generator=rng())
    std = 0.04 + 0.46 * torch.rand(100, 4, 7, dtype=torch.float64, generator=rng(1))
    x = mean + std * x
    own = Gaussian(mean.to(dtype), std.to(dtype)).log_prob(x.to(dtype)).sum((1, 2))
    assert (own - Normal(mean, std).log_prob(x).sum((1, 2))).abs().max() <= tolerance
    entropy = Gaussian(mean, std).entropy()
    torch.testing.assert_close(entropy, Normal(mean, std).entropy())


def test_log_prob_by_hand():
    gaussian = Gaussian(torch.tensor([[[0.0, 1.0]]]), torch.tensor([[[0.1, 0.2]]]))
    value = float(gaussian.log_prob(torch.tensor([[[0.1, 0.8]]])).sum())
    assert value == pytest.approx(-0.5 - 0.5 - math.log(0.1) - math.log(0.2) - math.log(2 * math.pi), abs=1e-5)
    assert value == pytest.approx(1.0741459, abs=1e-5)


def test_half_precision_densities_are_computed_in_float32():
    gaussian = Gaussian(torch.zeros(1, 1, 1, dtype=torch.bfloat16), torch.full((1, 1, 1), 0.1))
    assert gaussian.log_prob(torch.zeros(1, 1, 1)).dtype == torch.float32


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_the_joint_density_is_the_sum_of_the_steps_and_the_starting_noise_cancels(num_steps):
    exploration, net = (
        FlowNoise(num_steps=num_steps, std_min=0.1, std_max=0.3, **SHAPE).double(),
        torch.nn.Linear(28, 28),
    )
    net = net.double()

    def velocity(x, t, r, cond):
        return net(x.flatten(1)).unflatten(1, (4, 7))

    noise, cond = torch.randn(5, 4, 7, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    chain = sample_chain(exploration, velocity, noise, cond, rng())
    assert chain.step.tolist() == [list(range(num_steps))] * 5
    by_hand, x, times = torch.zeros(5, dtype=torch.float64), noise, time_grid(num_steps).double()
    for i in range(num_steps):
        mean = x - (times[i] - times[i + 1]) * velocity(x, None, None, None)
        std = exploration.std(x, times[i].expand(5), cond)
        torch.testing.assert_close(chain.before[:, i], x, rtol=0, atol=0)
        x = chain.after[:, i]
        by_hand += Normal(mean, std).log_prob(x).sum((1, 2))
    torch.testing.assert_close(chain.log_prob.sum((1, 2, 3)), by_hand.detach(), rtol=0, atol=1e-6)
    torch.testing.assert_close(chain.action, x, rtol=0, atol=0)

    with torch.no_grad():
        net.weight.add_(0.01)
    after = chain_log_prob(exploration, velocity, chain, cond).log_prob.sum((1, 2, 3))
    moved = torch.zeros(5, dtype=torch.float64)  # of the steps alone: the start's own density must be in neither
    for i in range(num_steps):
        x, t = chain.before[:, i], times[i].expand(5)
        mean = x - (times[i] - times[i + 1]) * velocity(x, None, None, None)
        moved += Normal(mean, exploration.std(x, t, cond)).log_prob(chain.after[:, i]).sum((1, 2))
    torch.testing.assert_close(after, moved.detach(), rtol=0, atol=1e-6)
    assert (after - chain.log_prob.sum((1, 2, 3))).abs().min() > 1e-3


GOLDEN = [  # K, t, r, std, w0, w1 at a = 0.5; sigma is std / sqrt(t - r)
    (4, 1.0, 0.75, 0.5, 0.25, 0.625),
    (4, 0.75, 0.5, 0.433013, 0.5, 0.375),
    (4, 0.5, 0.25, 0.25, 0.75, 0.1875),
    (4, 0.25, 0.0, 0.144338, 1.0, -0.041667),
    (2, 1.0, 0.5, 0.5, 0.5, 0.375),
    (2, 0.5, 0.0, 0.353553, 1.0, -0.125),
    (1, 1.0, 0.0, 0.5, 1.0, -0.125),
]


@pytest.mark.parametrize(("num_steps", "t", "r", "std", "w0", "w1"), GOLDEN)
def test_sde_coefficients_are_the_tabulated_ones(num_steps, t, r, std, w0, w1):
    step = sde_step(*torch.tensor([[t], [r]], dtype=torch.float64), noise_level=0.5)
    assert t - r == pytest.approx(1 / num_steps)
    assert (float(step.std), float(step.w0), float(step.w1)) == pytest.approx((std, w0, w1), abs=1e-6)


def test_the_mirrored_time_convention_gives_the_same_sde_step():
    """tau = 1 - t: dA = [v - sigma^2 / (2 (1 - tau)) (A - tau v)] dtau + sigma dw, sigma = a sqrt((1 - tau) / tau)."""
    t = torch.rand(200, dtype=torch.float64, generator=rng()) * 0.9 + 0.05
    r = t * torch.rand(200, dtype=torch.float64, generator=rng(1))
    x, v = torch.randn(2, 200, 1, 1, dtype=torch.float64, generator=rng(2))
    gaussian = FlowSDE(num_steps=4, noise_level=0.5).transition(lambda *_: v, x, t, r, torch.empty(200, 0))
    tau, length = (time.reshape(-1, 1, 1) for time in (1 - t, t - r))
    forward = -v  # dA/dtau
    sigma = 0.5 * ((1 - tau) / tau).sqrt()
    mean = x + (forward - sigma**2 / (2 * (1 - tau)) * (x - tau * forward)) * length
    torch.testing.assert_close(gaussian.mean, mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(gaussian.std, sigma * length.sqrt(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_without_noise_flow_sde_and_langevin_are_the_deterministic_jump(num_steps):
    noise, cond, times = torch.randn(6, 4, 7, generator=rng()), torch.empty(6, 0), time_grid(num_steps)

    def euler(x, t, r, cond):  # flow matching: ignores r
        return gaussian_velocity(x, t, t)

    exploration = FlowSDE(num_steps=num_steps, mode="full")
    exploration.noise_level = 0.0  # past the constructor, which refuses it
    chain = sample_chain(exploration, euler, noise, cond, rng())
    torch.testing.assert_close(chain.action, sample_ode(euler, noise, cond, times), rtol=0, atol=1e-6)
    if num_steps > 1:
        exploration = Langevin(num_steps=num_steps)
        exploration.noise_level = 0.0
        chain = sample_chain(exploration, gaussian_velocity, noise, cond, rng())
        wanted = sample_ode(gaussian_velocity, noise, cond, times)
        torch.testing.assert_close(chain.action, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_the_mean_of_flow_noise_is_the_deterministic_step(num_steps):
    exploration = FlowNoise(num_steps=num_steps, std_min=1e-20, std_max=1e-20, **SHAPE)
    noise, cond = torch.randn(6, 4, 7, generator=rng()), torch.empty(6, 3)
    chain = sample_chain(exploration, gaussian_velocity, noise, cond, rng())
    assert torch.equal(chain.action, sample_ode(gaussian_velocity, noise, cond, time_grid(num_steps)))


def test_sampled_transitions_have_the_stated_mean_and_spread():
    n = 200_000
    mean, std = torch.tensor([[[0.3, -1.0]]]).expand(n, 1, 2), torch.tensor([[[0.05, 0.4]]])
    x = Gaussian(mean, std).sample(rng())
    error = (x.mean(0) - mean[0]).abs() / (std[0] / math.sqrt(n))
    assert error.max() <= 4
    assert ((x.std(0) / std[0]) - 1).abs().max() <= 0.01


def test_the_gradient_of_log_prob_is_the_textbook_one():
    generator = rng()
    mean = torch.randn(3, 2, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    log_std = (torch.randn(3, 2, 2, dtype=torch.float64, generator=generator) - 1).requires_grad_()
    x = torch.randn(3, 2, 2, dtype=torch.float64, generator=generator)
    Gaussian(mean, log_std.exp()).log_prob(x).sum().backward()
    z = (x - mean) / log_std.exp()
    torch.testing.assert_close(mean.grad, (z / log_std.exp()).detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(log_std.grad, (z**2 - 1).detach(), rtol=1e-6, atol=1e-12)
    assert torch.autograd.gradcheck(lambda m, s: Gaussian(m, s.exp()).log_prob(x), (mean, log_std))


def test_the_learned_std_stays_inside_its_bounds_and_never_loses_its_gradient():
    exploration = FlowNoise(std_min=0.05, std_max=0.3, **SHAPE)
    x, t, cond = torch.randn(8, 4, 7), torch.rand(8), torch.randn(8, 3)
    torch.testing.assert_close(
        exploration.std(x, t, cond), torch.full((8, 4, 7), math.sqrt(0.05 * 0.3)), rtol=0, atol=1e-6
    )
    assert exploration.net is not None
    for parameter in exploration.parameters():
        torch.nn.init.normal_(parameter)
    std = exploration.std(1e4 * x, t, 1e4 * cond)
    assert std.min() >= 0.05 - 1e-6 and std.max() <= 0.3 + 1e-6
    raw = torch.linspace(-8, 8, 101, requires_grad=True)
    exploration.bound(raw).log().sum().backward()
    assert (raw.grad > 0).all()


def test_a_std_from_the_state_alone_ignores_chunk_and_time():
    exploration = FlowNoise(std_inputs="state", **SHAPE)
    for parameter in exploration.parameters():
        torch.nn.init.normal_(parameter)
    cond = torch.randn(8, 3)
    one, two = (exploration.std(torch.randn(8, 4, 7), torch.rand(8), cond) for _ in range(2))
    assert torch.equal(one, two) and one.std() > 0


def test_the_upper_bound_of_the_std_falls_on_reinflows_schedule():
    exploration = FlowNoise(std_min=0.1, std_max=0.2, decay=True, **SHAPE)
    top = {}
    for progress in (0.0, 0.35, 1.0):
        exploration.set_progress(progress)
        top[progress] = float(exploration.bound(torch.tensor(50.0)))
    assert top == pytest.approx({0.0: 0.2, 0.35: 0.2, 1.0: 0.3 * 0.1 + 0.7 * 0.2})


def test_wrong_numbers_are_refused():
    for make in (
        lambda: FlowNoise(std_min=0.2, std_max=0.1, **SHAPE),
        lambda: FlowNoise(std_inputs="x", **SHAPE),
        lambda: FlowSDE(mode="some"),
        lambda: FlowSDE(mode="window", window=5),
        lambda: Langevin(num_steps=1),
    ):
        with pytest.raises(ValueError):
            make()
