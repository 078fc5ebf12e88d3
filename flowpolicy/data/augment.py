"""Augmentation on the training path only: what the policy sees is disturbed, what it must do is not."""

import torch

from flowpolicy.normalizer import LinearNormalizer
from flowpolicy.types import Batch


def jitter_observations(
    batch: Batch, normalizers: dict[str, LinearNormalizer], *, std: float, generator: torch.Generator
) -> Batch:
    """Add Gaussian noise of `std` normalised units (the training range is 2 wide) to every observation entry.

    batch: raw, robot units; the noise is scaled back through each key's normaliser.   generator: on the data's device.
    The actions stay as recorded. A chunk-relative action is computed from the disturbed state afterwards, so it
    points back to the recorded path: the policy learns to recover from its own small errors.
    Source: the state-noise view of DART (Laskey et al. 2017), with labels from the recording instead of an expert.
    """
    if std == 0.0:
        return batch
    obs = {}
    for key, value in batch.obs.items():
        noise = torch.randn(value.shape, generator=generator, device=value.device)
        obs[key] = value + noise * (std / normalizers[key].scale)
    return batch._replace(obs=obs)
