"""Samplers on flows known in closed form: a point mass, Gaussian actions; their counts; warm starts."""

import pytest
import torch
from torch import Tensor

from flowpolicy.flow.path import expand
from flowpolicy.flow.sample import SAMPLERS, Sampler, sample, sample_heun, sample_hybrid, sample_ode, shift_chunk
from flowpolicy.flow.times import time_grid
from flowpolicy.seeding import stream

COND = torch.zeros(1, 1, dtype=torch.float64)
NOISE = torch.randn(64, 4, 2, generator=stream(0, "n")).double()
SPREAD = 0.5  # standard deviation of the Gaussian actions


def _sigma(t: Tensor) -> Tensor:
    return ((1 - t) ** 2 * SPREAD**2 + t**2).sqrt()


def _gaussian(x: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Tensor:
    """Exact average velocity for actions ~ N(0, SPREAD^2): the flow maps x_t to x_t sigma(r) / sigma(t)."""
    same = (t - r) < 1e-12
    average = x * expand((1 - _sigma(r) / _sigma(t)) / torch.where(same, 1.0, t - r), x)
    instant = x * expand((t - (1 - t) * SPREAD**2) / _sigma(t) ** 2, x)
    return torch.where(expand(same, x), instant, average)


def _point(x: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Tensor:
    return (x - 0.3) / expand(t, x)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("num_steps", [2, 3, 8])
@pytest.mark.parametrize("start_time", [1.0, 0.85, 0.2])
def test_every_sampler_lands_on_a_point_mass_from_anywhere(sampler: Sampler, num_steps: int, start_time: float) -> None:
    start = torch.full_like(NOISE, 0.3) if start_time < 1 else None  # off the path of 0.3, (x - 0.3) / t differs
    end = sample(
        _point,
        NOISE,
        COND,
        num_steps=num_steps,
        sampler=sampler,
        start=start,
        start_time=start_time,
        generator=stream(1, "n"),
    )
    assert float((end - 0.3).abs().max()) < 1e-6  # the grid is float32


def test_heun_is_of_second_order_and_costs_one_evaluation_less_than_two_per_interval() -> None:
    counts, errors = [], []
    for num_steps in (16, 32, 64, 128):
        calls: list[int] = []

        def velocity(x: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Tensor:
            assert torch.equal(t, r) and float(t[0]) > 0
            calls.append(1)  # noqa: B023  read within the same turn
            return _gaussian(x, t, r, cond)

        end = sample_heun(velocity, NOISE, COND, time_grid(num_steps))
        errors.append(float((end - SPREAD * NOISE).abs().max()))
        counts.append(len(calls))
    assert counts == [31, 63, 127, 255]
    assert all(3.5 < before / after < 4.5 for before, after in zip(errors, errors[1:], strict=False)), errors


def test_heun_beats_euler_at_equal_evaluations_and_is_euler_in_one_interval() -> None:
    def euler(x: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Tensor:
        return _gaussian(x, t, t, cond)

    def error(end: Tensor) -> float:
        return float((end - SPREAD * NOISE).norm())

    heun = error(sample_heun(_gaussian, NOISE, COND, time_grid(16)))
    assert heun < 0.2 * error(sample_ode(euler, NOISE, COND, time_grid(31)))
    one = time_grid(1)
    assert torch.equal(sample_heun(_gaussian, NOISE, COND, one), sample_ode(euler, NOISE, COND, one))


@pytest.mark.parametrize(
    ("tau", "fresh", "used"), [(0.15, 0.4715, 0.6015), (0.05, 0.497, 0.547), (0.25, 0.416, 0.577), (0.0, 0.5, 0.5)]
)
def test_hybrid_gives_the_spread_of_its_closed_form(tau: float, fresh: float, used: float) -> None:
    """The map is linear in both noises, so its two coefficients are what two unit inputs give."""
    one, zero = torch.ones(1, 1, 1).double(), torch.zeros(1, 1, 1).double()
    first, second = (
        float(sample_hybrid(_gaussian, a, COND, time_grid(1), second_noise=b, tau=tau))
        for a, b in ((one, zero), (zero, one))
    )
    assert (first**2 + second**2) ** 0.5 == pytest.approx(fresh, abs=1e-3)
    assert first + second == pytest.approx(used, abs=1e-3)


def test_hybrid_draws_its_second_noise_from_the_generator_and_reuses_the_first_without() -> None:
    def ends(generator: torch.Generator | None) -> Tensor:
        return sample(_gaussian, NOISE, COND, num_steps=2, sampler="hybrid", generator=generator)

    reused = sample_hybrid(_gaussian, NOISE, COND, time_grid(1), second_noise=NOISE)
    assert torch.equal(ends(None), reused)
    assert torch.equal(ends(stream(1, "n")), ends(stream(1, "n"))) and not torch.equal(ends(stream(1, "n")), reused)


@pytest.mark.parametrize(("sampler", "num_steps", "calls"), [("jump", 3, 3), ("heun", 3, 5), ("hybrid", 3, 3)])
def test_number_of_network_evaluations(sampler: Sampler, num_steps: int, calls: int) -> None:
    seen = []

    def velocity(x: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Tensor:
        seen.append(1)
        return _gaussian(x, t, r, cond)

    sample(velocity, NOISE, COND, num_steps=num_steps, sampler=sampler)
    assert len(seen) == calls


def test_warm_start_keeps_what_the_start_knows() -> None:
    """One jump from x = (1 - t) start + t noise ends at sigma(0) / sigma(t) x for Gaussian actions."""
    start = SPREAD * torch.randn(NOISE.shape, generator=stream(2, "s")).double()
    end = sample(_gaussian, NOISE, COND, num_steps=1, start=start, start_time=0.25)
    wanted = SPREAD / float(_sigma(torch.tensor(0.25))) * (0.75 * start + 0.25 * NOISE)
    torch.testing.assert_close(end, wanted, rtol=0, atol=1e-6)
    cold = sample(_gaussian, NOISE, COND, num_steps=1, start=start, start_time=1.0)
    torch.testing.assert_close(cold, sample(_gaussian, NOISE, COND, num_steps=1), rtol=0, atol=1e-12)


def test_shifted_chunk_is_the_rest_and_its_last_action_again() -> None:
    chunk = torch.arange(4.0).reshape(1, 4, 1)
    assert shift_chunk(chunk, 3).flatten().tolist() == [3, 3, 3, 3]
    assert shift_chunk(chunk, 1).flatten().tolist() == [1, 2, 3, 3]
    assert torch.equal(shift_chunk(chunk, 0), chunk)
    with pytest.raises(ValueError, match=r"\[0, 4\], got 5"):
        shift_chunk(chunk, 5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"sampler": "euler", "num_steps": 1}, "jump, heun, hybrid"),
        ({"sampler": "hybrid", "num_steps": 1}, "num_steps >= 2"),
        ({"num_steps": 1, "start_time": 0.5}, "needs a start"),
        ({"num_steps": 1, "start": NOISE, "start_time": 0.0}, r"\(0, 1\]"),
        ({"num_steps": 0}, "num_steps"),
    ],
)
def test_impossible_requests_are_refused(words: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(_gaussian, NOISE, COND, **words)


def test_hybrid_refuses_a_tau_outside_its_range() -> None:
    with pytest.raises(ValueError, match="tau"):
        sample_hybrid(_gaussian, NOISE, COND, time_grid(1), second_noise=NOISE, tau=1.0)
