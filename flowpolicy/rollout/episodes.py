"""Seeded episodes of a policy: the seed fixes environment and policy noise, however many simulators run beside it."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from flowpolicy.embodiment import Embodiment
from flowpolicy.inputs import NonFiniteError
from flowpolicy.matching import require_match
from flowpolicy.rollout.history import ChunkRunner
from flowpolicy.rollout.vector_env import StepResult, VectorEnv
from flowpolicy.rollout.video import require_video, write_video
from flowpolicy.samplers.base import Sampler
from flowpolicy.samplers.choose import as_sampler
from flowpolicy.samplers.warm_start import WarmStart, shift_chunk
from flowpolicy.seeding import stream
from flowpolicy.types import Observation

_VIDEO_HZ = 20.0  # enough for the eye; simulators that step faster are filmed every n-th step


class Predictor(Protocol):
    """What acts in an episode: a policy, one that was prepared or exported, or one that watches another."""

    @property
    def embodiment(self) -> Embodiment: ...
    @property
    def obs_keys(self) -> Sequence[str]: ...
    @property
    def obs_horizon(self) -> int: ...
    @property
    def device(self) -> torch.device:
        """Where the observations go."""
        ...

    def predict(self, obs: Observation, *, sampler: Sampler, generator: torch.Generator) -> Tensor:
        """obs: key -> (1, To, ...). Returns (1, Ta, A), robot units.

        Args:
            obs: Key -> (B, To, ...), robot units.
            sampler: How a chunk is drawn.
            generator: Where random numbers come from.
        """
        ...


class _Warm(Protocol):
    """The part of `FlowPolicy` that a warm start needs besides."""

    @property
    def action_horizon(self) -> int: ...

    def predict(
        self, obs: Observation, *, sampler: Sampler, generator: torch.Generator, start: Tensor | None, whole: bool
    ) -> Tensor:
        """With `whole`, (1, H, A)."""
        ...


class EpisodeResult(NamedTuple):
    """How one episode went.

    Args:
        seed: Of the episode.
        success_once: Success at any time.
        success_at_end: Success after the last step.
        return_: Sum of rewards.
        episode_len: Control steps.
        failure: "" after success, else "timeout", "non_finite_action", "non_finite_observation", or the environment's
            own word ("collision").
        infer_ms: Wall time of each `predict`.
        outcome: The environment's word at the last step, if it has one.
        solved_at_reset: The episode was a success before the first action, so it says nothing about the policy.
    """

    seed: int
    success_once: bool
    success_at_end: bool
    return_: float
    episode_len: int
    failure: str
    infer_ms: list[float]
    outcome: str = ""
    solved_at_reset: bool = False


def left_to_solve(results: Sequence[EpisodeResult]) -> list[EpisodeResult]:
    """Those that were not solved at reset: what success rates are of. Raises ValueError when there is none.

    Args:
        results: Of all episodes.
    """
    if not (some := [result for result in results if not result.solved_at_reset]):
        raise ValueError(
            f"all {len(results)} episodes from seed {results[0].seed} on were solved at reset: there is "
            "nothing to measure; take other seeds, or another task"
        )
    return some


def run_episodes(
    policy: Predictor,
    env: VectorEnv,
    seeds: Sequence[int],
    *,
    sampler: Sampler | str | None = None,
    num_steps: int | None = None,
    progress: bool = False,
    video_dir: Path | None = None,
    video_episodes: int = 0,
    on_done: Callable[[EpisodeResult], None] | None = None,
) -> list[EpisodeResult]:
    """One episode per seed, in the order of `seeds`; bit-identical for every `env.num_envs`.

    An action that is not finite ends its episode as a failure, since a simulator must not see it, and so does an
    observation that is not: a simulation that blew up.

    Args:
        policy: Predicts the chunks.
        env: Made with autoreset=False.
        seeds: One episode each.
        sampler: How chunks are drawn, as in `FlowPolicy.predict`. A `WarmStart` begins every chunk but an episode's
            first one at what is left of the last.
        num_steps: As in `FlowPolicy.predict`.
        progress: Whether to show a progress bar.
        video_dir: Film the first so many episodes to <seed>_<success|failure>.mp4.
        video_episodes: As `video_dir`.
        on_done: Called with each result as its episode ends, in any order; its recording is written by then.

    Raises:
        ValueError: When policy and environment disagree on the embodiment, or there is nothing to film with.
    """
    sampler = as_sampler(sampler, num_steps)
    require_match(policy.embodiment, env.embodiment, what="policy and environment", simulated=True)
    filmed = video_episodes if video_dir is not None else 0
    if filmed:
        require_video()
    queue = deque(enumerate(int(seed) for seed in seeds))
    results: list[EpisodeResult | None] = [None] * len(queue)
    slots: list[_Running | None] = [None] * env.num_envs
    action = torch.zeros(env.num_envs, env.embodiment.action_dim, device="cpu", dtype=torch.float32)
    obs: Observation = {}
    with tqdm(total=len(queue), desc="episodes", unit="ep", disable=not progress) as bar:
        while queue or any(slots):
            if queue and not all(slots):
                obs = _start(policy, env, slots, queue, first=not obs, filmed=filmed)
            for i, running in enumerate(slots):
                if running is not None:
                    action[i] = running.act(policy, {key: value[i] for key, value in obs.items()}, sampler)
            step = env.step(action)
            obs = step.obs
            for i, running in enumerate(slots):
                if running is None:
                    continue
                done = running.note(step, i)
                _film(env, i, running)
                if done:
                    results[running.index], slots[i] = running.result(), None
                    bar.update()
                    if running.filmed and video_dir is not None:
                        _save(running, video_dir, env.embodiment.control_hz)
                    if on_done is not None:
                        on_done(running.result())
    return [result for result in results if result is not None]


@dataclass
class _Running:
    """The state of one episode in progress."""

    index: int
    seed: int
    generator: torch.Generator
    filmed: bool
    film_every: int
    runner: ChunkRunner[Tensor]
    whole: Tensor | None = None  # (1, H, A), the last chunk, for warm starts
    infer_ms: list[float] = field(default_factory=list)
    frames: list[np.ndarray] = field(default_factory=list)
    rewards: float = 0.0
    steps: int = 0
    success_once: bool = False
    success: bool = False
    failure: str = ""
    outcome: str = ""
    solved_at_reset: bool = False

    def act(self, policy: Predictor, obs: Observation, sampler: Sampler) -> Tensor:
        """Next action (A,): of the current chunk, or of a new one when it is spent. obs: key -> (...)."""
        self.runner.observe(obs)
        if self.runner.spent:
            seen = self.runner.seen(torch.stack, keys=policy.obs_keys)
            seen = {key: value.to(policy.device) for key, value in seen.items()}
            start = time.perf_counter()
            try:
                chunk = self.predict(policy, seen, sampler).cpu()  # waits for it
            except NonFiniteError as error:
                self.failure = f"non_finite_{error.what}"
                return torch.zeros(policy.embodiment.action_dim, device="cpu", dtype=torch.float32)
            self.infer_ms.append(1000.0 * (time.perf_counter() - start))
            self.runner.execute(chunk[0])
        action = self.runner.next_action()
        if not torch.isfinite(action).all():
            self.failure = "non_finite_action"
            return torch.zeros_like(action)
        return action

    def predict(self, policy: Predictor, obs: Observation, sampler: Sampler) -> Tensor:
        """A new chunk (1, Ta, A), begun at the last one where the sampler is a warm start."""
        if not isinstance(sampler, WarmStart):
            return policy.predict(obs, sampler=sampler, generator=self.generator)
        warm = cast(_Warm, policy)
        start = None if self.whole is None else shift_chunk(self.whole, warm.action_horizon)
        self.whole = warm.predict(obs, sampler=sampler, generator=self.generator, start=start, whole=True)
        first = policy.obs_horizon - 1
        return self.whole[:, first : first + warm.action_horizon]

    def note(self, step: StepResult, i: int) -> bool:
        """Take in what environment i did; whether the episode is over."""
        if self.failure:
            return True
        self.steps += 1
        self.rewards += float(step.reward[i])
        self.success, self.outcome = bool(step.success[i]), step.outcome[i]
        self.solved_at_reset = bool(step.solved_at_reset[i])
        self.success_once |= self.success
        if not (step.terminated[i] or step.truncated[i]):
            return False
        if not self.success_once:
            self.failure = (self.outcome or "terminated") if step.terminated[i] else "timeout"
        return True

    def result(self) -> EpisodeResult:
        at_end = self.success and self.failure == ""
        return EpisodeResult(
            self.seed,
            self.success_once,
            at_end,
            self.rewards,
            self.steps,
            self.failure,
            self.infer_ms,
            self.outcome,
            self.solved_at_reset,
        )


def _start(
    policy: Predictor,
    env: VectorEnv,
    slots: list[_Running | None],
    queue: deque[tuple[int, int]],
    *,
    first: bool,
    filmed: int,
) -> Observation:
    """Fill the free slots with the next seeds; the observations after their resets, key -> (N, ...)."""
    film_every = max(1, round(env.embodiment.control_hz / _VIDEO_HZ))
    mask = np.zeros(env.num_envs, bool)
    seeds = [0] * env.num_envs
    for i, running in enumerate(slots):
        if running is None and queue:
            index, seed = queue.popleft()
            generator, runner = stream(seed, "policy_noise"), ChunkRunner[Tensor](policy.obs_horizon)
            slots[i] = _Running(index, seed, generator, index < filmed, film_every, runner)
            seeds[i], mask[i] = seed, True
    obs = env.reset(seeds, None if first else mask)
    for i in np.flatnonzero(mask):
        _film(env, int(i), slots[i])
    return obs


def _film(env: VectorEnv, i: int, running: _Running | None) -> None:
    if running is not None and running.filmed and running.steps % running.film_every == 0:
        try:
            running.frames.append(env.render(i))
        except RuntimeError as error:
            raise ValueError(f"cannot film: {error}") from error


def _save(running: _Running, video_dir: Path, control_hz: float) -> None:
    video_dir.mkdir(parents=True, exist_ok=True)
    name = f"{running.seed}_{'success' if running.success_once else 'failure'}.mp4"
    write_video(video_dir / name, running.frames, fps=control_hz / running.film_every)
