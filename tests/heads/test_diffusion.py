"""Diffusion head: closed forms, and step for step equality with diffusers' schedulers where they are installed."""

import pytest
import torch
from torch import Tensor

from flowpolicy.flow.diffusion import add_noise, cosine_signal
from flowpolicy.flow.times import time_grid
from flowpolicy.heads.diffusion import DiffusionHead, Prediction, Spacing
from flowpolicy.nets.base import Features, VelocityNet
from flowpolicy.nets.mlp import ResidualMLP
from flowpolicy.samplers import Ancestral
from flowpolicy.samplers.jump import sample_ode
from flowpolicy.seeding import stream
from tests.helpers import observation, small_policy

COND = torch.randn(8, 3, generator=stream(0, "cond"))
NOISE = torch.randn(8, 4, 2, generator=stream(0, "noise"))
SPACINGS: list[Spacing] = ["trailing", "leading"]


def _head(**words) -> DiffusionHead:
    torch.manual_seed(0)
    return DiffusionHead(ResidualMLP(action_dim=2, horizon=4, cond_dim=3, width=32), **words)


class _Known(VelocityNet):
    """What the best net would answer: `answer(x_t, signal)` at the level that `t` names."""

    cond_dim = 3

    def __init__(self, answer, train_steps: int = 100) -> None:
        super().__init__()
        self.answer, self.signal = answer, cosine_signal(train_steps)

    def forward_with_features(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> tuple[Tensor, Features]:
        """Output only."""
        level = (t * (len(self.signal) - 1)).round().long()
        return self.answer(x_t, self.signal[level][:, None, None]), {}


def test_signal_falls_from_one_to_almost_nothing() -> None:
    signal = cosine_signal(100)
    assert signal.shape == (101,) and signal[0] == 1.0 and bool((signal.diff() < 0).all())
    assert float(signal[50]) == pytest.approx(0.49384, abs=1e-5) and 0 < float(signal[-1]) < 1e-6


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction", ["sample", "epsilon"])
@pytest.mark.parametrize("num_steps", [1, 2, 4, 10, 100])
def test_point_mass_is_reached_in_any_number_of_steps(spacing: Spacing, prediction: Prediction, num_steps: int) -> None:
    def answer(x_t: Tensor, signal: Tensor) -> Tensor:
        return (
            torch.full_like(x_t, 0.3) if prediction == "sample" else (x_t - signal.sqrt() * 0.3) / (1 - signal).sqrt()
        )

    head = DiffusionHead(_Known(answer), prediction=prediction, spacing=spacing)
    chunk = sample_ode(head.velocity, NOISE, COND, time_grid(num_steps))
    # the noise of level 100 hides the action behind a factor 1 / sqrt(signal) = 6e4 of rounding
    assert float((chunk - 0.3).abs().max()) < (1e-5 if prediction == "sample" or spacing == "leading" else 0.05)


def test_gaussian_actions_keep_their_spread() -> None:
    """For actions ~ N(0, s^2) the best guess is known; a hundred deterministic steps carry N(0, 1) to N(0, s^2)."""
    s = 0.2

    def answer(x_t: Tensor, signal: Tensor) -> Tensor:
        return signal.sqrt() * s**2 / (signal * s**2 + 1 - signal) * x_t

    noise = torch.randn(4096, 1, 1, generator=stream(1, "n"))
    errors = []
    for num_steps in (5, 20, 100):
        chunk = sample_ode(DiffusionHead(_Known(answer)).velocity, noise, COND[:1], time_grid(num_steps))
        errors.append(abs(float(chunk.std()) - s))
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.01


@pytest.mark.parametrize("prediction", ["sample", "epsilon"])
def test_loss_is_zero_for_the_net_that_knows(prediction: Prediction) -> None:
    def answer(x_t: Tensor, signal: Tensor) -> Tensor:
        return (
            torch.full_like(x_t, 0.3) if prediction == "sample" else (x_t - signal.sqrt() * 0.3) / (1 - signal).sqrt()
        )

    head = DiffusionHead(_Known(answer), prediction=prediction)
    output = head.loss(torch.full((64, 4, 2), 0.3), COND, torch.ones(64, 4), stream(0, "n"))
    assert float(output.loss) < 1e-9 and list(output.metrics) == [f"loss_{prediction}"]


@pytest.mark.parametrize("spacing", SPACINGS)
def test_instantaneous_velocity_is_finite_at_every_time(spacing: Spacing) -> None:
    head = _head(spacing=spacing)
    for t in (1.0, 0.5, 0.01, 0.0):
        time = torch.full((8,), t)
        assert bool(head.velocity(NOISE, time, time, COND).isfinite().all())


def test_more_steps_than_noise_levels_are_beyond_the_head() -> None:
    assert _head(train_steps=50).max_steps == 50


@pytest.mark.parametrize(
    ("words", "message"),
    [({"prediction": "x"}, "'sample'"), ({"spacing": "linear"}, "'trailing'"), ({"train_steps": 0}, "at least 1")],
)
def test_bad_options_are_refused(words: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _head(**words)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction", ["sample", "epsilon"])
@pytest.mark.parametrize("num_steps", [1, 2, 10, 50])
def test_sampling_equals_diffusers_ddim(spacing: Spacing, prediction: Prediction, num_steps: int) -> None:
    diffusers = pytest.importorskip("diffusers", reason="parity needs the package diffusers")
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=100,
        beta_schedule="squaredcos_cap_v2",
        clip_sample=True,
        set_alpha_to_one=True,
        prediction_type=prediction,
        timestep_spacing=spacing,
    )
    scheduler.set_timesteps(num_steps)
    head = _head(prediction=prediction, spacing=spacing)
    x = NOISE
    with torch.no_grad():
        for k in scheduler.timesteps:
            time = torch.full((8,), (int(k) + 1) / 100)
            x = scheduler.step(head.net(x, time, time, COND), k, x).prev_sample
        ours = sample_ode(head.velocity, NOISE, COND, time_grid(num_steps))
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-5)


