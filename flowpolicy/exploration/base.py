"""What every exploration offers, and the two functions that use it: sample a chain, score a chain."""

import math
import warnings
from abc import ABC, abstractmethod
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from flowpolicy.flow.gaussian import Gaussian
from flowpolicy.flow.meanflow import Velocity
from flowpolicy.flow.path import expand
from flowpolicy.heads.base import Head

Needs = Literal["jumps", "velocity", "flow_map"]
"""What a head must give: any jumps; an instantaneous velocity at r = t of the straight path; a flow map to every r."""


class Chain(NamedTuple):
    """The stochastic transitions of one sampled chunk, S of the K steps; the others were deterministic.

    Args:
        before: (B, S, H, A), state at both ends, never clamped.
        after: As `before`.
        step: (B, S) int64, which of the K steps, rising.
        log_prob: (B, S, H, A), of each entry of `after`.
        action: (B, H, A), the state at t = 0.
    """

    before: Tensor
    after: Tensor
    step: Tensor
    log_prob: Tensor
    action: Tensor


class ChainScore(NamedTuple):
    """Of the same transitions under the present weights: log_prob, entropy, std, (B, S, H, A) each.

    Args:
        log_prob: Of each entry.
        entropy: Of each entry.
        std: Of each entry.
    """

    log_prob: Tensor
    entropy: Tensor
    std: Tensor


