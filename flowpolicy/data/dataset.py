"""Dataset: all steps as tensors, in memory or mapped, a whole batch per call, no Python loop per sample."""

from collections.abc import Collection, Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor

from flowpolicy.data.base import Store
from flowpolicy.data.residence import Residence, read_steps
from flowpolicy.data.windows import window_index
from flowpolicy.types import Batch


@final
class SequenceDataset:
    """Windows of observations and actions over episodes.

    Args:
        obs: key -> (S, ...).
        action: (S, A), robot units.
        episode_ends: (E,). S steps of all episodes together.
        horizon: H.
        obs_horizon: To.
        mask_padding: Whether the steps past the episode's end, where the last action is repeated, are left out of the
            loss (mask 0). Off, as in Diffusion Policy: a policy that never learns to hold its last target overshoots.
            len() is the number of windows: one per step of every episode; `windows.window_index` defines them.
        device: Where the batches appear, and the steps live unless `mapped`.
        mapped: Obs and action stay where they are.

    Raises:
        ValueError: When lengths disagree.
    """

    def __init__(
        self,
        obs: dict[str, Tensor],
        action: Tensor,
        episode_ends: np.ndarray | Sequence[int],
        *,
        horizon: int,
        obs_horizon: int,
        mask_padding: bool = False,
        device: torch.device | str = "cpu",
        mapped: bool = False,
    ) -> None:
        self.episode_ends = np.asarray(episode_ends, dtype=np.int64)
        self.horizon, self.obs_horizon = horizon, obs_horizon
        self.device = torch.device(device)
        windows = window_index(self.episode_ends, horizon=horizon, obs_horizon=obs_horizon)
        if action.ndim != 2:
            raise ValueError(f"SequenceDataset: wanted action (S, A), got {tuple(action.shape)}")
        for key, value in {**obs, "action": action}.items():
            if len(value) != len(windows.obs):
                raise ValueError(
                    f"SequenceDataset: {key} has {len(value)} steps, episode_ends ends at {len(windows.obs)}"
                )
        self._home = torch.device("cpu") if mapped else self.device
        self.obs = {key: value.to(self._home).contiguous() for key, value in obs.items()}
        self.action = action.to(self._home).contiguous()
        self._obs_rows = torch.from_numpy(windows.obs).to(self._home)
        self._action_rows = torch.from_numpy(windows.action).to(self._home)
        mask = torch.from_numpy(windows.mask).to(self._home)
        self._mask = mask if mask_padding else torch.ones_like(mask)

    @staticmethod
    def from_store(
        store: Store,
        *,
        horizon: int,
        obs_horizon: int,
        keys: Sequence[str] | None = None,
        episodes: range | None = None,
        mask_padding: bool = False,
        device: torch.device | str = "cpu",
        residence: Residence | None = None,
    ) -> "SequenceDataset":
        """Read `keys` (default: the embodiment's) and the actions; floats become float32, images stay uint8.

        Args:
            store: The episodes.
            horizon: H, steps of a chunk.
            obs_horizon: To, observations that the policy sees.
            keys: Observations to read.
            episodes: Consecutive episodes to take, all by default.
            mask_padding: Give rows past an episode's end the mask 0.
            device: Where torch computes, e.g. "cpu" or "cuda".
            residence: Where they lie; None is `Residence()`.

        Raises:
            ValueError: For an unknown key, for a store without embodiment when `keys` is None, for shapes that are not
                the embodiment's, for NaN or infinity, naming key, episode and step, and where they do not fit.
        """
        if keys is None:
            if store.embodiment is None:
                raise ValueError(f"{store.path} has no embodiment record; pass keys=[...] out of {list(store.keys)}")
            keys = store.obs_keys
        if store.embodiment is not None:
            specs = {**store.embodiment.obs, "action": store.embodiment.action}
            for key in {*keys, "action"} & specs.keys() & store.shapes.keys():
                if (shape := store.shapes[key][1:]) != specs[key].shape:
                    raise ValueError(
                        f"{store.path}: {key}: wanted {specs[key].shape} per step as in the embodiment record, got "
                        f"{shape}; look at it with `validate_store({str(store.path)!r})`"
                    )
        episodes = range(store.num_episodes) if episodes is None else episodes
        starts = np.concatenate([[0], store.episode_ends])  # one more than there are episodes
        first, last = int(starts[episodes.start]), int(starts[episodes.stop])
        folder = (residence or Residence()).folder(
            store, [*keys, "action"], last - first, window_bytes=8 * (horizon + obs_horizon) + 8 * horizon
        )
        return SequenceDataset(
            {key: read_steps(store, key, first, last, folder=folder) for key in keys},
            read_steps(store, "action", first, last, folder=folder),
            store.episode_ends[episodes.start : episodes.stop] - first,
            horizon=horizon,
            obs_horizon=obs_horizon,
            mask_padding=mask_padding,
            device=device,
            mapped=folder is not None,
        )

    def __len__(self) -> int:
        return len(self._mask)

    def batch(self, index: Tensor, *, keys: Collection[str] | None = None) -> Batch:
        """The windows `index` (B,) int64: obs key -> (B, To, ...), action (B, H, A), mask (B, H).

        Args:
            index: (B,) int64, numbers of windows.
            keys: Which observations; None is all.
        """
        index = index.to(self._home)
        obs_rows = self._obs_rows.index_select(0, index)
        batch = Batch(
            obs={key: _gather(value, obs_rows) for key, value in self.obs.items() if keys is None or key in keys},
            action=_gather(self.action, self._action_rows.index_select(0, index)),
            mask=self._mask.index_select(0, index),
        )
        if self._home == self.device:
            return batch
        obs = {key: value.to(self.device) for key, value in batch.obs.items()}
        return Batch(obs, batch.action.to(self.device), batch.mask.to(self.device))


def _gather(value: Tensor, rows: Tensor) -> Tensor:
    """value (S, ...), rows (B, n) -> (B, n, ...); one flat index_select is several times faster than value[rows]."""
    return value.index_select(0, rows.view(-1)).view(*rows.shape, *value.shape[1:])
