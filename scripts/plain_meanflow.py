"""The MeanFlow training loss written plainly, for benchmarks: one Jacobian product of the whole batch, with a graph."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flowpolicy.flow.losses import masked_mean_square
from flowpolicy.flow.path import expand, interpolate
from flowpolicy.heads.meanflow import MeanFlowHead
from flowpolicy.nets.base import Features

Function = Callable[..., tuple[Tensor, Features]]


def plain_loss(
    head: MeanFlowHead,
    action: Tensor,
    cond: Tensor,
    mask: Tensor,
    generator: torch.Generator,
    *,
    jvp: Callable[..., Any],
    encode: Callable[[], Tensor] | None = None,
) -> Tensor:
    """`MeanFlowHead.loss` (objective meanflow, without guidance and direction loss).

    jvp: `forward_mode` or `double_backward`.   encode: computes the condition inside of what is differentiated.
    """
    assert head.objective == "meanflow" and head.guidance is None and head.direction is None
    noise = torch.randn(action.shape, generator=generator)
    t, r = head.times.pairs(len(action), generator, p_equal=head.p_equal)
    x_t, path_velocity = interpolate(action, noise, t)

    def velocity(x: Tensor, time: Tensor, start: Tensor) -> tuple[Tensor, Features]:
        return head._velocity_and_features(x, time, start, encode() if encode else cond)

    u, derivative, features = jvp(velocity, (x_t, t, r), (path_velocity, torch.ones_like(t), torch.zeros_like(r)))
    target = (path_velocity - expand(t - r, x_t) * derivative).detach()
    loss = head.weighting(masked_mean_square(u - target, mask))
    return loss if head.dispersive is None else loss + head.dispersive.weight * head.dispersive(features, cond)


def forward_mode(function: Function, at: Any, along: Any) -> tuple[Any, ...]:
    """Value, derivative and features, from one pass."""
    return torch.func.jvp(function, at, along, has_aux=True)


def double_backward(function: Function, at: Any, along: Any) -> tuple[Any, ...]:
    """The same from a backward pass through a backward pass, as MP1's released code."""
    features: Features = {}

    def value(*arguments: Tensor) -> Tensor:
        u, found = function(*arguments)
        features.update(found)
        return u

    return *torch.autograd.functional.jvp(value, at, along, create_graph=True), features
