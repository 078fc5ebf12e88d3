"""One imitation run from a store to a checkpoint: build, fit, resume, train; with or without a simulator beside it."""

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from flowpolicy.checkpoint import Checkpoint, create_policy, resolve_checkpoint
from flowpolicy.checks import require_number
from flowpolicy.data.bounds import MAX_OUTSIDE, require_inside
from flowpolicy.data.dataset import SequenceDataset
from flowpolicy.data.residence import Residence
from flowpolicy.data.store import EpisodeStore
from flowpolicy.locks import only_writer
from flowpolicy.matching import require_match
from flowpolicy.normalizer import NormalizerMode
from flowpolicy.policy import FlowPolicy
from flowpolicy.results.seen_seeds import require_selection
from flowpolicy.rollout.episodes import left_to_solve, run_episodes
from flowpolicy.rollout.vector_env import make_vector_env
from flowpolicy.seeding import derive, seed_ranges, seeds_of
from flowpolicy.spec import targets
from flowpolicy.statistics.tests import wilson_interval
from flowpolicy.tracking import CompositeTracker, Tracker
from flowpolicy.trainers.checkpoints import IMITATION_STATE, Checkpoints, newest
from flowpolicy.trainers.fitting import fit_normalizers
from flowpolicy.trainers.imitation import ImitationTrainer, TrainerSettings, uses_bfloat16
from flowpolicy.trainers.resume import require_same_run, store_record, threads
from flowpolicy.trainers.validation import Validation

DEBUG_STEPS = 20  # with debug=true


@final
@dataclass(frozen=True)
class SimulatorCheck:
    """In-training evaluation: the averaged policy on seeds that neither training nor the report uses.

    Args:
        make_env: Constructor of one environment.
        episodes: How many, on seeds start_seed, start_seed + 1, ...
        start_seed: Seed of the first episode; the others follow it.
        num_steps: Network evaluations per chunk.
        envs: Parallel simulators (1 runs in this process).
    """

    make_env: Callable[[], Any]
    episodes: int = 20
    start_seed: int = 50000
    num_steps: int = 1
    envs: int = 1

    def __post_init__(self) -> None:
        """Raise ValueError for a number out of its range."""
        for name, least in (("episodes", 1), ("start_seed", 0), ("num_steps", 1), ("envs", 1)):
            require_number(f"eval.{name}", getattr(self, name), least=least, whole=True)

    @property
    def seeds(self) -> range:
        """Of its episodes."""
        return range(self.start_seed, self.start_seed + self.episodes)

    def require(self, policy: FlowPolicy) -> None:
        """Try the simulator before hours of training. Raises what it raises; ValueError for another embodiment.

        Args:
            policy: The policy.
        """
        env = make_vector_env(self.make_env, 1)
        try:
            require_match(policy.embodiment, env.embodiment, what="dataset and task", simulated=True)
        finally:
            env.close()

    def __call__(self, policy: FlowPolicy, step: int) -> dict[str, float]:
        """Metrics eval/success_once with its Wilson interval, eval/success_at_end, eval/return, eval/episode_len.

        Args:
            policy: The policy.
            step: Of training.
        """
        del step
        env = make_vector_env(self.make_env, self.envs)
        try:
            every = run_episodes(policy, env, self.seeds, num_steps=self.num_steps)
        finally:
            env.close()
        results = left_to_solve(every)
        successes = sum(result.success_once for result in results)
        low, high = wilson_interval(successes, len(results))
        return {
            "eval/success_once": successes / len(results),
            "eval/success_once_ci_low": low,
            "eval/success_once_ci_high": high,
            "eval/success_once_n": len(results),
            "eval/solved_at_reset": len(every) - len(results),
            "eval/success_at_end": sum(result.success_at_end for result in results) / len(results),
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
    max_outside: float = MAX_OUTSIDE,
    residence: Residence | None = None,
    obs_mode: NormalizerMode = "minmax",
    action_mode: NormalizerMode = "minmax",
    resume: bool = False,
    debug: bool = False,
    say: Callable[[str], None] = print,
) -> Path:
    """Train on `store` and return the folder of the last checkpoint.

    Args:
        store: The episodes, as `EpisodeStore` opens them.
        policy_config: What `create_policy` builds.
        facts: Written into each checkpoint's config.json, beside the seed, the trainer's settings and the normalisers'
            modes.
        out: Folder of the run.
        settings: Numbers of the loop.
        start: Called once, when all input has been found good: nothing is written before; returns where the numbers go.
        seed: Of the run.
        device: Where torch computes, e.g. "cpu" or "cuda".
        check: Rollouts in a simulator on the way; None is none.
        val_episodes: How many episodes at the store's end are kept from training for `Validation`.
        mask_padding: Leave rows past an episode's end out of the loss.
        max_outside: Largest share of steps with actions outside the declared bounds.
        residence: Where the data lies.
        obs_mode: How observations are normalised.
        action_mode: How actions are normalised.
        resume: Go on from the newest checkpoint of `out` where there is one; what was logged after it is dropped.
        debug: DEBUG_STEPS, every stage; 2 episodes where there is a `check`.
        say: Called with each sentence for the user.

    Raises:
        FileExistsError: When `out` holds checkpoints and resume is off.
        ValueError: For `require_same_run`, for a `check` on seeds of the demonstrations or on reported ones, and while
            another process writes to `out`.
    """
    settings, check = _shortened(settings, check) if debug else (settings, check)
    settings = replace(settings, precision="bf16" if uses_bfloat16(settings.precision, device) else "fp32")  # recorded
    facts = facts | {
        "dataset": {**facts.get("dataset", {}), **_data(store, val_episodes=val_episodes, mask_padding=mask_padding)},
        "threads": threads(device.type),
        "seed": seed,
        "trainer": asdict(settings),
        "normalization": {"obs": obs_mode, "action": action_mode},
    }
    with only_writer(out):
        if (last := newest(out / "checkpoints", IMITATION_STATE)) is not None:
            if not resume:
                raise FileExistsError(f"{out} holds a run already; resume=true goes on with it, or choose another out=")
            require_same_run(last, {"policy": policy_config, **facts}, store.embodiment)
        facts["selection_seeds"] = _selection(check if settings.eval_every else None, facts["dataset"]["seeds"], last)
        policy = _new_policy(store, policy_config, seed=seed).to(device)
        dataset, validate = _load(
            store,
            policy,
            val_episodes=val_episodes,
            mask_padding=mask_padding,
            seed=seed,
            max_outside=max_outside,
            residence=residence,
        )
        fit_normalizers(policy, dataset, obs_mode=obs_mode, action_mode=action_mode)
        if check:
            check.require(policy)
        trainer = ImitationTrainer(
            policy,
            dataset,
            settings=settings,
            checkpoints=Checkpoints(out / "checkpoints", facts=facts, keep_best=settings.keep_best),
            tracker=CompositeTracker([]),
            seed=seed,
            evaluate=check,
            validate=validate,
        )
        return _run(trainer, trainer.resume() if resume else 0, start, say=say)


