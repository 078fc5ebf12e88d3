"""Samplers on flows known in closed form: a point mass, Gaussian actions; their counts; warm starts; descriptions."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flowpolicy.flow.path import expand
from flowpolicy.flow.times import time_grid
from flowpolicy.heads.base import Head
from flowpolicy.samplers import (
    Ancestral,
    Heun,
    Hybrid,
    Jump,
    Sampler,
    WarmStart,
    as_sampler,
    create_sampler,
    shift_chunk,
)
from flowpolicy.samplers.base import require_fixed, require_support
from flowpolicy.samplers.jump import sample_ode
from flowpolicy.seeding import stream
from flowpolicy.types import LossOutput

COND = torch.zeros(1, 1, dtype=torch.float64)
NOISE = torch.randn(64, 4, 2, generator=stream(0, "n")).double()
SPREAD = 0.5  # standard deviation of the Gaussian actions
FLOWS = [Jump, Heun, Hybrid]


class Exact(Head):
    """A head that knows its flow; it counts how often it is asked."""

    has_velocity = has_flow_map = has_noise_levels = True

    def __init__(self, flow: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.flow, self.calls = flow, 0
        self.times: list[tuple[float, float]] = []

    def velocity(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Tensor:
        self.calls += 1
        self.times.append((float(t[0]), float(r[0])))
        return self.flow(x_t, t, r)

    def ancestral_step(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor, noise: Tensor) -> Tensor:
        self.calls += 1
        return x_t - expand(t - r, x_t) * self.flow(x_t, t, r) + expand(r, x_t) * noise

    def loss(self, action: Tensor, cond: Tensor, mask: Tensor, generator: torch.Generator) -> LossOutput:
        raise AssertionError


def _sigma(t: Tensor) -> Tensor:
    return ((1 - t) ** 2 * SPREAD**2 + t**2).sqrt()


def _gaussian(x: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """Exact average velocity for actions ~ N(0, SPREAD^2): the flow maps x_t to x_t sigma(r) / sigma(t)."""
    same = (t - r) < 1e-12
    average = x * expand((1 - _sigma(r) / _sigma(t)) / torch.where(same, 1.0, t - r), x)
    instant = x * expand((t - (1 - t) * SPREAD**2) / _sigma(t) ** 2, x)
    return torch.where(expand(same, x), instant, average)


def _point(x: Tensor, t: Tensor, r: Tensor) -> Tensor:
    return (x - 0.3) / expand(t, x)


def _euler(x: Tensor, t: Tensor, r: Tensor) -> Tensor:
    return _gaussian(x, t, t)


@pytest.mark.parametrize("kind", FLOWS)
@pytest.mark.parametrize("num_steps", [2, 3, 8])
@pytest.mark.parametrize("time", [1.0, 0.85, 0.2])
def test_every_sampler_lands_on_a_point_mass_from_anywhere(kind: type[Sampler], num_steps: int, time: float) -> None:
    sampler = kind(num_steps=num_steps)
    if time < 1:  # off the path of 0.3, (x - 0.3) / t differs
        sampler = WarmStart(sampler=sampler, time=time).begin_at(torch.full_like(NOISE, 0.3))
    end = sampler(Exact(_point), NOISE, COND, stream(1, "n"))
    assert float((end - 0.3).abs().max()) < 1e-6  # the grid is float32


def test_one_jump_with_the_exact_average_velocity_is_the_flow() -> None:
    for num_steps in (1, 2, 7):
        end = Jump(num_steps=num_steps)(Exact(_gaussian), NOISE, COND)
        torch.testing.assert_close(end, SPREAD * NOISE, rtol=0, atol=1e-6)


def test_heun_is_of_second_order_and_costs_one_evaluation_less_than_two_per_interval() -> None:
    counts, errors = [], []
    for num_steps in (16, 32, 64, 128):
        head = Exact(_gaussian)
        end = Heun(num_steps=num_steps)(head, NOISE, COND)
        assert all(t == r > 0 for t, r in head.times)
        errors.append(float((end - SPREAD * NOISE).abs().max()))
        counts.append(head.calls)
    assert counts == [31, 63, 127, 255]
    assert all(3.5 < before / after < 4.5 for before, after in zip(errors, errors[1:], strict=False)), errors


def test_heun_beats_euler_at_equal_evaluations_and_is_euler_in_one_interval() -> None:
    def error(end: Tensor) -> float:
        return float((end - SPREAD * NOISE).norm())

    heun = error(Heun(num_steps=16)(Exact(_gaussian), NOISE, COND))
    assert heun < 0.2 * error(Jump(num_steps=31)(Exact(_euler), NOISE, COND))
    assert torch.equal(Heun()(Exact(_gaussian), NOISE, COND), Jump()(Exact(_euler), NOISE, COND))


@pytest.mark.parametrize(
    ("tau", "fresh", "used"), [(0.15, 0.4715, 0.6015), (0.05, 0.497, 0.547), (0.25, 0.416, 0.577), (0.0, 0.5, 0.5)]
)
def test_hybrid_gives_the_spread_of_its_closed_form(tau: float, fresh: float, used: float) -> None:
    """With sigma the flow's spread: x_tau = (1 - tau) SPREAD a + tau b, of which the mean action is denoised."""
    many = torch.randn(40_000, 1, 1, generator=stream(4, "n")).double()
    drawn = Hybrid(tau=tau)(Exact(_gaussian), many, COND, stream(1, "n"))
    assert float(drawn.std()) == pytest.approx(fresh, abs=0.005)
    again = Hybrid(tau=tau)(Exact(_gaussian), torch.ones(1, 1, 1).double(), COND)  # linear: its coefficient
    assert float(again) == pytest.approx(used, abs=1e-3)


