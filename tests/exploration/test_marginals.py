"""Which laws the explorations keep: Gaussian recursions without sampling error, a mixture by its sliced distance."""

import math

import pytest
import torch

from flowpolicy.exploration.base import Exploration, jump, sample_chain
from flowpolicy.exploration.flow_noise import FlowNoise
from flowpolicy.exploration.flow_sde import FlowSDE
from flowpolicy.exploration.langevin import Langevin
from flowpolicy.exploration.renoise import Renoise
from flowpolicy.flow.gaussian import score
from flowpolicy.flow.times import time_grid
from tests.exploration.exact import (
    affine,
    gaussian_velocity,
    mixture_log_density,
    mixture_map,
    mixture_samples,
    mixture_velocity,
    sliced_w2,
)

NO_COND = torch.empty(1, 0)


def euler(x, t, r, cond):
    """What a flow-matching head gives: the instantaneous velocity, whatever r."""
    return gaussian_velocity(x, t, t)


def law(exploration: Exploration | None, velocity, times) -> tuple[float, float]:
    """Mean and std at the end, by the affine recursion; None samples without noise."""
    mean, variance = 0.0, 1.0
    generator = torch.Generator().manual_seed(0)
    picked = exploration.pick_steps(1, generator)[0].tolist() if exploration is not None else []
    times = times.double()
    for i in range(len(times) - 1):
        t, r = times[i : i + 1], times[i + 1 : i + 2]
        if i in picked:
            slope, offset, std = affine(lambda x, t=t, r=r: exploration.transition(velocity, x, t, r, NO_COND))
        else:
            at = [float(jump(velocity, torch.full((1, 1, 1), x, dtype=torch.float64), t, r, NO_COND)) for x in (0, 1)]
            slope, offset, std = at[1] - at[0], at[0], 0.0
        mean, variance = slope * mean + offset, slope**2 * variance + std**2
    return mean, math.sqrt(variance)


SDE_STD = {  # K -> std of the ODE and of the SDE at a = 0.2, 0.5, 0.8; the data have 0.2
    1: (0.0, 0.200998, 0.515388, 0.861626),
    2: (0.038462, 0.142829, 0.368018, 0.717604),
    4: (0.095864, 0.111827, 0.165587, 0.231566),
    10: (0.154175, 0.158335, 0.173804, 0.187749),
    100: (0.194979, 0.195500, 0.197738, 0.198694),
    1000: (0.199492, 0.199619, 0.200223, 0.199972),
}


@pytest.mark.parametrize("num_steps", SDE_STD)
def test_flow_sde_has_the_tabulated_spread_and_the_exact_mean(num_steps):
    times = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
    found = [law(None, euler, times)]
    found += [law(FlowSDE(num_steps=num_steps, noise_level=a, mode="full"), euler, times) for a in (0.2, 0.5, 0.8)]
    assert [std for _, std in found] == pytest.approx(SDE_STD[num_steps], abs=2e-6)
    assert [mean for mean, _ in found] == pytest.approx([0.5] * 4, abs=1e-9)
    if num_steps == 1000:
        assert [std for _, std in found[1:]] == pytest.approx([0.2] * 3, abs=5e-4)


def test_eulers_error_halves_when_the_steps_double():
    errors = [0.2 - law(None, euler, torch.linspace(1, 0, k + 1, dtype=torch.float64))[1] for k in (20, 40, 80, 160)]
    assert errors == pytest.approx([0.02400, 0.01233, 0.00626, 0.00315], abs=1e-5)
    assert all(1.9 <= a / b <= 2.1 for a, b in zip(errors, errors[1:], strict=False))


def test_the_score_from_the_velocity_is_the_gradient_of_the_log_density():
    for time in (0.05, 0.3, 0.7, 0.99):
        t = torch.full((500,), time, dtype=torch.float64)
        x = torch.randn(500, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        mixture_log_density(x, t).sum().backward()
        found = score(x.detach(), mixture_velocity(x.detach(), t), t)
        torch.testing.assert_close(found, x.grad, rtol=0, atol=1e-8)


@pytest.mark.parametrize("time", [0.05, 0.3, 0.5, 0.9])
def test_renoise_keeps_the_law_exactly_for_every_time(time):
    mean, std = law(Renoise(time=time), gaussian_velocity, Renoise(time=time).times())
    assert (mean, std) == pytest.approx((0.5, 0.2), abs=1e-9)


@pytest.mark.parametrize(("noise_level", "wanted"), [(0.5, 0.205697), (0.8, 0.234836)])
def test_flow_map_and_langevin_has_the_tabulated_spread(noise_level, wanted):
    mean, std = law(Langevin(num_steps=2, noise_level=noise_level), gaussian_velocity, time_grid(2))
    assert (mean, std) == pytest.approx((0.5, wanted), abs=1e-5)


@pytest.mark.parametrize(
    ("num_steps", "sigma", "wanted"), [(1, 0.05, 0.206155), (2, 0.12, 0.237940), (5, 0.12, 0.262589)]
)
def test_flow_noise_widens_the_law_by_what_it_adds(num_steps, sigma, wanted):
    exploration = FlowNoise(action_dim=1, horizon=1, cond_dim=0, num_steps=num_steps, std_min=sigma, std_max=sigma)
    times = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
    assert law(exploration, gaussian_velocity, times) == pytest.approx((0.5, wanted), abs=1e-5)


COUNT = 40_000


@pytest.fixture(scope="module")
def floor():
    """Distances of independent samples of the data: what cannot be told from the truth."""
    truth = mixture_samples(COUNT, 0)
    return truth, [sliced_w2(truth, mixture_samples(COUNT, seed)) for seed in (1, 2, 3, 4)]


def draw(exploration, velocity, seed=7):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(COUNT, 1, 2, dtype=torch.float64, generator=generator)
    return sample_chain(exploration, velocity, noise, torch.empty(COUNT, 0), generator).action[:, 0]


@pytest.mark.slow
def test_a_hundred_sde_steps_draw_the_mixture(floor):
    truth, floors = floor
    assert all(0.005 < value < 0.06 for value in floors)
    drawn = draw(FlowSDE(num_steps=100, noise_level=0.5, mode="full"), mixture_velocity)
    assert sliced_w2(truth, drawn) <= 2 * max(floors)


@pytest.mark.slow
def test_renoise_draws_the_mixture_and_with_the_posterior_mean_it_does_not(floor):
    truth, floors = floor
    drawn = draw(Renoise(time=0.5), mixture_map)
    assert sliced_w2(truth, drawn) <= 2 * sum(floors) / 4

    def posterior_mean(x, t, r, cond):  # what one Euler step of flow matching jumps to
        return mixture_velocity(x, t)

    assert sliced_w2(truth, draw(Renoise(time=0.5), posterior_mean)) > 0.15
