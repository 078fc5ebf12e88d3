"""Drifting: the field that moves generated samples towards data and away from one another."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from flowpolicy.flow.exact import without_tf32

Scale = Literal["positive", "all"]
SCALES: tuple[Scale, ...] = get_args(Scale)

_SELF = 100.0  # normalised distance added to a sample's own entry: exp(-100 / 0.2) is 0
_DISTANCE, _SCALE, _AFFINITY, _POWER = 1e-8, 1e-3, 1e-6, 1e-8  # floors, as in the public code


class Drift(NamedTuple):
    """The field and what it was measured with.

    Args:
        field: (B, G, S), a sum of terms of root mean square 1, one for each temperature.
        scale: (B,), action units of one entry.
        distance: () mean normaliser of the distances.
        forces: (T,) root mean square before normalisation.
    """

    field: Tensor
    scale: Tensor
    distance: Tensor
    forces: Tensor


@torch.no_grad()
def drift(
    samples: Tensor,
    positives: Tensor,
    *,
    temperatures: Sequence[float],
    scale: Scale = "positive",
    valid: Tensor | None = None,
) -> Drift:
    """The drifting field at `samples`, (B, G, S); add it, times `scale`, to move them towards the positives.

    Args:
        samples: (B, G, S), G of each condition.
        positives: (B, P, S), the demonstrated actions of it.
        temperatures: In units of the mean distance.
        scale: Which distances have a mean of 1: "all", from samples to samples and positives as published, or
            "positive", from samples to positives. With "all" and P < G the field loses sight of the positives once the
            samples coincide, and never parts them again: mean regression.
        valid: (B, S), 1.0 where an entry counts; None is everywhere. Entries that do not count must be 0 in the others.

    Raises:
        ValueError: For an unknown scale.

    Source: Deng et al. 2026, "Generative Modeling via Drifting" (arXiv 2602.04770); DBP (arXiv 2604.03540). The scale
    "positive" is ours.
    """
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
    # differences of products: in bfloat16 or TF32 what is left would be rounding
    with torch.autocast(samples.device.type, enabled=False), without_tf32():
        return _drift(samples, positives, temperatures, scale, valid)


def _drift(
    samples: Tensor, positives: Tensor, temperatures: Sequence[float], scale: Scale, valid: Tensor | None
) -> Drift:
    num_samples = samples.shape[1]
    others = torch.cat([samples, positives], dim=1)  # (B, G + P, S), the first G repel
    squared = (samples[:, :, None] - others[:, None]).square().sum(dim=-1)  # (B, G, G + P)
    distance = squared.clamp_min(_DISTANCE).sqrt()
    mean = (distance if scale == "all" else distance[:, :, num_samples:]).mean()
    valid = torch.ones_like(samples[:, 0]) if valid is None else valid
    count = valid.sum(dim=-1).clamp_min(1.0)  # (B,)
    unit = (mean / count.sqrt()).clamp_min(_SCALE)
    own = torch.eye(num_samples, others.shape[1], device=samples.device, dtype=samples.dtype)
    normalised = distance / mean.clamp_min(_SCALE) + _SELF * own

    field, forces = torch.zeros_like(samples), []
    for temperature in temperatures:
        affinity = (-normalised / temperature).softmax(dim=2) * (-normalised / temperature).softmax(dim=1)
        affinity = affinity.clamp_min(_AFFINITY).sqrt()  # (B, G, G + P)
        repelling, attracting = affinity[:, :, :num_samples], affinity[:, :, num_samples:]
        push, pull = repelling.sum(dim=2, keepdim=True), attracting.sum(dim=2, keepdim=True)
        force = (push * (attracting @ positives) - pull * (repelling @ samples)) / unit[:, None, None]
        power = (force.square() * valid[:, None]).sum() / (num_samples * valid.sum().clamp_min(1.0))
        field = field + force / power.clamp_min(_POWER).sqrt()
        forces.append(power.sqrt())
    return Drift(field, unit, mean, torch.stack(forces))
