"""Classifier-free guidance folded into the training target, so that sampling stays one network evaluation."""

import math
from typing import final

import torch
from torch import Tensor, nn

from flowpolicy.flow.exact import without_tf32
from flowpolicy.flow.meanflow import Velocity
from flowpolicy.flow.path import expand
from flowpolicy.seeding import uniform

_NEGLIGIBLE = 1e-9  # a weight that is only rounding, as in 1 - 1.1 + 0.1


@final
class Guidance(nn.Module):
    """Replaces the path velocity v = noise - action by a guided one and now and then the condition by a learned null.

    v~ = omega v + kappa u(x_t, t, t | cond) + (1 - omega - kappa) u(x_t, t, t | null)

    where t_start <= t <= t_end and the condition was not dropped, else v. Both u are constants. The head regresses on
    v~ and derives along it, so the net learns the guided field and needs no second evaluation afterwards. MP1's
    released code has no null condition and evaluates u(x_t, t, t | cond) in its place: omega 2, kappa -1, cond_dropout
    0, whose effective scale is 1. Sources: Geng et al. 2025 (omega, kappa); Sheng et al. 2025 (MP1); Kynkaanniemi et
    al. 2024 (the interval of t).

    Args:
        cond_dim: D.
        omega: The effective scale is omega / (1 - kappa); 1 leaves the field as it is. MP1: 2 and 0. The exact guided
            flow of a policy comes back to the condition's action, but training sees that condition's own paths only,
            off which the guided flow leads: where the action is the condition c, one step lands at 2.0 c with omega 2
            (docs/lab-notes.md, guidance of MP1).
        kappa: As `omega`.
        cond_dropout: Share of rows trained on the null condition; 0.1 in MeanFlow and MP1.
        t_start: First flow time with guidance.
        t_end: Last flow time with guidance.

    Raises:
        ValueError: For numbers out of range, or a null condition that counts but is never trained.
    """

    def __init__(
        self,
        *,
        cond_dim: int,
        omega: float = 2.0,
        kappa: float = 0.0,
        cond_dropout: float = 0.1,
        t_start: float = 0.0,
        t_end: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0.0 < omega < math.inf or not -math.inf < kappa < 1.0:
            raise ValueError(f"guidance: wanted omega > 0 and kappa < 1, both finite, got {omega=}, {kappa=}")
        if not 0.0 <= cond_dropout < 1.0:
            raise ValueError(f"guidance: cond_dropout must lie in [0, 1), got {cond_dropout}")
        if not 0.0 <= t_start < t_end <= 1.0:
            raise ValueError(f"guidance: wanted 0 <= t_start < t_end <= 1, got {t_start=}, {t_end=}")
        self.omega, self.kappa, self.null_weight = omega, kappa, 1.0 - omega - kappa
        self.cond_dropout, self.t_start, self.t_end = cond_dropout, t_start, t_end
        if abs(self.null_weight) > _NEGLIGIBLE and cond_dropout == 0.0:
            raise ValueError(
                f"guidance: {omega=}, {kappa=} weigh the null condition with {self.null_weight:g}, and cond_dropout=0 "
                "never trains it; try cond_dropout=0.1"
            )
        self.null = nn.Parameter(torch.zeros(cond_dim)) if cond_dropout else None

    def forward(
        self,
        velocity: Velocity,
        x_t: Tensor,
        t: Tensor,
        cond: Tensor,
        path_velocity: Tensor,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """The condition (B, D) to train on and the velocity (B, H, A) to train towards, the latter detached.

        Args:
            velocity: The head's, at r = t.
            x_t: (B, H, A).
            t: (B,).
            cond: (B, D).
            path_velocity: As `x_t`.
            generator: Where random numbers come from.
        """
        guided = (t >= self.t_start) & (t <= self.t_end)
        null = None
        trained = cond
        if self.null is not None:
            null = self.null.to(cond.dtype).expand_as(cond)
            dropped = uniform(t.shape, generator) < self.cond_dropout
            guided = guided & ~dropped
            trained = torch.where(dropped[:, None], null, cond)
        target = torch.where(
            expand(guided, x_t), self._field(velocity, x_t, t, cond, null, path_velocity), path_velocity
        )
        return trained, target

    @torch.no_grad()
    def _field(
        self, velocity: Velocity, x_t: Tensor, t: Tensor, cond: Tensor, null: Tensor | None, path_velocity: Tensor
    ) -> Tensor:
        # float32, as all that a loss takes for constant. Under autocast torch before 2.10 would keep the weights that
        # are cast here without a graph for the pass that follows with one: they got no gradient then
        with torch.autocast(x_t.device.type, enabled=False), without_tf32():
            field = self.omega * path_velocity
            if abs(self.kappa) > _NEGLIGIBLE:
                field = field + self.kappa * velocity(x_t, t, t, cond)
            if null is not None and abs(self.null_weight) > _NEGLIGIBLE:
                field = field + self.null_weight * velocity(x_t, t, t, null)
        return field.to(path_velocity.dtype)
