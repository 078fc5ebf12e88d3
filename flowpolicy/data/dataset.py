"""In-RAM dataset: all steps as tensors, a whole batch per call, no Python loop per sample."""

from collections.abc import Collection, Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor

from flowpolicy.data.store import EpisodeStore
from flowpolicy.data.windows import window_index
from flowpolicy.types import Batch


@final
class SequenceDataset:
    """Windows of observations and actions over episodes held in memory.

    obs: key -> (S, ...).   action: (S, A), robot units.   episode_ends: (E,).   S steps of all episodes together.
    horizon: H.   obs_horizon: To.   device: where the steps live and the batches appear.
    mask_padding: whether the steps past the episode's end, where the last action is repeated, are left out of the loss
      (mask 0). Off, as in Diffusion Policy: a policy that never learns to hold its last target overshoots.
    len() is the number of windows: one per step of every episode; `windows.window_index` defines them.
    Raises ValueError when lengths disagree.
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
        self.obs = {key: value.to(self.device).contiguous() for key, value in obs.items()}
        self.action = action.to(self.device).contiguous()
        self._obs_rows = torch.from_numpy(windows.obs).to(self.device)
        self._action_rows = torch.from_numpy(windows.action).to(self.device)
        mask = torch.from_numpy(windows.mask).to(self.device)
        self._mask = mask if mask_padding else torch.ones_like(mask)

    @staticmethod
    def from_store(
        store: EpisodeStore,
        *,
        horizon: int,
        obs_horizon: int,
        keys: Sequence[str] | None = None,
        episodes: range | None = None,
        mask_padding: bool = False,
        device: torch.device | str = "cpu",
    ) -> "SequenceDataset":
        """Load `keys` (default: the embodiment's) and the actions; floats become float32, images stay uint8.

        episodes: consecutive episodes to take, all by default.
        Raises ValueError for an unknown key, for a store without embodiment when `keys` is None, for shapes that are
        not the embodiment's, and for NaN or infinity, naming key, episode and step.
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
                        f"{shape}; run: flowpolicy data validate {store.path}"
                    )
        episodes = range(store.num_episodes) if episodes is None else episodes
        starts = np.concatenate([[0], store.episode_ends])  # one more than there are episodes
        first, last = int(starts[episodes.start]), int(starts[episodes.stop])
        return SequenceDataset(
            {key: _load_finite(store, key, first, last) for key in keys},
            _load_finite(store, "action", first, last),
            store.episode_ends[episodes.start : episodes.stop] - first,
            horizon=horizon,
            obs_horizon=obs_horizon,
            mask_padding=mask_padding,
            device=device,
        )

    def __len__(self) -> int:
        return len(self._mask)

    def batch(self, index: Tensor, *, keys: Collection[str] | None = None) -> Batch:
        """The windows `index` (B,) int64: obs key -> (B, To, ...), action (B, H, A), mask (B, H).

        keys: which observations; None is all.
        """
        index = index.to(self.device)
        obs_rows = self._obs_rows.index_select(0, index)
        return Batch(
            obs={key: _gather(value, obs_rows) for key, value in self.obs.items() if keys is None or key in keys},
            action=_gather(self.action, self._action_rows.index_select(0, index)),
            mask=self._mask.index_select(0, index),
        )


def _gather(value: Tensor, rows: Tensor) -> Tensor:
    """value (S, ...), rows (B, n) -> (B, n, ...); one flat index_select is several times faster than value[rows]."""
    return value.index_select(0, rows.view(-1)).view(*rows.shape, *value.shape[1:])


def _load_finite(store: EpisodeStore, key: str, first: int, last: int) -> Tensor:
    """Steps first ... last - 1 of one key: float32, or uint8 as stored. The whole store is never held beside them."""
    array = store.load(key, slice(first, last))
    if not np.issubdtype(array.dtype, np.floating):
        return torch.from_numpy(array if array.dtype == np.uint8 else array.astype(np.float32))
    array = np.ascontiguousarray(array, dtype=np.float32)
    finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if not finite.all():
        row = first + int(np.argmin(finite))
        episode = int(np.searchsorted(store.episode_ends, row, side="right"))
        step = row - (int(store.episode_ends[episode - 1]) if episode else 0)
        raise ValueError(
            f"{store.path}: NaN or infinity in {key}, episode {episode}, step {step} ({(~finite).sum()} bad steps in "
            f"all); run: flowpolicy data validate {store.path}"
        )
    return torch.from_numpy(array)
