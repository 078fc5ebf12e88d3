"""Diffusion head: DDPM's training, DDIM's or DDPM's sampling; Diffusion Policy and DP3 beside the one-step heads."""

from typing import Literal, final, get_args

import torch
from torch import Tensor

from flowpolicy.flow.diffusion import add_noise, ancestral_step, cosine_signal
from flowpolicy.flow.losses import LossWeighting, masked_mean_square
from flowpolicy.flow.path import expand
from flowpolicy.heads.base import Head
from flowpolicy.nets.base import VelocityNet
from flowpolicy.types import LossOutput

Prediction = Literal["sample", "epsilon"]
Spacing = Literal["trailing", "leading"]


@final
class DiffusionHead(Head):
    """The net denoises; DDIM's jump from one noise level to another is handed out as a velocity.

    The state x_t is diffusion's own, sqrt(signal) action + sqrt(1 - signal) noise at level `train_steps` t, not a point
    on the straight path: (x_t - DDIM step) / (t - r) makes `sample_ode` walk DDIM's states exactly. What the net makes
    of a state is clamped to the range of the demonstrated actions before it is noised again; DP3 and Diffusion Policy
    clamp at [-1, 1], which is that range where actions are normalised to it. Sources: Ho et al. 2020 (DDPM); Song et
    al. 2021 (DDIM); Chi et al. 2023; Ze et al. 2024 (DP3); Lin et al. 2024, "Common Diffusion Noise Schedules and
    Sample Steps are Flawed" (spacing).

    Args:
        net: The network that is trained, f(x_t, t, r, cond) -> (B, H, A).
        prediction: "sample" is the action, as in DP3; "epsilon" the noise, as in Diffusion Policy.
        train_steps: Noise levels; 100 in both. Sample with num_steps=10 as DP3 does.
        spacing: Which levels K steps visit. "trailing" starts at the last one, so that any K works; "leading" is what
            DP3 and Diffusion Policy use: it starts K levels earlier and calls pure noise what is not (one step gives 0
            success). Both equal diffusers' wherever K divides train_steps.
        loss_power: `LossWeighting`; power 0 is the published squared error.
        loss_eps: As `loss_power`.
    """

    has_noise_levels = True
    signal: Tensor
    action_low: Tensor
    action_high: Tensor

    def __init__(
        self,
        net: VelocityNet,
        *,
        prediction: Prediction = "sample",
        train_steps: int = 100,
        spacing: Spacing = "trailing",
        loss_power: float = 0.0,
        loss_eps: float = 1e-3,
    ) -> None:
        super().__init__()
        if prediction not in get_args(Prediction):
            raise ValueError(f"prediction must be 'sample' (the action) or 'epsilon' (the noise), got {prediction!r}")
        if spacing not in get_args(Spacing):
            raise ValueError(f"spacing must be 'trailing' or 'leading', got {spacing!r}")
        self.net, self.prediction, self.spacing = net, prediction, spacing
        self.train_steps = self.max_steps = train_steps
        self.weighting = LossWeighting(loss_power, loss_eps)
        self.register_buffer("signal", cosine_signal(train_steps), persistent=False)  # (T+1,)
        self.register_buffer("action_low", -torch.ones(()), persistent=False)  # the policy keeps them
        self.register_buffer("action_high", torch.ones(()), persistent=False)

    def set_action_range(self, low: Tensor, high: Tensor) -> None:
        """See `Head`."""
        self.action_low, self.action_high = low.clone(), high.clone()

    def velocity(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Tensor:
        """See `Head`; where r = t, the slope of the jump over a single noise level."""
        gap = (t - r).clamp_min(1.0 / self.train_steps)
        level, next_level = self._levels(t - gap, gap)
        action, noise = self._split(x_t, level, cond)
        return (x_t - add_noise(action, noise, self.signal[next_level])) / expand(gap, x_t)

    def ancestral_step(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor, noise: Tensor) -> Tensor:
        """See `Head`."""
        level, next_level = self._levels(r, t - r)
        action, _ = self._split(x_t, level, cond)
        return ancestral_step(x_t, action, noise, self.signal[level], self.signal[next_level])

    def loss(self, action: Tensor, cond: Tensor, mask: Tensor, generator: torch.Generator) -> LossOutput:
        """See `Head`. Metrics: loss_sample or loss_epsilon, the squared error of what the net predicts."""
        noise = self.source.draw(action, cond, generator)
        size = action.shape[:1]
        level = torch.randint(1, self.train_steps + 1, size, generator=generator, device=action.device)
        output = self._predict(add_noise(action, noise, self.signal[level]), level, cond)
        wanted = action if self.prediction == "sample" else noise
        error = masked_mean_square(output - wanted, mask)
        return LossOutput(self.weighting(error), {f"loss_{self.prediction}": error.mean().detach()})

    def _levels(self, end: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
        """Noise level of the state before and after a jump of length `gap` that ends at time `end`; each (B,) int64."""
        if self.spacing == "trailing":
            before, after = end + gap, end
        else:  # one jump late, and one level up
            before, after = end + 1.0 / self.train_steps, end - gap + 1.0 / self.train_steps
        # to a thousandth first: one step's end must round to the next one's start, also where both lie at a half
        levels = (((self.train_steps * time * 1e3).round() / 1e3).round().long() for time in (before, after))
        before, after = levels
        return before.clamp(1, self.train_steps), after.clamp(0, self.train_steps)

    def _split(self, x_t: Tensor, level: Tensor, cond: Tensor) -> tuple[Tensor, Tensor]:
        """The action, inside its range, and the noise that the net sees in x_t, (B, H, A) each; the noise as it is."""
        output = self._predict(x_t, level, cond)
        signal = expand(self.signal[level], x_t)
        if self.prediction == "sample":
            action, noise = output, (x_t - signal.sqrt() * output) / (1.0 - signal).sqrt()
        else:
            action, noise = (x_t - (1.0 - signal).sqrt() * output) / signal.sqrt(), output
        return action.clamp(self.action_low, self.action_high), noise

    def _predict(self, x_t: Tensor, level: Tensor, cond: Tensor) -> Tensor:
        time = level.float() / self.train_steps
        return self.net(x_t, time, time, cond).float()
