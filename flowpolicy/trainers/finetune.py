"""One fine-tuning run from a checkpoint to a better one: preflight, training, receipt."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from flowpolicy.checkpoint import Checkpoint, resolve_checkpoint, save_policy
from flowpolicy.exploration.base import Exploration
from flowpolicy.fingerprint import ENTRY
from flowpolicy.json_files import write_json
from flowpolicy.locks import only_writer
from flowpolicy.matching import require_match
from flowpolicy.policy import FlowPolicy
from flowpolicy.provenance import require_same
from flowpolicy.results.seen_seeds import START_SEED, require_selection, seen_seeds, seen_text
from flowpolicy.rl.actor_critic import ActorCritic
from flowpolicy.rl.group import refuse_batch
from flowpolicy.rl.settings import PPOSettings
from flowpolicy.rollout.batched_env import BatchedChunkEnv, BatchedSimulator
from flowpolicy.rollout.chunk_env import ChunkEnv, Reward, make_chunk_env
from flowpolicy.seeding import derive, seed_ranges, seeds_of
from flowpolicy.tracking import Tracker
from flowpolicy.trainers.checkpoints import Checkpoints, begun
from flowpolicy.trainers.finetune_settings import FinetuneSettings
from flowpolicy.trainers.imitate import SimulatorCheck
from flowpolicy.trainers.ppo import PPO_STATE, PPOTrainer
from flowpolicy.trainers.preflight import Preflight, run_preflight
from flowpolicy.trainers.receipt import write_receipt
from flowpolicy.trainers.resume import threads


def finetune(
    checkpoint: Checkpoint | Path | str,
    make_env: Callable[[], Any],
    exploration: Exploration | Callable[..., Exploration],
    *,
    out: Path,
    settings: FinetuneSettings,
    make_batch: Callable[[int], BatchedSimulator] | None = None,
    facts: dict[str, Any],
    start: Callable[[], Tracker],
    seed: int,
    device: torch.device | str = "cpu",
    trusted_modules: Sequence[str] = (),
    edited: bool = False,
    resume: bool = False,
    say: Callable[[str], None] = print,
    progress: bool = True,
) -> Path:
    """Fine-tune and return the folder of the last checkpoint.

    Args:
        checkpoint: What to start from; copied to out/base, from which a resumed run reads it.
        make_env: Makes one simulator.
        exploration: How the policy draws actions to learn from, and their densities.
        out: Folder of the run.
        settings: All numbers.
        make_batch: (number of environments) -> all of them in one batch, in the place of worker processes.
        facts: JSON-ready, written into each checkpoint; a resumed run must have the same but for the length of the
            loop.
        start: Called once when all input has been found good; returns where the numbers go.
        seed: Of the run.
        device: Where torch computes, e.g. "cpu" or "cuda".
        trusted_modules: Packages outside flowpolicy whose classes a checkpoint may name.
        edited: Take checkpoint files that are not as they were saved, see `Checkpoint.policy`.
        resume: Go on from the newest checkpoint of `out`.
        say: Called with each sentence for the user.
        progress: Whether to show a progress bar.

    Raises:
        FileExistsError: When `out` holds checkpoints and resume is off.
        ValueError: For another embodiment, a head that the exploration cannot use, what `run_preflight` finds, a run
            that differs from the one to be resumed, and while another process writes to `out`.
    """
    with only_writer(out):
        base, folder = out / "base", out / "checkpoints"
        last = begun(out, PPO_STATE, resume=resume)
        checkpoint = Checkpoint.open(base if last is not None else checkpoint)
        policy = checkpoint.policy(device=device, trusted_modules=trusted_modules, edited=edited)
        settings = replace(settings, loop=replace(settings.loop, iterations=settings.iterations(policy.action_horizon)))
        origin = {k: v for k, v in checkpoint.record.items() if k not in ("schema_version", "policy", "step", ENTRY)}
        facts = _with_numbers(origin, facts, settings, seed=seed, device=str(device))
        if last is not None:
            _require_same_numbers(Checkpoint.open(last).record, facts)
        env = _simulators(policy, make_env, make_batch, settings)
        try:
            require_match(policy.embodiment, env.embodiment, what="checkpoint and task")
            trainer = _trainer(policy, env, make_env, exploration, settings, seed=seed, progress=progress)
            facts["num_steps"] = trainer.actor_critic.exploration.deploy_steps
            keep = settings.loop.keep_best
            trainer.checkpoints = Checkpoints(folder, facts=facts, keep_best=keep)
            step = trainer.resume() if resume else 0
            found = _preflight(trainer, settings, say=say) if not step and settings.preflight_episodes else None
            trainer.tracker = start()
            if found is not None:
                write_json(out / "preflight.json", found._asdict())
            if last is None:
                save_policy(policy, base / "policy", facts=origin, overwrite=True)
            _run(trainer, step)
        finally:
            env.close()
        _conclude(out, make_env, trainer, settings, device=device, trusted_modules=trusted_modules, say=say)
        return resolve_checkpoint(folder / "last")


def _selection(settings: FinetuneSettings, facts: dict[str, Any]) -> list[list[int]]:
    """Ranges of the seeds that chose a checkpoint, here or in the imitation before. Raises ValueError for seen ones."""
    episodes = settings.eval_episodes if settings.loop.eval_every else 0
    demonstrations = (facts.get("dataset") or {}).get("seeds", [])
    chosen = require_selection(range(settings.eval_seed, settings.eval_seed + episodes), demonstrations)
    return seed_ranges(seeds_of(chosen), seeds_of(facts.get("selection_seeds", [])))


def _require_unseen(origin: dict[str, Any], facts: dict[str, Any], settings: FinetuneSettings) -> None:
    """Raise ValueError for a receipt on seeds that the base has seen on this task, or that training draws from.

    origin: what the base's checkpoint says.   facts: what those of this run will say.
    """
    task, first = facts.get("task") or {}, settings.receipt_seed
    seeds = range(first, first + settings.receipt_episodes)
    if seen := seen_seeds(origin | {"finetune": {}}, (task.get("name", ""), task.get("id", "")), seeds):
        raise ValueError(
            f"receipt: the policy has seen {seen_text(seen)} of the {len(seeds)} seeds from {first}; take "
            f"others (`receipt_seed={START_SEED}`)"
        )


def _with_numbers(
    origin: dict[str, Any], facts: dict[str, Any], settings: FinetuneSettings, *, seed: int, device: str
) -> dict[str, Any]:
    """What the base says, `facts` over it and the run's numbers, as a checkpoint gives them back. Raises ValueError for
    seeds that were seen."""
    facts = origin | facts
    _require_unseen(origin, facts, settings)
    numbers = json.loads(json.dumps(asdict(settings))) | {"seed": seed, "threads": threads(device)}
    seen = {"selection_seeds": _selection(settings, facts)}
    return facts | seen | {"finetune": {**facts.get("finetune", {}), **numbers}}


def _simulators(
    policy: FlowPolicy,
    make_env: Callable[[], Any],
    make_batch: Callable[[int], BatchedSimulator] | None,
    settings: FinetuneSettings,
) -> ChunkEnv:
    words: Any = {"action_horizon": policy.action_horizon, "obs_horizon": policy.obs_horizon, "reward": settings.reward}
    if make_batch is not None:
        refuse_batch(settings.ppo.advantage)
        return BatchedChunkEnv(make_batch(settings.envs), **words)
    return make_chunk_env(make_env, settings.envs, workers=settings.workers, **words)


def _run(trainer: PPOTrainer, step: int) -> None:
    """Train on from iteration `step`; what was logged after it is dropped, at 0 also the first evaluation."""
    try:
        trainer.tracker.truncate_after(step or -1, evaluation=step > 0 and trainer.pending)
        trainer.run()
    finally:
        trainer.tracker.close()


def _trainer(
    policy: FlowPolicy,
    env: ChunkEnv,
    make_env: Callable[[], Any],
    exploration: Exploration | Callable[..., Exploration],
    settings: FinetuneSettings,
    *,
    seed: int,
    progress: bool,
) -> PPOTrainer:
    """Everything but where its numbers and checkpoints go."""
    with torch.random.fork_rng():  # layers initialise themselves from the global generator
        torch.manual_seed(derive(seed, "critic"))
        actor_critic = ActorCritic(policy, exploration, **asdict(settings.actor))
    num_steps = actor_critic.exploration.deploy_steps
    check = None
    if settings.loop.eval_every:
        check = SimulatorCheck(make_env, settings.eval_episodes, settings.eval_seed, num_steps, settings.workers)
    return PPOTrainer(
        actor_critic,
        env,
        ppo=settings.ppo,
        loop=settings.loop,
        sparse=settings.reward.sparse,
        seed=seed,
        evaluate=check,
        progress=progress,
    )


def _conclude(
    out: Path,
    make_env: Callable[[], Any],
    trainer: PPOTrainer,
    settings: FinetuneSettings,
    *,
    device: torch.device | str,
    trusted_modules: Sequence[str],
    say: Callable[[str], None],
) -> None:
    """The receipt of a run that reached its end; else a sentence."""
    if trainer.iteration < settings.loop.iterations:
        say(
            f"stopped     after `max_hours={settings.loop.max_hours}` at iteration {trainer.iteration} of "
            f"{settings.loop.iterations}; `resume=True` goes on"
        )
    if trainer.iteration < settings.loop.iterations or not settings.receipt_episodes:
        return
    last, best = (resolve_checkpoint(out / "checkpoints" / name) for name in ("last", "best"))
    other = best if best != last else None  # without evaluations there is no best
    receipt = write_receipt(
        out,
        make_env,
        before=out / "base",
        after=last,
        best=other,
        num_steps=trainer.actor_critic.exploration.deploy_steps,
        episodes=settings.receipt_episodes,
        start_seed=settings.receipt_seed,
        envs=settings.workers,
        device=device,
        trusted_modules=trusted_modules,
    )
    before, after = (receipt[name]["success_once"] for name in ("before", "after"))
    beside = f" (best: {receipt['best']['success_once']:.3f})" if "best" in receipt else ""
    say(
        f"receipt     {before:.3f} -> {after:.3f}{beside} on {settings.receipt_episodes} unseen seeds: "
        f"{receipt['verdict']} (p = {receipt['p_value']:.2g}); {out / 'receipt.html'}"
    )


def _preflight(trainer: PPOTrainer, settings: FinetuneSettings, *, say: Callable[[str], None]) -> Preflight:
    found = run_preflight(
        trainer.actor_critic,
        trainer.env,
        ppo=settings.ppo,
        loop=settings.loop,
        sparse=settings.reward.sparse,
        seed=trainer.seed,
        episodes=settings.preflight_episodes,
        min_success=settings.min_success,
    )
    say(
        f"preflight   first ratio 1 +- {found.ratio_error:.1g}, success with noise {found.noisy_success:.2f} "
        f"[{found.ci_low:.2f}, {found.ci_high:.2f}] at std {found.std:.3f}, {found.env_fps:.0f} steps/s, about "
        f"{found.hours:.2f} h"
    )
    return found


def _require_same_numbers(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise ValueError unless a resumed run has the numbers that it began with."""

    def compared(facts: Mapping[str, Any]) -> dict[str, Any]:
        numbers = {key: value for key, value in facts["finetune"].items() if not key.startswith("receipt")}
        # a run begun before a number existed had its default
        numbers = {"batched": False, **numbers, "total_steps": None}  # a length, as the number of iterations is
        if "sampler" in numbers:  # as older runs call it
            numbers["exploration"] = json.loads(
                json.dumps(numbers.pop("sampler")).replace("flowpolicy.samplers.", "flowpolicy.exploration.")
            )
        numbers.setdefault("threads", wanted["finetune"]["threads"])
        numbers |= {"ppo": asdict(PPOSettings()) | numbers["ppo"], "reward": asdict(Reward()) | numbers["reward"]}
        task = {key: value for key, value in (facts.get("task") or {}).items() if key != "batched"}
        loop = {**numbers["loop"], "iterations": 0, "max_hours": None}
        return numbers | {"loop": loop, "workers": 0, "task": task}

    fix = "use its .hydra/overrides.yaml, or choose another `out=` for a new run"
    before, now = compared(recorded), compared(wanted)
    require_same(before, now, where="resume: the run", whole=("",), fix=lambda key, old: fix)
