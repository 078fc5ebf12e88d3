"""Real observations to measure a policy on: from its own episodes in the simulator, or from a store."""

from pathlib import Path
from typing import NamedTuple, cast, final

import numpy as np
import torch
from torch import Tensor

from flowpolicy.data.store import EpisodeStore
from flowpolicy.data.windows import window_index
from flowpolicy.matching import require_match
from flowpolicy.pointcloud.cloud import stage_times
from flowpolicy.policy import FlowPolicy
from flowpolicy.rollout.episodes import run_episodes
from flowpolicy.rollout.history import ObservationHistory
from flowpolicy.rollout.vector_env import StepResult, VectorEnv
from flowpolicy.samplers.base import Sampler
from flowpolicy.types import Observation


class Observed(NamedTuple):
    """N observations as a policy gets them.

    Args:
        obs: key -> (N, To, ...).
        preprocess_ms: stage -> N milliseconds, of what the environment did to its clouds; empty where it made none.
        source: Where they come from, in words.
    """

    obs: Observation
    preprocess_ms: dict[str, list[float]]
    source: str

    def one(self, index: int) -> Observation:
        """Observation `index`, key -> (1, To, ...).

        Args:
            index: From 0 on.
        """
        return {key: value[index : index + 1] for key, value in self.obs.items()}


def observe_simulator(
    policy: FlowPolicy, env: VectorEnv, *, count: int, start_seed: int, sampler: Sampler | None = None
) -> Observed:
    """The first `count` observations of the policy's episodes from `start_seed` on, one per control step.

    Args:
        policy: The policy to run.
        env: Of one environment, in this process where clouds are to be timed.
        count: How many observations.
        start_seed: Seed of the first episode; the others follow it.
        sampler: How a chunk is drawn.

    Raises:
        ValueError: When policy and environment disagree on the embodiment.
    """
    if count < 1:
        raise ValueError(f"observations must be at least 1, got {count}")
    watched = _Watched(env, policy)
    seed = start_seed
    while len(watched.seen) < count:
        run_episodes(policy, cast(VectorEnv, watched), [seed], sampler=sampler)
        seed += 1
    seen = watched.seen[:count]
    obs = {key: torch.stack([one[key] for one in seen]) for key in policy.obs_keys}
    spent = watched.spent[:count]
    stages = list(dict.fromkeys(stage for one in spent for stage in one))
    preprocess = {stage: [one.get(stage, 0.0) for one in spent] for stage in stages}
    return Observed(obs, preprocess, f"{count} observations of {seed - start_seed} episodes in the simulator")


def observe_store(policy: FlowPolicy, path: Path, *, count: int) -> Observed:
    """`count` observations spread evenly over a store; all of them where it has fewer.

    Raises as `EpisodeStore` does, and ValueError for another embodiment.

    Args:
        policy: The policy to run.
        path: Of the store.
        count: How many observations.
    """
    store = EpisodeStore.open(path)
    if store.embodiment is not None:
        require_match(policy.embodiment, store.embodiment, what="checkpoint and dataset")
    windows = window_index(store.episode_ends, horizon=policy.obs_horizon, obs_horizon=policy.obs_horizon).obs
    rows = windows[np.linspace(0, len(windows) - 1, min(count, len(windows))).astype(np.int64)]  # (count, To)
    wanted, places = np.unique(rows, return_inverse=True)
    obs = {}
    for key in policy.obs_keys:
        values = store.rows(key, wanted.tolist())[places].reshape(*rows.shape, *store.shapes[key][1:])
        obs[key] = torch.from_numpy(values if values.dtype == np.uint8 else values.astype(np.float32))
        if not torch.isfinite(obs[key]).all():
            raise ValueError(
                f"{store.path}: NaN or infinity in {key}; look at it with `validate_store({str(store.path)!r})`"
            )
    return Observed(obs, {}, f"{len(rows)} observations of {store.path.name}")


@final
class _Watched:
    """An environment of one that notes what it shows, with the history a policy sees, and what its clouds took."""

    def __init__(self, env: VectorEnv, policy: FlowPolicy) -> None:
        self._env, self._keys = env, policy.obs_keys
        self.num_envs, self.embodiment = env.num_envs, env.embodiment
        self.seen: list[dict[str, Tensor]] = []
        self.spent: list[dict[str, float]] = []
        self._history: ObservationHistory[Tensor] = ObservationHistory(policy.obs_horizon)

    def reset(self, seeds: list[int], mask: np.ndarray | None = None) -> Observation:
        with stage_times() as spent:
            obs = self._env.reset(seeds, mask)
        self._history.begin(obs)
        self._note(spent)
        return obs

    def step(self, action: Tensor) -> StepResult:
        with stage_times() as spent:
            result = self._env.step(action)
        self._history.append(result.obs)
        self._note(spent)
        return result

    def _note(self, spent: dict[str, float]) -> None:
        seen = self._history.stacked(torch.stack, keys=self._keys, axis=1)  # (1, To, ...)
        self.seen.append({key: value[0] for key, value in seen.items()})
        self.spent.append(dict(spent))