def _selection(check: SimulatorCheck | None, demonstrations: list[list[int]], last: Path | None) -> list[list[int]]:
    """Ranges of the seeds that choose the checkpoint, and of those on which a resumed run has chosen before."""
    chosen = require_selection(check.seeds if check else range(0), demonstrations)
    return seed_ranges(
        seeds_of(chosen), seeds_of(Checkpoint.open(last).record.get("selection_seeds", []) if last else [])
    )


def _data(store: EpisodeStore, *, val_episodes: int, mask_padding: bool) -> dict[str, Any]:
    """What a checkpoint says of its demonstrations beside their path and hash."""
    seeds = seed_ranges([] if store.episode_seeds is None else store.episode_seeds)
    record = {"record": store_record(store), "seeds": seeds}
    return record | {"val_episodes": val_episodes, "mask_padding": mask_padding}


def _shortened(
    settings: TrainerSettings, check: SimulatorCheck | None
) -> tuple[TrainerSettings, SimulatorCheck | None]:
    """For debug: every stage in seconds."""
    settings = replace(
        settings, steps=DEBUG_STEPS, batch_size=16, log_every=5, checkpoint_every=10, eval_every=10 if check else 0
    )
    return settings, replace(check, episodes=2) if check else None


def _run(trainer: ImitationTrainer, step: int, start: Callable[[], Tracker], *, say: Callable[[str], None]) -> Path:
    """Train on from `step`; what was logged after it is dropped."""
    trainer.tracker = start()
    try:
        trainer.tracker.truncate_after(step, evaluation=step > 0 and trainer.pending)
        trainer.run()
    finally:
        trainer.tracker.close()
    settings = trainer.settings
    if trainer.step < settings.steps:
        say(
            f"stopped     after trainer.max_hours={settings.max_hours} at step {trainer.step} of {settings.steps}; "
            "resume=true goes on"
        )
    return resolve_checkpoint(trainer.checkpoints.folder / "last")


def _new_policy(store: EpisodeStore, config: dict[str, Any], *, seed: int) -> FlowPolicy:
    """Untrained; whoever typed the config trusts the packages that it names, which a checkpoint does not get to say."""
    embodiment = store.require_record()
    outside = sorted({target.split(".")[0] for target in targets(config)} - {"flowpolicy"})
    with torch.random.fork_rng():  # layers initialise themselves from the global generator
        torch.manual_seed(derive(seed, "model"))
        return create_policy(config, embodiment, trusted_modules=outside)


def _load(
    store: EpisodeStore,
    policy: FlowPolicy,
    *,
    val_episodes: int,
    mask_padding: bool,
    seed: int,
    max_outside: float,
    residence: Residence | None,
) -> tuple[SequenceDataset, Validation | None]:
    """What to train on, on the policy's device, and the check on the last `val_episodes`."""
    _tell_short_episodes(store, policy.obs_horizon - 1 + policy.action_horizon)
    require_inside(store, max_outside=max_outside)
    if not 0 <= val_episodes < max(store.num_episodes, 1):
        raise ValueError(
            f"dataset.val_episodes must be at least 0 and leave episodes to train on, got {val_episodes} of "
            f"{store.num_episodes}"
        )
    load = partial(
        SequenceDataset.from_store,
        store,
        horizon=policy.horizon,
        obs_horizon=policy.obs_horizon,
        keys=policy.obs_keys,
        mask_padding=mask_padding,
        device=policy.action_low.device,
        residence=residence,
    )
    split = store.num_episodes - val_episodes
    held_out = load(episodes=range(split, store.num_episodes)) if val_episodes else None
    return load(episodes=range(split)), Validation(held_out, seed=seed) if held_out is not None else None


def _tell_short_episodes(store: EpisodeStore, steps: int) -> None:
    """Warn of episodes that do not fill the part of one chunk that is executed."""
    lengths = np.diff(store.episode_ends, prepend=0)
    if len(short := np.flatnonzero(lengths < steps)):
        listed = ", ".join(map(str, short[:5])) + (f", ... ({len(short)} in all)" if len(short) > 5 else "")
        warnings.warn(
            f"{store.path}: an episode needs at least {steps} steps to fill a chunk that is executed "
            f"(policy.obs_horizon - 1 + policy.action_horizon); episodes {listed} have fewer (the shortest "
            f"{lengths.min()}), and teach mostly to repeat their last action",
            stacklevel=3,
        )