class Exploration(nn.Module, ABC):
    """Gaussian transitions over flow times.

    Left out of every density is that of the starting noise: it has no parameters and cancels in every ratio.

    Attributes:
        num_steps: K, steps of the chain.
        deploy_steps: Network evaluations of the noise-free policy that it trains.
        needs: What the head must give.
    """

    num_steps: int
    deploy_steps: int
    needs: Needs

    @abstractmethod
    def times(self) -> Tensor:
        """(K+1,) falling from 1 to 0."""

    @abstractmethod
    def pick_steps(self, batch: int, generator: torch.Generator) -> Tensor:
        """(B, S) int64, rising along S: which steps are stochastic, for each sample.

        Args:
            batch: B.
            generator: Where random numbers come from.
        """

    @abstractmethod
    def transition(self, velocity: Velocity, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Gaussian:
        """Distribution of the state at r given x_t (B, H, A) at t.

        Args:
            velocity: As `Head.velocity`.
            x_t: (B, H, A), the state at flow time t.
            t: (B,).
            r: As `t`.
            cond: (B, D).
        """

    def set_progress(self, progress: float) -> None:
        """Called before every iteration with the share of fine-tuning done; for schedules.

        Args:
            progress: 0 to 1.
        """


def jump(velocity: Velocity, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Tensor:
    """The deterministic step of `sample_ode`, (B, H, A).

    Args:
        velocity: Average velocity over [r, t] at x_t, as `Head.velocity`.
        x_t: (B, H, A), the state at flow time t.
        t: (B,), flow time, 1 noise, 0 action.
        r: (B,), flow time to go to, r <= t.
        cond: (B, D), the condition.
    """
    return x_t - expand(t - r, x_t) * velocity(x_t, t, r, cond)


@torch.no_grad()
def sample_chain(
    exploration: Exploration, velocity: Velocity, noise: Tensor, cond: Tensor, generator: torch.Generator
) -> Chain:
    """Walk from `noise` (B, H, A) to an action; cond: (B, D).

    The deterministic steps are those of the deployed policy (`sample_ode`), so that only the noise differs from it.

    Args:
        exploration: How the policy draws actions to learn from, and their densities.
        velocity: As `Head.velocity`.
        noise: (B, H, A).
        cond: (B, D), the condition.
        generator: Where random numbers come from.
    """
    times = exploration.times().to(noise)
    step = exploration.pick_steps(noise.shape[0], generator)  # (B, S)
    before = noise.new_zeros(*step.shape, *noise.shape[1:])
    after, log_prob = before.clone(), before.clone()
    x = noise
    for i in range(exploration.num_steps):
        t, r = (times[k].expand(x.shape[0]) for k in (i, i + 1))
        here = step == i  # (B, S), at most one per row
        stochastic, moved = here.any(dim=1), torch.empty_like(x)
        if not stochastic.all():
            rest = ~stochastic
            moved[rest] = jump(velocity, x[rest], t[rest], r[rest], cond[rest])
        if stochastic.any():
            start = x[stochastic]
            gaussian = exploration.transition(velocity, start, t[stochastic], r[stochastic], cond[stochastic])
            moved[stochastic] = drawn = gaussian.sample(generator).to(x)
            before[here], after[here], log_prob[here] = start, drawn, gaussian.log_prob(drawn).to(x)
        x = moved
    return Chain(before, after, step, log_prob, x)


def chain_log_prob(exploration: Exploration, velocity: Velocity, chain: Chain, cond: Tensor) -> ChainScore:
    """Score the stored transitions with the same `transition` that drew them: the first ratio is 1.

    Args:
        exploration: How the policy draws actions to learn from, and their densities.
        velocity: As `Head.velocity`.
        chain: What `sample_chain` returned.
        cond: (B, D), the condition.
    """
    times = exploration.times().to(chain.before)
    parts = []
    for s in range(chain.step.shape[1]):
        step = chain.step[:, s]
        gaussian = exploration.transition(velocity, chain.before[:, s], times[step], times[step + 1], cond)
        after = chain.after[:, s]
        parts.append((gaussian.log_prob(after), gaussian.entropy(), gaussian.std.expand(after.shape)))
    return ChainScore(*(torch.stack(part, dim=1) for part in zip(*parts, strict=True)))


def require_support(exploration: Exploration, head: Head) -> None:
    """Raise ValueError unless `head` gives what `exploration` needs; warn where the deployed jump may get worse.

    Args:
        exploration: How the policy draws actions to learn from, and their densities.
        head: The policy's.
    """
    name, kind = type(exploration).__name__, type(head).__name__
    given = {"jumps": True, "velocity": head.has_velocity, "flow_map": head.has_flow_map}
    if not given[exploration.needs]:
        fit = "`FlowNoise`, which works with every head"
        raise ValueError(
            f"{name} needs the head's {exploration.needs.replace('_', ' ')}, which {kind} lacks; use {fit}"
        )
    if exploration.needs != "jumps" and not head.source.is_gaussian:
        raise ValueError(
            f"{name} computes with standard normal starting noise, which {type(head.source).__name__} does not give; "
            "use exploration=flow_noise, or a policy with the Gaussian source"
        )
    if head.max_steps is not None and exploration.num_steps > head.max_steps:
        raise ValueError(
            f"{name} takes {exploration.num_steps} steps, {kind} at most {head.max_steps}; lower `num_steps`"
        )
    if exploration.needs == "flow_map" and head.parameterization == "x":
        warnings.warn(
            f"{name} with a net that predicts the action: the deployed policy can get worse. Train it with "
            "`parameterization='u'`, or use `FlowNoise`",
            stacklevel=2,
        )


def every_step(batch: int, steps: int, generator: torch.Generator) -> Tensor:
    """(B, S) with 0 ... S-1 in every row.

    Args:
        batch: B.
        steps: S.
        generator: Where random numbers come from.
    """
    return torch.arange(steps, device=generator.device).expand(batch, steps)


def require_noise(level: float) -> None:
    """Raise ValueError unless an exploration's `noise_level` is positive and finite.

    Args:
        level: The exploration's `noise_level`.
    """
    if not 0.0 < level < math.inf:
        raise ValueError(
            f"noise_level must be positive and finite, got {level}: without noise there is no density and nothing to "
            "learn from; 0.5 is the default"
        )


def require_choice(name: str, value: str, choices: object) -> None:
    """Raise ValueError unless `value` is one of the Literal `choices`.

    Args:
        name: Of the setting.
        value: What came.
        choices: A `Literal` type.
    """
    if value not in get_args(choices):
        raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, got {value!r}")
