"""One imitation run from a store to a checkpoint: build, fit, resume, train; with or without a simulator beside it."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np

from flowpolicy.ambient import standard_torch
from flowpolicy.checkpoint import Checkpoint, resolve_checkpoint
from flowpolicy.checks import require_number
from flowpolicy.data.base import Store
from flowpolicy.data.bounds import MAX_OUTSIDE, require_inside
from flowpolicy.data.dataset import SequenceDataset
from flowpolicy.data.residence import Residence
from flowpolicy.locks import only_writer
from flowpolicy.matching import require_match
from flowpolicy.normalizer import NormalizerMode
from flowpolicy.policy import FlowPolicy
from flowpolicy.results.seen_seeds import require_selection
from flowpolicy.rollout.episodes import left_to_solve, run_episodes
from flowpolicy.rollout.vector_env import make_vector_env
from flowpolicy.samplers.base import Sampler, require_support
from flowpolicy.samplers.jump import Jump
from flowpolicy.seeding import seed_ranges, seeds_of
from flowpolicy.statistics.tests import wilson_interval
from flowpolicy.tracking import CompositeTracker, JsonlTracker, Tracker
from flowpolicy.trainers.checkpoints import IMITATION_STATE, Checkpoints, begun
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
        num_steps: Of the sampler.
        envs: Parallel simulators (1 runs in this process).
        sampler: How chunks are drawn, as in `FlowPolicy.predict`; None is jumps.
    """

    make_env: Callable[[], Any]
    episodes: int = 20
    start_seed: int = 50000
    num_steps: int = 1
    envs: int = 1
    sampler: Sampler | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for a number out of its range."""
        for name, least in (("episodes", 1), ("start_seed", 0), ("num_steps", 1), ("envs", 1)):
            require_number(f"`check.{name}`", getattr(self, name), least=least, whole=True)

    @property
    def drawn(self) -> Sampler:
        """The sampler, in num_steps."""
        return replace(self.sampler or Jump(), num_steps=self.num_steps)

    @property
    def seeds(self) -> range:
        """Of its episodes."""
        return range(self.start_seed, self.start_seed + self.episodes)

    def require(self, policy: FlowPolicy) -> None:
        """Try the simulator before hours of training. Raises what it raises; ValueError for another embodiment.

        Args:
            policy: The policy.
        """
        require_support(self.drawn, policy.head)
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
            every = run_episodes(policy, env, self.seeds, sampler=self.drawn)
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


@final
class _History:
    """A tracker that keeps what it is told: {"step", metric...} each."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append one entry."""
        self.lines.append({"step": step, **metrics})

    def sync(self) -> None:
        """Nothing: it has no file."""

    def truncate_after(self, step: int, *, evaluation: bool = False) -> None:
        """Nothing: it begins with the run that resumes."""
        del step, evaluation

    def close(self) -> None:
        """Nothing."""


class Trained(NamedTuple):
    """What `train` gives back.

    Args:
        policy: The one that it was given, now with the averaged weights and in evaluation mode.
        step: How many updates it has seen.
        finished: Whether that is all of them; `max_hours` may have ended it before.
        history: One entry per logged step: "step", "train/loss", "train/grad_norm", ….
        checkpoint: Folder of the last checkpoint, None without `out`.
    """

    policy: FlowPolicy
    step: int
    finished: bool
    history: list[dict[str, float]]
    checkpoint: Path | None