def test_hybrid_draws_its_second_noise_from_the_generator_and_reuses_the_first_without() -> None:
    def ends(generator: torch.Generator | None) -> Tensor:
        return Hybrid()(Exact(_gaussian), NOISE, COND, generator)

    assert torch.equal(ends(None), ends(None)) and not torch.equal(ends(stream(1, "n")), ends(None))
    assert torch.equal(ends(stream(1, "n")), ends(stream(1, "n")))


@pytest.mark.parametrize("num_steps", [2, 3, 8])
@pytest.mark.parametrize("kind", [*FLOWS, Ancestral])
@pytest.mark.parametrize("warm", [False, True])
def test_the_network_is_asked_as_often_as_a_sampler_says(kind: type[Sampler], num_steps: int, warm: bool) -> None:
    sampler, head = kind(num_steps=num_steps), Exact(_gaussian)
    sampler = WarmStart(sampler=sampler).begin_at(torch.zeros_like(NOISE)) if warm else sampler
    sampler(head, NOISE, COND, stream(1, "n"))
    assert head.calls == sampler.evaluations == (2 * num_steps - 1 if kind is Heun else num_steps)
    assert sampler.draws == (kind in (Hybrid, Ancestral))


def test_ancestral_steps_get_fresh_noise_and_the_last_one_none() -> None:
    """With steps that add r noise, what is left of the last one's is nothing."""
    head = Exact(lambda x, t, r: torch.zeros_like(x))
    zero = torch.zeros_like(NOISE)
    drawn = [torch.randn(NOISE.shape, generator=g) for g in [stream(1, "n")] for _ in range(3)]
    end = Ancestral(num_steps=3)(head, zero, COND, stream(1, "n"))
    torch.testing.assert_close(end, (2 * drawn[0] + drawn[1]).double() / 3, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="pass generator="):
        Ancestral()(head, NOISE, COND)


def test_warm_start_keeps_what_the_start_knows() -> None:
    """One jump from x = (1 - t) start + t noise ends at sigma(0) / sigma(t) x for Gaussian actions."""
    start = SPREAD * torch.randn(NOISE.shape, generator=stream(2, "s")).double()
    end = WarmStart(time=0.25).begin_at(start)(Exact(_gaussian), NOISE, COND)
    wanted = SPREAD / float(_sigma(torch.tensor(0.25))) * (0.75 * start + 0.25 * NOISE)
    torch.testing.assert_close(end, wanted, rtol=0, atol=1e-6)
    cold, jump = (
        WarmStart(time=1.0).begin_at(start)(Exact(_gaussian), NOISE, COND),
        Jump()(Exact(_gaussian), NOISE, COND),
    )
    torch.testing.assert_close(cold, jump, rtol=0, atol=1e-12)
    assert torch.equal(WarmStart(time=0.25)(Exact(_gaussian), NOISE, COND), jump)  # no start yet


def test_a_warm_start_takes_its_number_of_steps_from_either_side() -> None:
    inner = WarmStart(sampler=Heun(num_steps=4))
    assert inner.num_steps == 4 and inner.evaluations == 7
    outer = replace(inner, num_steps=2)
    assert outer.sampler == Heun(num_steps=2) and outer == WarmStart(num_steps=2, sampler=Heun(num_steps=9))


def test_shifted_chunk_is_the_rest_and_its_last_action_again() -> None:
    chunk = torch.arange(4.0).reshape(1, 4, 1)
    assert shift_chunk(chunk, 3).flatten().tolist() == [3, 3, 3, 3]
    assert shift_chunk(chunk, 1).flatten().tolist() == [1, 2, 3, 3]
    assert torch.equal(shift_chunk(chunk, 0), chunk)
    with pytest.raises(ValueError, match=r"\[0, 4\], got 5"):
        shift_chunk(chunk, 5)


