"""Drift head: a one-step generator trained by moving its own samples towards the expert and apart from one another."""

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from flowpolicy.flow.drift import SCALES, Scale, drift
from flowpolicy.flow.losses import masked_mean_square
from flowpolicy.heads.base import Head, Parameterization, check_parameterization
from flowpolicy.nets.base import VelocityNet
from flowpolicy.types import LossOutput

_FADE = 0.05  # width of the step from squared error to drift, in shares of training (Ada3Drift)


@final
class DriftHead(Head):
    """f(noise, cond), regressed on where the drifting field of `flow.drift` takes its samples. No time, no ODE.

    As a velocity x_t - f(x_t, cond), so one step from noise lands on f. The loss does not fall as training goes on: the
    field has a fixed length. Watch drift_distance and drift_best instead; learning-rate decay and averaged weights are
    what lets it come to rest. Sources: Deng et al. 2026 (arXiv 2602.04770); DBP (arXiv 2604.03540); Ada3Drift (arXiv
    2603.11984).

    Args:
        net: The network that is trained, f(x_t, t, r, cond) -> (B, H, A).
        parameterization: "x": the net's output is f, as published; "u": noise minus the output, so that training starts
            with samples as wide as the noise. With "x" `ResidualMLP` takes one of two ways only in 1 of 5 seeds, with
            "u" in none of 8, which makes a single way of spread 0.05 one of 0.12 (docs/lab-notes.md, drifting).
        num_samples: Chunks for each observation, G; 4 as in DBP.
        temperatures: 0.02, 0.05, 0.2 everywhere.
        scale: "positive", or "all" as published, which collapses to mean regression where there is one demonstrated
            action for each observation: `flow.drift.drift`.
        mse_until: Share of training before which the loss is the squared error to the expert (each sample's), then the
            drift; 0.7 in Ada3Drift, 0 is no squared error.
    """

    max_steps = 1
    progress: Tensor

    def __init__(
        self,
        net: VelocityNet,
        *,
        parameterization: Parameterization = "x",
        num_samples: int = 4,
        temperatures: Sequence[float] = (0.02, 0.05, 0.2),
        scale: Scale = "positive",
        mse_until: float = 0.0,
    ) -> None:
        super().__init__()
        check_parameterization(parameterization)
        if num_samples < 1 or not temperatures or not all(0.0 < value < math.inf for value in temperatures):
            raise ValueError(
                f"wanted num_samples >= 1 and positive temperatures, got {num_samples=}, {list(temperatures)}"
            )
        if scale not in SCALES:
            raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
        if not 0.0 <= mse_until <= 1.0:
            raise ValueError(f"mse_until is a share of training and must lie in [0, 1], got {mse_until}")
        self.net, self.num_samples, self.temperatures = net, num_samples, tuple(temperatures)
        self.parameterization: Parameterization = parameterization
        self.scale: Scale = scale
        self.mse_until = mse_until
        self.register_buffer("progress", torch.zeros(()))

    def velocity(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Tensor:
        """See `Head`; meaningful only for the single step from t = 1 to r = 0."""
        del t, r
        return x_t - self._generate(x_t, cond)

    def loss(self, action: Tensor, cond: Tensor, mask: Tensor, generator: torch.Generator) -> LossOutput:
        """See `Head`. Metrics: loss_drift; drift_distance, the mean distance that scales it; drift_force_T, the field
        before it is made length 1, for each temperature T; drift_best, squared error of the best of the samples.
        """
        batch, horizon, dim = action.shape
        each_cond = self._each(cond)
        noise = self.source.draw(self._each(action), each_cond, generator)
        chunks = self._generate(noise, each_cond).to(action.dtype)
        valid = mask[..., None].expand_as(action).flatten(1)  # (B, S), S = H A
        samples = chunks.reshape(batch, self.num_samples, -1) * valid[:, None]
        expert = (action.flatten(1) * valid)[:, None]  # (B, 1, S)
        moved = drift(samples, expert, temperatures=self.temperatures, scale=self.scale, valid=valid)
        scaled = samples / moved.scale[:, None, None]
        delta = (scaled - (scaled.detach() + moved.field)).unflatten(-1, (horizon, dim))  # (B, G, H, A)
        loss = masked_mean_square(delta.flatten(0, 1), self._each(mask)).mean()
        errors = masked_mean_square((samples - expert).unflatten(-1, (horizon, dim)).flatten(0, 1), self._each(mask))
        errors = errors.unflatten(0, (batch, self.num_samples))
        metrics = {"loss_drift": loss, "drift_distance": moved.distance, "drift_best": errors.amin(dim=1).mean()}
        forces = zip(self.temperatures, moved.forces, strict=True)
        metrics |= {f"drift_force_{temperature:g}": force for temperature, force in forces}
        if self.mse_until > 0.0:
            share = torch.sigmoid((self.progress - self.mse_until) / _FADE)
            loss = share * loss + (1.0 - share) * errors.mean()
        return LossOutput(loss, {name: value.detach() for name, value in metrics.items()})

    def after_step(self, progress: float) -> None:
        """Note the share of training done."""
        self.progress.fill_(progress)

    def _each(self, value: Tensor) -> Tensor:
        """Every row once for each of the samples."""
        return value.repeat_interleave(self.num_samples, dim=0)

    def _generate(self, noise: Tensor, cond: Tensor) -> Tensor:
        """The net at a constant time, t = 1, r = 0."""
        ones = noise.new_ones(noise.shape[0])
        output = self.net(noise, ones, torch.zeros_like(ones), cond)
        return output if self.parameterization == "x" else noise - output