@standard_torch()
def train(
    policy: FlowPolicy,
    store: Store,
    *,
    steps: int | None = None,
    settings: TrainerSettings | None = None,
    seed: int = 0,
    out: Path | str | None = None,
    facts: Mapping[str, Any] | None = None,
    start: Callable[[], Tracker] | None = None,
    check: SimulatorCheck | None = None,
    val_episodes: int = 0,
    mask_padding: bool = False,
    max_outside: float = MAX_OUTSIDE,
    residence: Residence | None = None,
    obs_mode: NormalizerMode = "minmax",
    action_mode: NormalizerMode = "minmax",
    resume: bool = False,
    debug: bool = False,
    progress: bool = True,
) -> Trained:
    """Fit the normalisers to demonstrations and train `policy` on them, on its device: what `flowpolicy train` runs.

    Two calls on policies of the same `build_policy(seed=...)` with the same seed give the same weights, bit for bit.

    Args:
        policy: Of `build_policy`. It is trained in place.
        store: A `MemoryStore` of arrays, or an `EpisodeStore`.
        steps: How many updates; None is what the settings say.
        settings: Batch size, learning rate and the other numbers; None is `TrainerSettings()`.
        seed: Fixes windows, noise and times of every step.
        out: Run folder for checkpoints/ and metrics.jsonl, which every verb takes; None writes nothing.
        facts: JSON-ready extras for each checkpoint's config.json, as task and dataset.
        start: Called once, when all input has been found good: nothing is written before. Returns where the numbers
            go; None is metrics.jsonl in `out`.
        check: Evaluation in a simulator every `eval_every` steps.
        val_episodes: How many episodes at the store's end are kept from training for `Validation`.
        mask_padding: Whether the steps past an episode's end count in the loss no more, see `SequenceDataset`.
        max_outside: Largest share of steps with actions outside the declared bounds.
        residence: Where the data lies.
        obs_mode: How observations are normalised.
        action_mode: How actions are.
        resume: Go on from the newest checkpoint of `out` where there is one; what was logged after it is dropped.
        debug: DEBUG_STEPS, every stage; 2 episodes where there is a `check`.
        progress: Whether to show a progress bar on stderr.

    Returns:
        The policy and how it went.

    Raises:
        FileExistsError: When `out` holds checkpoints and resume is off.
        ValueError: For a store of another embodiment than the policy's, for `require_same_run`, for a `check` on seeds
            of the demonstrations or on reported ones, and while another process writes to `out`.
    """
    settings, device = settings or TrainerSettings(), policy.action_low.device
    settings = settings if steps is None else replace(settings, steps=steps)
    settings, check = _shortened(settings, check) if debug else (settings, check)
    settings = replace(settings, precision="bf16" if uses_bfloat16(settings.precision, device) else "fp32")  # recorded
    _require_trainable(policy, store)
    data = {"val_episodes": val_episodes, "mask_padding": mask_padding}
    record = _record(store, facts or {}, data=data, settings=settings, seed=seed, device=device.type)
    record["normalization"] = {"obs": obs_mode, "action": action_mode}
    folder = None if out is None else Path(out)
    with nullcontext() if folder is None else only_writer(folder):
        last = None if folder is None else _last(folder, policy, record, resume=resume)
        record["selection_seeds"] = _selection(check if settings.eval_every else None, record["dataset"]["seeds"], last)
        dataset, validate = _load(store, policy, **data, seed=seed, max_outside=max_outside, residence=residence)
        fit_normalizers(policy, dataset, obs_mode=obs_mode, action_mode=action_mode)
        if check:
            check.require(policy)
        trainer = ImitationTrainer(
            policy,
            dataset,
            settings=settings,
            checkpoints=_checkpoints(folder, record, settings),
            tracker=CompositeTracker([]),
            seed=seed,
            evaluate=check,
            validate=validate,
            progress=progress,
        )
        with _tracked(trainer, start or partial(_metrics_file, folder), resume=last is not None) as history:
            trainer.run()
        return _trained(trainer, history)


def _require_trainable(policy: FlowPolicy, store: Store) -> None:
    require_match(policy.embodiment, store.require_record(), what="policy and dataset")
    if not any(parameter.requires_grad for parameter in policy.parameters()):
        raise ValueError(
            "train: no weight of the policy takes a gradient, as load_policy leaves them; call "
            "policy.requires_grad_(True) before"
        )


def _last(out: Path, policy: FlowPolicy, facts: Mapping[str, Any], *, resume: bool) -> Path | None:
    """The checkpoint to go on from, of a run that is the same so far; None where a run begins."""
    if (last := begun(out, IMITATION_STATE, resume=resume)) is not None:
        require_same_run(last, {"policy": policy.spec.to_dict(), **facts}, policy.embodiment)
    return last


