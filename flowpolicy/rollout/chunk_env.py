"""N environments that take whole chunks: for training, where episodes follow each other and every successor counts."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowpolicy.checks import require_number
from flowpolicy.contracts import require_env
from flowpolicy.embodiment import Embodiment
from flowpolicy.extras import how_to_install
from flowpolicy.processes import begin_simulator, others_start_children
from flowpolicy.rollout.history import ObservationHistory
from flowpolicy.rollout.vector_env import describe, episode_seed, guarded, tensors
from flowpolicy.types import Observation

if TYPE_CHECKING:
    import gymnasium

Number = TypeVar("Number", float, Tensor)
_NOW, _TRUE = "now.", "true."  # prefixes of the two observations that one step gives


class ChunkResult(NamedTuple):
    """One chunk executed by each of N environments, up to the first done inside it.

    Args:
        obs: key -> (N, To, ...), what the next decision sees: the first observation of the next episode after a done.
        final_obs: key -> (N, To, ...), the true successor of the last executed action; equals obs where nothing is
            done.
        reward: (N, Ta) per control step, 0 after a done.
        steps: (N,) int64, control steps executed.
        terminated: (N,) bool; success at any of the executed steps.
        truncated: As `terminated`.
        success: As `terminated`.
    """

    obs: Observation
    final_obs: Observation
    reward: Tensor
    steps: Tensor
    terminated: Tensor
    truncated: Tensor
    success: Tensor


class ChunkEnv(Protocol):
    """What training needs of simulators, whether they run in processes or as one batch on a GPU."""

    num_envs: int
    embodiment: Embodiment

    def reset(self, seeds: Sequence[int]) -> Observation:
        """Start new episodes everywhere; key -> (N, To, ...).

        Args:
            seeds: (N,).
        """
        ...

    def step(self, chunk: Tensor) -> ChunkResult:
        """chunk: (N, Ta, A), robot units.

        Args:
            chunk: (N, Ta, A), robot units.
        """
        ...

    def close(self) -> None: ...


@final
@dataclass(frozen=True)
class Reward:
    """What is rewarded, per control step: the environment's own reward, and success; one of them at least.

    Args:
        env: Times the environment's own. A shaped one of Meta-World then pays for staying near the goal and not for
            reaching it, which ends the episode.
        success: Times (success now - success before): paid once, and taken back when it is lost.
        terminate_on_success: Whether success ends the episode, where the environment goes on by itself (flowpolicy's
            own tasks all end).
    """

    env: float = 0.0
    success: float = 1.0
    terminate_on_success: bool = True

    def __post_init__(self) -> None:
        """Raise ValueError when nothing is rewarded, or with what is no number."""
        for name in ("env", "success"):
            require_number(f"`{name}` of the reward", getattr(self, name))
        if self.sparse and self.success == 0.0:
            raise ValueError("reward: nothing is rewarded; set `success` or `env`")

    @property
    def sparse(self) -> bool:
        """Whether success alone is rewarded."""
        return self.env == 0.0

    def of(self, own: Number, gained: Number) -> Number:
        """own: the environment's reward.

        Args:
            own: The environment's reward.
            gained: The rise of success, 1, 0 or -1.
        """
        return self.env * own + self.success * gained


def make_chunk_env(
    make_env: Callable[[], "gymnasium.Env"],
    num_envs: int,
    *,
    action_horizon: int,
    obs_horizon: int = 1,
    workers: int = 1,
    reward: Reward | None = None,
) -> "GroupedChunkEnv":
    """`num_envs` environments in `workers` groups. Close it after use.

    Args:
        make_env: As for `make_vector_env`.
        num_envs: Environments that are stepped together.
        action_horizon: Ta.
        obs_horizon: To.
        workers: 1 runs all in this process, more are spawned processes of one thread each, with the observations in
            shared memory; one message per group and chunk. The numbers do not depend on it.
        reward: Which reward counts, see `Reward`.

    Raises:
        ValueError: Unless workers divides num_envs, and whatever `make_env` raises.
    """
    if workers < 1 or num_envs < 1 or num_envs % workers:
        raise ValueError(f"envs must be a multiple of workers, both at least 1; got envs={num_envs}, workers={workers}")
    try:
        from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
    except ImportError as error:
        raise ImportError(f"gymnasium is not installed; {how_to_install('train')}") from error
    make = partial(
        _Group,
        make_env,
        size=num_envs // workers,
        obs_horizon=obs_horizon,
        action_horizon=action_horizon,
        reward=reward or Reward(),
    )
    fns: list[Callable[[], Any]] = [partial(make, index=index) for index in range(workers)]
    if workers > 1:
        with others_start_children():
            groups = AsyncVectorEnv(fns, context="spawn", copy=False, autoreset_mode=AutoresetMode.DISABLED)
    else:
        groups = SyncVectorEnv(fns, copy=False, autoreset_mode=AutoresetMode.DISABLED)
    return GroupedChunkEnv(groups, num_envs, name=describe(make_env))


@final
class GroupedChunkEnv:
    """What `make_chunk_env` makes; see `ChunkEnv`. An environment that is done starts its next episode at once, with
    the next seed of a stream of its own that the seed of `reset` fixes.

    Args:
        groups: Of environments, each with a process or in this one.
        num_envs: Environments that are stepped together.
        name: For messages.
    """

    def __init__(self, groups: Any, num_envs: int, *, name: str) -> None:
        self._groups, self._name, self.num_envs = groups, name, num_envs
        self.embodiment: Embodiment = self._guard(lambda: groups.call("embodiment"))[0]

    def reset(self, seeds: Sequence[int]) -> Observation:
        """See `ChunkEnv`. Environment i starts with the seed `episode_seed(seeds[i], 0)`.

        Args:
            seeds: (N,).
        """
        if len(seeds) != self.num_envs:
            raise ValueError(f"reset: wanted {self.num_envs} seeds, got {len(seeds)}")
        options = {"seeds": [int(seed) for seed in seeds]}
        return self._observation(self._guard(lambda: self._groups.reset(options=options))[0], _NOW)

    def step(self, chunk: Tensor) -> ChunkResult:
        """See `ChunkEnv`. Raises ValueError for actions that are not finite or of a wrong shape, RuntimeError naming
        the process that died.

        Args:
            chunk: (N, Ta, A), robot units.
        """
        wanted = self._groups.action_space.shape  # (W, N / W, Ta, A)
        if tuple(chunk.shape) != (self.num_envs, *wanted[2:]):
            raise ValueError(
                f"step: chunk must be (N, Ta, A) = {(self.num_envs, *wanted[2:])}, got {tuple(chunk.shape)}"
            )
        if not torch.isfinite(chunk).all():
            raise ValueError("step: the policy's actions are not finite; lower `actor_lr`")
        actions = chunk.detach().cpu().numpy().astype(np.float32).reshape(wanted)
        raw, _, _, _, info = self._guard(lambda: self._groups.step(actions))
        facts = {key: torch.from_numpy(info[key].reshape(self.num_envs, *info[key].shape[2:])) for key in _FACTS}
        return ChunkResult(self._observation(raw, _NOW), self._observation(raw, _TRUE), **facts)

    def close(self) -> None:
        """End the processes; may be called twice. One that has ended before is no error here."""
        if not self._groups.closed:
            with suppress(RuntimeError):
                self._guard(self._groups.close)

    def _observation(self, raw: dict[str, np.ndarray], prefix: str) -> Observation:
        merged = {key: value.reshape(self.num_envs, *value.shape[2:]) for key, value in raw.items()}
        return tensors({key.removeprefix(prefix): v for key, v in merged.items() if key.startswith(prefix)})

    def _guard(self, call: Callable[[], Any]) -> Any:
        return guarded(self._groups, self._name, call)


_FACTS = ("reward", "steps", "terminated", "truncated", "success")


@final
class _Slot:
    """One environment with its observation history and its stream of seeds."""

    def __init__(self, env: Any, *, obs_horizon: int, reward: Reward) -> None:
        self.env, self._reward = env, reward
        self.history: ObservationHistory[np.ndarray] = ObservationHistory(obs_horizon)
        self._root = self._episode = 0
        self._success = False

    def start(self, root: int | None = None) -> None:
        """The next episode; the first of a new stream where `root` is given. That one must not depend on what was
        before, for a resumed run; the others may start faster in the scene as it is (ManiSkill)."""
        options = {"keep_scene": True} if root is None else None
        self._root, self._episode = (self._root, self._episode + 1) if root is None else (root, 0)
        first, _ = self.env.reset(seed=episode_seed(self._root, self._episode), options=options)
        self._success = False
        self.history.begin(first)

    def run(self, chunk: NDArray[np.float32]) -> dict[str, Any]:
        """Execute (Ta, A) up to the first done; the entries of `_FACTS`."""
        rewards, succeeded = np.zeros(len(chunk), np.float32), False
        steps, terminated, truncated = 0, False, False
        for action in chunk:
            obs, reward, terminated, truncated, info = self.env.step(action)
            success = bool(info["success"])
            rewards[steps] = self._reward.of(float(reward), float(success) - float(self._success))
            self.history.append(obs)
            self._success, succeeded, steps = success, succeeded or success, steps + 1
            terminated = bool(terminated) or (success and self._reward.terminate_on_success)
            if terminated or truncated:
                break
        return dict(zip(_FACTS, (rewards, steps, terminated, bool(truncated), succeeded), strict=True))


@final
class _Group:
    """Several environments as one of gymnasium's: its observation is all of theirs, its action a chunk for each."""

    def __init__(
        self,
        make_env: Callable[[], "gymnasium.Env"],
        *,
        index: int,
        size: int,
        obs_horizon: int,
        action_horizon: int,
        reward: Reward,
    ) -> None:
        from gymnasium import spaces

        begin_simulator()
        self._slots = [_Slot(make_env(), obs_horizon=obs_horizon, reward=reward) for _ in range(size)]
        self._first = index * size
        env = self._slots[0].env
        self.embodiment = require_env(env, make_env)
        boxes = {}
        for key, box in env.observation_space.spaces.items():
            shape = (size, obs_horizon, *box.shape)
            boxes |= {
                prefix + key: spaces.Box(-np.inf, np.inf, shape, box.dtype)
                if box.dtype != np.uint8
                else spaces.Box(0, 255, shape, np.uint8)
                for prefix in (_NOW, _TRUE)
            }
        self.observation_space = spaces.Dict(boxes)
        self.action_space = spaces.Box(-np.inf, np.inf, (size, action_horizon, self.embodiment.action_dim), np.float32)
        self.metadata, self.render_mode, self.spec = env.metadata, None, None

    def reset(self, *, seed: int | None = None, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """options["seeds"]: the roots of all groups' environments."""
        del seed
        for i, slot in enumerate(self._slots):
            slot.start(options["seeds"][self._first + i])
        now = [slot.history.stacked(np.stack) for slot in self._slots]
        return _joined(now, _NOW) | _joined(now, _TRUE), {}

    def step(self, chunks: NDArray[np.float32]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Everything but the observations goes through `info`, which gymnasium hands on as it is."""
        facts = [slot.run(chunk) for slot, chunk in zip(self._slots, chunks, strict=True)]
        true = [slot.history.stacked(np.stack) for slot in self._slots]
        for slot, fact in zip(self._slots, facts, strict=True):
            if fact["terminated"] or fact["truncated"]:
                slot.start()
        now = [slot.history.stacked(np.stack) for slot in self._slots]
        info = {key: np.stack([np.asarray(fact[key]) for fact in facts]) for key in _FACTS}
        return _joined(now, _NOW) | _joined(true, _TRUE), 0.0, False, False, info

    def get_wrapper_attr(self, name: str) -> Any:
        return getattr(self, name)

    def close(self) -> None:
        for slot in self._slots:
            slot.env.close()


def _joined(observations: Sequence[dict[str, np.ndarray]], prefix: str) -> dict[str, np.ndarray]:
    return {prefix + key: np.stack([obs[key] for obs in observations]) for key in observations[0]}
