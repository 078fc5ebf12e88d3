"""Window index: which rows of the store one training sample reads, with its ends repeated at the episode's edges."""

from typing import NamedTuple

import numba
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
    return Windows(*_fill(ends, horizon, obs_horizon))


@numba.njit
def _fill(ends: np.ndarray, horizon: int, obs_horizon: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    total = ends[-1]
    obs = np.empty((total, obs_horizon), dtype=np.int64)
    action = np.empty((total, horizon), dtype=np.int64)
    mask = np.ones((total, horizon), dtype=np.float32)
    start = 0
    for end in ends:
        for step in range(start, end):
            first = step - obs_horizon + 1
            for i in range(obs_horizon):
                obs[step, i] = max(first + i, start)
            for i in range(horizon):
                row = first + i
                action[step, i] = min(max(row, start), end - 1)
                if row >= end:
                    mask[step, i] = 0.0
        start = end
    return obs, action, mask
