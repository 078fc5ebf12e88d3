"""One imitation run from a store to a checkpoint: build, fit, resume, train; with or without a simulator beside it."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, final

import torch

from flowpolicy.checkpoint import create_policy
from flowpolicy.data.dataset import SequenceDataset
from flowpolicy.data.store import EpisodeStore
from flowpolicy.embodiment import require_match
from flowpolicy.evaluation.statistics import wilson_interval
from flowpolicy.normalizer import NormalizerMode
from flowpolicy.policy import FlowPolicy
from flowpolicy.rollout.episodes import run_episodes
from flowpolicy.rollout.vector_env import make_vector_env
from flowpolicy.seeding import derive
from flowpolicy.tracking import Tracker
from flowpolicy.trainers.imitation import ImitationTrainer, TrainerSettings, fit_normalizers
from flowpolicy.trainers.state import Checkpoints
from flowpolicy.trainers.validation import Validation


@final
class SimulatorCheck:
    """In-training evaluation: the averaged policy on seeds that neither training nor the report uses.

    make_env: constructor of one environment.   episodes: how many, on seeds start_seed, start_seed + 1, ...
    num_steps: network evaluations per chunk.   envs: parallel simulators (1 runs in this process).
    """

    def __init__(
        self,
        make_env: Callable[[], Any],
        *,
        episodes: int = 20,
        start_seed: int = 50000,
        num_steps: int = 1,
        envs: int = 1,
    ) -> None:
        self.make_env, self.episodes, self.start_seed = make_env, episodes, start_seed
        self.num_steps, self.envs = num_steps, envs

    def require(self, policy: FlowPolicy) -> None:
        """Try the simulator before hours of training. Raises what it raises; ValueError for another embodiment."""
        env = make_vector_env(self.make_env, 1)
        try:
            require_match(policy.embodiment, env.embodiment, what="dataset and task")
        finally:
            env.close()

    def __call__(self, policy: FlowPolicy, step: int) -> dict[str, float]:
        """Metrics eval/success_once with its Wilson interval, eval/return, eval/episode_len."""
        del step
        env = make_vector_env(self.make_env, self.envs)
        try:
            seeds = range(self.start_seed, self.start_seed + self.episodes)
            results = run_episodes(policy, env, seeds, num_steps=self.num_steps)
        finally:
            env.close()
        successes = sum(result.success_once for result in results)
        low, high = wilson_interval(successes, len(results))
        return {
            "eval/success_once": successes / len(results),
            "eval/success_once_ci_low": low,
            "eval/success_once_ci_high": high,
            "eval/success_once_n": len(results),
            "eval/return": sum(result.return_ for result in results) / len(results),
            "eval/episode_len": sum(result.episode_len for result in results) / len(results),
        }


def train_policy(
    store: EpisodeStore,
    *,
    policy_config: dict[str, Any],
    facts: dict[str, Any],
    out: Path,
    settings: TrainerSettings,
    start: Callable[[], Tracker],
    seed: int,
    device: torch.device,
    check: SimulatorCheck | None = None,
    val_episodes: int = 0,
    mask_padding: bool = False,
    obs_mode: NormalizerMode = "minmax",
    action_mode: NormalizerMode = "minmax",
    resume: bool = False,
    debug: bool = False,
) -> Path:
    """Train on `store` and return the folder of the last checkpoint.

    policy_config: what `create_policy` builds.   facts: written into each checkpoint's config.json.
    val_episodes: how many episodes at the store's end are kept from training for `Validation`.
    start: called once, when all input has been found good: nothing is written before; returns where the numbers go.
    resume: go on from out/checkpoints/last where there is one; what was logged after it is dropped.
    debug: 20 steps, 2 episodes, every stage.
    Raises FileExistsError when `out` holds checkpoints already and resume is off.
    """
    if debug:
        settings = replace(settings, steps=20, batch_size=16, log_every=5, checkpoint_every=10,
                           eval_every=10 if check else 0)  # fmt: skip
        if check:
            check.episodes = 2
    folder = out / "checkpoints"
    if not resume and (folder / "last").exists():
        raise FileExistsError(
            f"{out} holds a training run already; resume=true goes on with it, or choose another out="
        )
    if not 0 <= val_episodes < max(store.num_episodes, 1):
        raise ValueError(
            f"dataset.val_episodes must be at least 0 and leave episodes to train on, got {val_episodes} of "
            f"{store.num_episodes}"
        )
    if store.embodiment is None:
        raise ValueError(f"{store.path} has no embodiment record, so nothing says what its numbers mean")
    with torch.random.fork_rng():  # layers initialise themselves from the global generator
        torch.manual_seed(derive(seed, "model"))
        policy = create_policy(policy_config, store.embodiment, trusted_modules=_packages(policy_config))
    load = partial(
        SequenceDataset.from_store,
        store,
        horizon=policy.horizon,
        obs_horizon=policy.obs_horizon,
        keys=policy.obs_keys,
        mask_padding=mask_padding,
        device=device,
    )
    split = store.num_episodes - val_episodes
    dataset = load(episodes=range(split))
    validate = Validation(load(episodes=range(split, store.num_episodes)), seed=seed) if val_episodes else None
    fit_normalizers(policy.to(device), dataset, obs_mode=obs_mode, action_mode=action_mode)
    if check:
        check.require(policy)
    tracker = start()
    checkpoints = Checkpoints(folder, config=policy_config, facts=facts, keep_best=settings.keep_best)
    trainer = ImitationTrainer(
        policy, dataset, settings=settings, checkpoints=checkpoints, tracker=tracker, seed=seed, evaluate=check,
        validate=validate,
    )  # fmt: skip
    tracker.truncate_after(trainer.resume() if resume else 0)
    trainer.run()
    tracker.close()
    return (folder / "last").resolve()


def _packages(config: dict[str, Any]) -> list[str]:
    """Top-level packages that a policy config names: whoever typed the config trusts them."""
    values = [config, *(value for value in config.values() if isinstance(value, dict))]
    return sorted({value["_target_"].split(".")[0] for value in values if "_target_" in value})