def _checkpoints(out: Path | None, facts: dict[str, Any], settings: TrainerSettings) -> Checkpoints | None:
    return None if out is None else Checkpoints(out / "checkpoints", facts=facts, keep_best=settings.keep_best)


def _metrics_file(out: Path | None) -> Tracker:
    return CompositeTracker([] if out is None else [JsonlTracker(out / "metrics.jsonl")])


def _selection(check: SimulatorCheck | None, demonstrations: list[list[int]], last: Path | None) -> list[list[int]]:
    """Ranges of the seeds that choose the checkpoint, and of those on which a resumed run has chosen before."""
    chosen = require_selection(check.seeds if check else range(0), demonstrations)
    return seed_ranges(
        seeds_of(chosen), seeds_of(Checkpoint.open(last).record.get("selection_seeds", []) if last else [])
    )


def _record(
    store: Store, facts: Mapping[str, Any], *, data: dict[str, Any], settings: TrainerSettings, seed: int, device: str
) -> dict[str, Any]:
    """What a checkpoint says of its training, beside the normalisation; `facts` tell where the demonstrations lie."""
    seeds = seed_ranges([] if store.episode_seeds is None else store.episode_seeds)
    dataset = {**facts.get("dataset", {}), "record": store_record(store), "seeds": seeds, **data}
    own = {"dataset": dataset, "threads": threads(device), "seed": seed, "trainer": asdict(settings)}
    return {**facts, **own}


def _shortened(
    settings: TrainerSettings, check: SimulatorCheck | None
) -> tuple[TrainerSettings, SimulatorCheck | None]:
    """For debug: every stage in seconds."""
    settings = replace(
        settings, steps=DEBUG_STEPS, batch_size=16, log_every=5, checkpoint_every=10, eval_every=10 if check else 0
    )
    return settings, replace(check, episodes=2) if check else None


@contextmanager
def _tracked(trainer: ImitationTrainer, start: Callable[[], Tracker], *, resume: bool) -> "Iterator[_History]":
    """The trainer at its newest checkpoint, with a tracker while the block runs; what was logged later is dropped."""
    step, history = trainer.resume() if resume else 0, _History()
    trainer.tracker = CompositeTracker([start(), history])
    try:
        trainer.tracker.truncate_after(step, evaluation=step > 0 and trainer.pending)
        yield history
    finally:
        trainer.tracker.close()


def _trained(trainer: ImitationTrainer, history: "_History") -> Trained:
    policy, checkpoints = trainer.policy, trainer.checkpoints
    policy.load_state_dict(trainer.ema.module.state_dict())
    folder = None if checkpoints is None else resolve_checkpoint(checkpoints.folder / "last")
    return Trained(policy.eval(), trainer.step, trainer.step >= trainer.settings.steps, history.lines, folder)


def _load(
    store: Store,
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
            f"`val_episodes` must be at least 0 and leave episodes to train on, got {val_episodes} of "
            f"{store.num_episodes}"
        )
    load = partial(
        SequenceDataset.from_store,
        store,
        horizon=policy.horizon,
        obs_horizon=policy.obs_horizon,
        keys=policy.obs_keys,
        mask_padding=mask_padding,
        device=policy.device,
        residence=residence,
    )
    split = store.num_episodes - val_episodes
    held_out = load(episodes=range(split, store.num_episodes)) if val_episodes else None
    return load(episodes=range(split)), Validation(held_out, seed=seed) if held_out is not None else None


def _tell_short_episodes(store: Store, steps: int) -> None:
    """Warn of episodes that do not fill the part of one chunk that is executed."""
    lengths = np.diff(store.episode_ends, prepend=0)
    if len(short := np.flatnonzero(lengths < steps)):
        listed = ", ".join(map(str, short[:5])) + (f", ... ({len(short)} in all)" if len(short) > 5 else "")
        warnings.warn(
            f"{store.path}: an episode needs at least {steps} steps to fill a chunk that is executed "
            f"(`obs_horizon` - 1 + `action_horizon`); episodes {listed} have fewer (the shortest "
            f"{lengths.min()}), and teach mostly to repeat their last action",
            stacklevel=3,
        )
