"""Staying near the imitated policy: squared distances between the present policy and its frozen copy."""

from typing import Literal

import torch
from torch import Tensor

from flowpolicy.flow.path import interpolate
from flowpolicy.flow.times import num_equal_times
from flowpolicy.policy import FlowPolicy
from flowpolicy.samplers.jump import Jump
from flowpolicy.seeding import normal, uniform

Kind = Literal["paired", "velocity"]
DIAGONAL_SHARE = 0.5  # of the rows have r = t; random pairs never do


def bc_loss(
    policy: FlowPolicy,
    reference: FlowPolicy,
    cond: Tensor,
    reference_cond: Tensor,
    *,
    kind: Kind,
    num_steps: int,
    generator: torch.Generator,
) -> Tensor:
    """Mean over batch, rows and action entries of a squared difference at the same point; a scalar.

    "paired": of the chunks of `num_steps` noise-free steps; it bounds the squared Wasserstein-2 distance of the two
    policies' actions from above. "velocity": of the average velocities at random (r, t), r = t in half of the rows, on
    paths from the reference's one-step chunks to noise of their own; it keeps the inner maps and the diagonal in shape,
    which renoise and Langevin use. Sources: Zhang et al. 2025 (ReinFlow, with one fixed noise); DBPO's anchor; π_RL.

    Args:
        policy: The policy.
        reference: The policy as it came, frozen.
        cond: (B, D), as the two policies see the same observations.
        reference_cond: As `cond`.
        kind: "paired" or "velocity".
        num_steps: Network evaluations per chunk.
        generator: Where random numbers come from.
    """
    shape = (len(cond), policy.horizon, policy.embodiment.action_dim)
    noise = normal(shape, generator)
    head, frozen = policy.head, reference.head
    if kind == "paired":
        jump = Jump(num_steps=num_steps)
        with torch.no_grad():
            wanted = jump(frozen, noise, reference_cond)
        return (jump(head, noise, cond) - wanted).square().mean()
    pair = uniform((2, len(cond)), generator)
    equal = num_equal_times(len(cond), DIAGONAL_SHARE)
    pair[1, :equal] = pair[0, :equal]
    t, r = pair.amax(dim=0), pair.amin(dim=0)
    # the noise that made the action is no fresh draw: with it x_t would be too wide, and never where the policy goes
    fresh = normal(shape, generator)
    with torch.no_grad():
        action = Jump()(frozen, noise, reference_cond)
        x_t, _ = interpolate(action, frozen.source(fresh, reference_cond), t)
        wanted = frozen.velocity(x_t, t, r, reference_cond)
    return (head.velocity(x_t, t, r, cond) - wanted).square().mean()