def test_noising_equals_diffusers_ddpm() -> None:
    diffusers = pytest.importorskip("diffusers", reason="parity needs the package diffusers")
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2")
    action = torch.randn(100, 4, 2, generator=stream(0, "a"))
    noise, k = torch.randn(100, 4, 2, generator=stream(1, "n")), torch.arange(100)
    ours = add_noise(action, noise, cosine_signal(100)[k + 1])
    torch.testing.assert_close(ours, scheduler.add_noise(action, noise, k), rtol=0, atol=1e-5)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction", ["sample", "epsilon"])
@pytest.mark.parametrize("num_steps", [1, 10, 50, 100])
def test_ancestral_sampling_equals_diffusers_ddpm(spacing: Spacing, prediction: Prediction, num_steps: int) -> None:
    diffusers = pytest.importorskip("diffusers", reason="parity needs the package diffusers")
    scheduler = diffusers.DDPMScheduler(
        num_train_timesteps=100,
        beta_schedule="squaredcos_cap_v2",
        variance_type="fixed_small",
        clip_sample=True,
        prediction_type=prediction,
        timestep_spacing=spacing,
    )
    scheduler.set_timesteps(num_steps)
    head = _head(prediction=prediction, spacing=spacing)
    x, generator = NOISE, stream(3, "fresh")
    with torch.no_grad():
        for k in scheduler.timesteps:
            time = torch.full((8,), (int(k) + 1) / 100)
            x = scheduler.step(head.net(x, time, time, COND), k, x, generator=generator).prev_sample
        ours = Ancestral(num_steps=num_steps)(head, NOISE, COND, stream(3, "fresh"))
    torch.testing.assert_close(ours, x, rtol=0, atol=2e-5)


def test_ancestral_steps_keep_the_spread_of_gaussian_actions_and_a_point_mass() -> None:
    s = 0.2

    def best(x_t: Tensor, signal: Tensor) -> Tensor:
        return signal.sqrt() * s**2 / (signal * s**2 + 1 - signal) * x_t

    noise, sampler = (
        torch.randn(8192, 1, 1, generator=stream(1, "n")),
        Ancestral(num_steps=1000),
    )  # in 100 steps it is 0.185
    head = DiffusionHead(_Known(best, 1000), train_steps=1000)
    chunk = sampler(head, noise, COND[:1], stream(2, "fresh"))
    assert float(chunk.std()) == pytest.approx(s, abs=0.01) and abs(float(chunk.mean())) < 0.01
    again = sampler(head, noise, COND[:1], stream(3, "fresh"))
    assert float((again - chunk).std()) > 0.5 * s  # the start does not decide the end, as it does for DDIM

    point = DiffusionHead(_Known(lambda x_t, signal: torch.full_like(x_t, 0.3)))
    chunk = Ancestral(num_steps=4)(point, NOISE, COND, stream(2, "fresh"))
    torch.testing.assert_close(chunk, torch.full_like(chunk, 0.3))


def test_a_policy_samples_ancestrally_where_its_head_has_noise_levels() -> None:
    obs, words = observation(4), {"num_steps": 10, "sampler": "ancestral"}
    policy = small_policy(head=DiffusionHead)
    chunk = policy.predict(obs, generator=stream(0, "a"), **words)
    assert torch.equal(chunk, policy.predict(obs, generator=stream(0, "a"), **words))
    assert not torch.equal(chunk, policy.predict(obs, num_steps=10, generator=stream(0, "a")))
    with pytest.raises(ValueError, match="pass generator="):
        policy.predict(obs, noise="zero", **words)
    with pytest.raises(ValueError, match="start_time=0.3 needs a start"):
        policy.predict(obs, generator=stream(0, "a"), start_time=0.3, **words)
    with pytest.raises(ValueError, match="MeanFlowHead has no noise levels"):
        small_policy().predict(obs, generator=stream(0, "a"), **words)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_step_begins_at_the_level_where_the_last_one_ended(spacing: Spacing) -> None:
    head = _head(spacing=spacing)
    for num_steps in range(2, 101):
        times = time_grid(num_steps)
        gap = times[:-1] - times[1:]
        before, after = head._levels(times[1:], gap)
        assert torch.equal(before[1:], after[:-1]), num_steps
        assert torch.equal(before[1:], head._levels(times[:-1] - gap, gap)[0][1:]), num_steps
