"""Window index: which rows of the store one training sample reads, with its ends repeated at the episode's edges."""

from typing import NamedTuple

import numpy as np


class Windows(NamedTuple):
    """One window per step c of every episode, in the order of the store (W = number of steps).

    Args:
        obs: (W, To) int64, rows c-To+1 .. c.
        action: (W, H) int64, rows c-To+1 .. c-To+H.
        mask: (W, H) float32, 0 where the window runs past the episode's last action (which is then repeated).
    """

    obs: np.ndarray
    action: np.ndarray
    mask: np.ndarray


def window_index(episode_ends: np.ndarray, *, horizon: int, obs_horizon: int) -> Windows:
    """Index tables for episodes that end (exclusively) at `episode_ends` (E,).

    Rows are clipped into the window's own episode: at the start the first row is repeated, with mask 1 (a policy that
    has just begun sees the same repetition); at the end the last row is repeated, with mask 0.

    Args:
        episode_ends: (E,) exclusive ends, in steps of the store.
        horizon: H, action steps per window.
        obs_horizon: To, observation steps per window, To <= H.

    Raises:
        ValueError: For horizons that cannot be, or ends that do not increase.

    Source: the sampler of Chi et al. 2023, Diffusion Policy (action index 0 is the time of the oldest observation).
    """
    if obs_horizon < 1 or horizon < obs_horizon:
        raise ValueError(f"window_index: wanted 1 <= obs_horizon <= horizon, got {obs_horizon} and {horizon}")
    ends = np.ascontiguousarray(episode_ends, dtype=np.int64)
    if ends.ndim != 1 or len(ends) == 0 or (np.diff(ends, prepend=0) <= 0).any():
        raise ValueError(f"window_index: episode_ends must be (E,), positive and increasing, got shape {ends.shape}")
    lengths = np.diff(ends, prepend=0)
    last = np.repeat(ends - 1, lengths)[:, None]  # (W, 1), of each step's episode
    first = np.repeat(ends - lengths, lengths)[:, None]
    action = np.arange(ends[-1])[:, None] + np.arange(1 - obs_horizon, 1 - obs_horizon + horizon)  # (W, H)
    mask = (action <= last).astype(np.float32)
    np.clip(action, first, last, out=action)
    return Windows(np.ascontiguousarray(action[:, :obs_horizon]), action, mask)
