"""Fit a policy's normalisers to its training data."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from flowpolicy.data.dataset import SequenceDataset
from flowpolicy.encoders.base import module_name
from flowpolicy.normalizer import NormalizerMode, Statistics, least_range
from flowpolicy.policy import FlowPolicy


@torch.no_grad()
def fit_normalizers(
    policy: FlowPolicy,
    dataset: SequenceDataset,
    *,
    obs_mode: NormalizerMode = "minmax",
    action_mode: NormalizerMode = "minmax",
) -> None:
    """Fit the policy's normalisers to the training data, actions in their representation.

    Chunk statistics run over all windows and valid steps, since a relative action depends on where its chunk starts.
    minmax maps the actions to [-1, 1], which is the policy's range as it is built; the others leave it to be measured.
    An observation that hardly moves is scaled by `least_range` of its unit, with a warning.
    A dimension without range keeps the little that it has, and a command that never changed is returned as it is.
    Clouds: per coordinate over all points. Images have no normaliser. Neither data nor windows are copied whole.

    Args:
        policy: The policy.
        dataset: The training data.
        obs_mode: Of the observations: "minmax", "quantile" or "meanstd".
        action_mode: Of the actions.
    """
    device = policy.device
    for key in policy.normalized_keys:
        statistics = Statistics(obs_mode, key=key)
        for values in _parts(dataset.obs[key], extremes=obs_mode == "minmax"):
            statistics.add(values.reshape(-1, values.shape[-1]))
        spec = policy.embodiment.obs[key]
        fitted = statistics.normalizer(floor=least_range(spec.unit), names=spec.names)
        policy.obs_normalizer[module_name(key)] = fitted.to(device)
    policy.encoder.align({key: policy.normalizer(key) for key in policy.normalized_keys})
    statistics = Statistics(action_mode, key="action")
    for index in torch.arange(len(dataset), device="cpu").split(4096):
        batch = dataset.batch(index, keys={policy.representation.key} & dataset.obs.keys())
        statistics.add(policy.representation.encode(batch.action, batch.obs)[batch.mask > 0])
    normalizer = policy.action_normalizer = statistics.normalizer().to(device)
    range_ = torch.from_numpy(np.stack([statistics.low, statistics.high])).float().to(device)
    low, high = normalizer(range_)
    narrow = torch.from_numpy(statistics.narrow).to(device) if action_mode == "minmax" else torch.ones_like(low) > 0
    policy.set_chunk_range(torch.where(narrow, low, policy.chunk_low), torch.where(narrow, high, policy.chunk_high))
    low, high = (bound.to(device) for bound in dataset.action.aminmax(dim=0))
    fixed = low.clamp(policy.action_low, policy.action_high)
    policy.command_low = torch.where(low == high, fixed, policy.action_low)
    policy.command_high = torch.where(low == high, fixed, policy.action_high)


def _parts(values: Tensor, *, extremes: bool) -> Iterator[Tensor]:
    """Observations (S, ..., D) piece by piece; of clouds (S, N, D) the extremes per step where they decide, else a part
    of the steps."""
    if values.ndim == 3 and not extremes:
        values = values[:: len(values) // 2000 + 1]
    for part in values.split(1024):
        yield torch.cat(part.aminmax(dim=1)) if part.ndim == 3 and extremes else part
