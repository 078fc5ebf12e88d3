"""One demonstration, as everybody here hands it on."""

from typing import NamedTuple

import numpy as np


class Episode(NamedTuple):
    """One demonstration of T steps: `obs[key][t]` was seen, then `action[t]` was sent, then `reward[t]` came.

    Args:
        obs: key -> (T, ...).
        action: (T, A), robot units.
        reward: (T,).
        success: As the task reports it; None where nobody said.
        seed: The one that fixed the episode.
    """

    obs: dict[str, np.ndarray]
    action: np.ndarray
    reward: np.ndarray
    success: bool
    seed: int