def test_sample_ode_follows_any_falling_times() -> None:
    velocity = Exact(_gaussian).velocity
    assert torch.equal(
        sample_ode(velocity, NOISE, COND, time_grid(3)), sample_ode(velocity, NOISE, COND, time_grid(3).tolist())
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Jump(num_steps=0), "sampler jump: num_steps must be a whole number of at least 1"),
        (lambda: Heun(num_steps=1.5), "at least 1 network evaluation, got 1.5"),  # type: ignore[arg-type]
        (lambda: Jump(num_steps=True), "got True"),
        (lambda: Hybrid(num_steps=1), "num_steps >= 2"),
        (lambda: Hybrid(tau=1.0), "tau"),
        (lambda: WarmStart(time=0.0), r"\(0, 1\]"),
        (lambda: WarmStart(sampler=WarmStart()), "none itself"),
        (lambda: as_sampler("euler"), "jump, heun, hybrid"),
        (lambda: as_sampler(Heun(num_steps=2), 4), r"say it once, in the sampler: Heun\(num_steps=4\)"),
        (lambda: create_sampler({"_target_": "os.system", "command": "ls"}), "names os.system"),
        (lambda: create_sampler({"_target_": "flowpolicy.samplers.heun.Heun", "tau": 1}), "does not take"),
        (lambda: create_sampler({"num_steps": 1}), "wanted the description of a sampler"),
    ],
)
def test_impossible_requests_are_refused(make: Callable[[], Sampler], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("sampler", "label", "folder"),
    [
        (Jump(num_steps=4), "jump", "steps_4"),
        (Heun(num_steps=4), "heun", "heun_steps_4"),
        (Hybrid(), "hybrid", "hybrid_steps_2"),
        (Hybrid(num_steps=3, tau=0.2), "hybrid tau=0.2", "hybrid_tau_0.2_steps_3"),
        (WarmStart(num_steps=2), "warm_start", "warm_start_steps_2"),
        (WarmStart(sampler=Hybrid(tau=0.2), time=0.5), "warm_start sampler=hybrid tau=0.2 time=0.5", None),
    ],
)
def test_a_description_is_json_and_makes_the_same_sampler(sampler: Sampler, label: str, folder: str | None) -> None:
    assert sampler.label == label and folder in (sampler.folder, None)
    again = create_sampler(json.loads(json.dumps(sampler.to_dict())))
    assert again == sampler and hash(again) == hash(sampler) and again.label == label
    assert replace(sampler, num_steps=5) != sampler and replace(sampler, num_steps=5).label == label


def test_names_and_numbers_say_a_sampler_in_the_short_way() -> None:
    assert as_sampler() == Jump() and as_sampler(None, 4) == Jump(num_steps=4)
    assert as_sampler("heun", 8) == Heun(num_steps=8) and as_sampler("hybrid") == Hybrid()
    assert as_sampler(Heun(num_steps=8), 8) == Heun(num_steps=8)


class Bare(Head):
    """One that gives jumps only."""

    def __init__(self, max_steps: int | None = None) -> None:
        super().__init__()
        self.max_steps = max_steps

    def velocity(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Tensor:
        return x_t

    def loss(self, action: Tensor, cond: Tensor, mask: Tensor, generator: torch.Generator) -> LossOutput:
        raise AssertionError


@pytest.mark.parametrize(
    ("sampler", "most", "message"),
    [
        (Heun(), None, "Bare learns no instantaneous velocity, which sampler=heun asks for; use jump"),
        (Ancestral(), None, "Bare has no noise levels, which sampler=ancestral walks down; use jump"),
        (WarmStart(), 1, "Bare cannot start between noise and action, as sampler=warm_start does"),
        (Jump(num_steps=2), 1, r"Bare samples in at most 1 step\(s\), got num_steps=2; lower num_steps"),
    ],
)
def test_a_head_that_cannot_is_told_before_anything_runs(sampler: Sampler, most: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        require_support(sampler, Bare(most))
    require_support(Jump(), Bare(most))


def test_a_graph_takes_samplers_that_the_starting_noise_decides() -> None:
    for sampler in (Jump(), Heun(num_steps=3)):
        require_fixed(sampler)
    for sampler, reason in ((Hybrid(), "draws fresh noise"), (Ancestral(), "draws"), (WarmStart(), "the chunk before")):
        with pytest.raises(ValueError, match=f"sampler={sampler.name} .*{reason}"):
            require_fixed(sampler)
