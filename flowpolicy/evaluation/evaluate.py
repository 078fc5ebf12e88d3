"""`evaluate`: seeded rollouts of one checkpoint on one task, one evaluation folder per number of steps."""

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from flowpolicy.checkpoint import Checkpoint
from flowpolicy.evaluation.chunk_panels import (
    Demonstration,
    EpisodeRecord,
    load_demonstration,
    record_episode,
    write_chunks,
)
from flowpolicy.evaluation.journal import Journal
from flowpolicy.inference.latency import LatencyReport, example_observation, measure_latency
from flowpolicy.json_files import write_json
from flowpolicy.locks import only_writer
from flowpolicy.matching import require_match
from flowpolicy.policy import FlowPolicy
from flowpolicy.provenance import numerics, versions
from flowpolicy.results.episodes import FACTS, episode_row, left_to_solve, weights_digest
from flowpolicy.results.seen_seeds import START_SEED, remarks, require_unseen
from flowpolicy.rollout.episodes import EpisodeResult, run_episodes
from flowpolicy.rollout.vector_env import VectorEnv, make_vector_env
from flowpolicy.rollout.video import require_video
from flowpolicy.samplers.base import Sampler, require_support
from flowpolicy.samplers.choose import as_sampler
from flowpolicy.seeding import stream
from flowpolicy.statistics.tests import wilson_interval


class Task(NamedTuple):
    """What to evaluate on: family name, id, and how to make one environment (takes `render=`; must pickle).

    Args:
        name: Its family.
        id: Within the family.
        make_env: Makes one environment.
        settings: JSON-ready, what `make_env` makes it with (episode limit, view, …), apart from the seed.
    """

    name: str
    id: str
    make_env: Callable[..., Any]
    settings: Mapping[str, Any] = {}


class Evaluation(NamedTuple):
    """What was found at one number of steps, as in summary.json, and the folder it was written to.

    Args:
        summary: As in summary.json.
        out: The folder.
    """

    summary: dict[str, Any]
    out: Path


def evaluate(
    checkpoint: Checkpoint | Path | str,
    task: Task,
    *,
    outs: Mapping[Sampler | int, Path],
    episodes: int = 100,
    start_seed: int = START_SEED,
    envs: int = 2,
    video: int = 0,
    device: torch.device | str = "cpu",
    demonstrations: Path | None = None,
    trusted_modules: Sequence[str] = (),
    edited: bool = False,
    allow_seen_seeds: bool = False,
    progress: bool = True,
) -> list[Evaluation]:
    """Roll out seeds start_seed .. start_seed + episodes - 1 with every sampler in `outs`.

    Each folder appears whole, with results.jsonl, summary.json, latency.json (batch 1, after warm-up), chunks.json, and
    videos/ when asked for. A killed call goes on at the episode where it was; a finished one is not done again.

    Args:
        checkpoint: As for `Checkpoint.open`.
        task: What to evaluate on.
        outs: Sampler -> folder to write; a number K stands for `Jump(num_steps=K)`.
        episodes: How many, one per seed.
        start_seed: Seed of the first episode; the others follow it.
        envs: Parallel simulators; the results do not depend on it.
        video: Record the first so many episodes.
        device: Where torch computes, e.g. "cpu" or "cuda".
        demonstrations: Store whose first episode the chunk picture shows too. trusted_modules,.
        trusted_modules: Packages outside flowpolicy whose classes a checkpoint may name.
        edited: As in `load_policy`.
        allow_seen_seeds: Also seeds that the policy has seen (`seen_seeds`); the result is marked.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: When checkpoint and task disagree on the embodiment, a count is out of range, a folder holds
            anything else than this evaluation, or seeds had been seen.
    """
    _check_counts(episodes=episodes, envs=envs, video=video, start_seed=start_seed)
    if video:
        require_video()
    checkpoint, seeds = Checkpoint.open(checkpoint), range(start_seed, start_seed + episodes)
    seen = require_unseen(checkpoint.record, (task.name, task.id), seeds, allow=allow_seen_seeds)
    policy = checkpoint.policy(device=device, trusted_modules=trusted_modules, edited=edited)
    samplers = {one if isinstance(one, Sampler) else as_sampler(None, one): out for one, out in outs.items()}
    check_samplers(policy, samplers)
    facts = {"task": task.name, "task_id": task.id, "checkpoint": str(checkpoint.folder)}
    rules = rules_of(policy, checkpoint, task.settings) | {"seen_seeds": seen}
    asked = {
        "start_seed": start_seed,
        "episodes": episodes,
        **facts,
        **rules,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "versions": numerics(),
    }
    journals = {one: Journal(out, one.facts | asked | {"sampler": one.label}) for one, out in samplers.items()}
    if all(journal.complete and not journal.unfilmed(seeds[:video]) for journal in journals.values()):
        return [Evaluation(journal.summary(), journal.out) for journal in journals.values()]
    demonstration = load_demonstration(demonstrations, policy) if demonstrations else None
    rehearse(policy, samplers, demonstration)
    env = make_vector_env(partial(task.make_env, render=video > 0), min(envs, episodes))
    try:
        require_match(policy.embodiment, env.embodiment, what="checkpoint and task", simulated=True)
        finish = partial(describe, policy, env, rules=rules, demonstration=demonstration)
        for sampler, journal in journals.items():
            with only_writer(journal.out.parent, f"{journal.out.name}.lock"):
                rows, speed = _roll(
                    policy, env, seeds, sampler, facts=facts, journal=journal, video=video, progress=progress
                )
                if not journal.complete:
                    finish(rows, sampler=sampler, out=journal.unfinished, env_steps_per_s=speed)
                    journal.finish(rows)
    finally:
        env.close()
    return [Evaluation(journal.summary(), journal.out) for journal in journals.values()]


def rehearse(policy: FlowPolicy, samplers: Collection[Sampler], demonstration: Demonstration | None) -> None:
    """Do once, in a folder that goes again, what an evaluation does at its end, so that nothing of it fails there.

    Args:
        policy: The policy to run.
        samplers: That will be used.
        demonstration: The episode that the chunk picture shows too.
    """
    obs = example_observation(policy, policy.device)
    for sampler in samplers:
        latency = measure_latency(policy, obs, sampler=sampler, warmup=0, repeats=1)
        chunk = policy.predict(obs, sampler=sampler, generator=stream(0, "chunk_picture"))
        with tempfile.TemporaryDirectory() as folder:
            write_json(Path(folder, "latency.json"), latency.to_dict())
            write_chunks(
                Path(folder, "chunks.json"),
                policy,
                EpisodeRecord(0, [obs], [chunk], 1),
                sampler=sampler,
                demonstration=demonstration,
            )


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        least = 1 if name in ("episodes", "envs") else 0
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def rules_of(policy: FlowPolicy, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What two evaluations must share to be compared, and which weights these were; part of summary.json.

    Args:
        policy: The policy to run.
        checkpoint: Its checkpoint.
        settings: Of the task's environment. action_horizon: steps executed of each chunk. sampler, noise: how a chunk
            is drawn. weights: digest of the checkpoint.
    """
    return {
        "settings": dict(settings),
        "action_horizon": policy.action_horizon,
        "control_hz": policy.embodiment.control_hz,
        "noise": "drawn, a stream per seed",
        "weights": weights_digest(checkpoint.files)[:16],
    }


def describe(
    policy: FlowPolicy,
    env: VectorEnv,
    rows: Sequence[Mapping[str, Any]],
    *,
    sampler: Sampler,
    out: Path,
    rules: Mapping[str, Any],
    env_steps_per_s: float | None = None,
    demonstration: Demonstration | None = None,
) -> dict[str, Any]:
    """Write latency.json (batch 1, after warm-up), chunks.json and last summary.json of the episodes `rows`.

    Args:
        policy: The policy to run.
        env: Takes the first of these episodes again.
        rows: Lines of results.jsonl, of one policy at one number of steps.
        sampler: How the chunks were drawn.
        out: The folder.
        rules: See `rules_of`; and what else is to be said.
        env_steps_per_s: None is the speed of that episode.
        demonstration: The episode that the chunk picture shows too.

    Returns:
        The summary.
    """
    start_seed = rows[0]["seed"]
    start = time.monotonic()
    record = record_episode(policy, env, seed=start_seed, sampler=sampler)
    speed = env_steps_per_s or record.episode_len / (time.monotonic() - start)
    latency = measure_latency(policy, record.seen[0], sampler=sampler)
    summary = {name: rows[0][name] for name in FACTS} | summarize(rows, latency, env_steps_per_s=speed)
    summary |= {"sampler": sampler.label, "evaluations": sampler.evaluations, "start_seed": start_seed, **rules}
    summary |= {"device": latency.device, "threads": torch.get_num_threads()}
    summary |= {"versions": versions(), "policy_params": policy.num_parameters}
    write_json(out / "latency.json", latency.to_dict())
    write_chunks(out / "chunks.json", policy, record, sampler=sampler, demonstration=demonstration)
    write_json(out / "summary.json", summary)
    return summary


def summarize(rows: Sequence[Mapping[str, Any]], latency: LatencyReport, *, env_steps_per_s: float) -> dict[str, Any]:
    """The measured part of summary.json. env_steps_per_s: of all the rollouts, policy included.

    n and the rates are of the episodes that were not solved at reset: `solved_at_reset` of `episodes` were.
    success_outcomes: where the environment has words for ways to succeed ("left", "right"), how often each was taken.

    Args:
        rows: Lines of results.jsonl, one per episode.
        latency: As latency.json says it.
        env_steps_per_s: Of all the rollouts, policy included.
    """
    every, rows = rows, left_to_solve(rows)
    n, once = len(rows), sum(row["success_once"] for row in rows)
    low, high = wilson_interval(once, n)
    ways = Counter(row["outcome"] for row in rows if row.get("outcome") and row["success_once"])
    return {
        "n": n,
        "episodes": len(every),
        "solved_at_reset": len(every) - n,
        "success_once": once / n,
        "ci_low": low,
        "ci_high": high,
        "success_at_end": sum(row["success_at_end"] for row in rows) / n,
        "return_mean": sum(row["return"] for row in rows) / n,
        "latency_ms": {name: latency.predict[name] for name in ("p50", "p95", "p99")},
        "env_steps_per_s": env_steps_per_s,
    } | ({"success_outcomes": dict(sorted(ways.items()))} if ways else {})


def evaluation_folders(
    checkpoint: Path, samplers: Sampler | Sequence[Sampler], *, out: Path | None, task_id: str | None = None
) -> dict[Sampler | int, Path]:
    """Sampler -> folder: `out` itself for a single one, out/steps_<K> (`Sampler.folder`) for several.

    Args:
        checkpoint: The resolved folder, RUN_DIR/checkpoints/<step>.
        samplers: One, or a list.
        out: None is RUN_DIR/evaluation/<checkpoint>, always with steps_<K>, so that no evaluation overwrites another's.
        task_id: a folder more for a task that is not the checkpoint's own; None is its own. Without effect on a given
            out.
    """
    if out is not None and isinstance(samplers, Sampler):
        return {samplers: out}
    if out is None:
        inside = checkpoint.parent.name == "checkpoints"
        out = checkpoint.parents[1] / "evaluation" / checkpoint.name if inside else checkpoint / "evaluation"
        out = out / task_id.replace("/", "_") if task_id is not None else out
    several = [samplers] if isinstance(samplers, Sampler) else samplers
    return {sampler: out / sampler.folder for sampler in several}


def format_table(summaries: Sequence[Mapping[str, Any]]) -> str:
    """Success with interval and latency, one line per number of steps, for a terminal.

    Args:
        summaries: As in summary.json.
    """
    lines = ["steps    n  success  95 % interval   p50 ms   p95 ms   p99 ms"]
    if any(summary.get("sampler", "jump") != "jump" for summary in summaries):
        lines[0] += "  sampler"
    for summary in summaries:
        interval = f"{summary['ci_low']:.3f} - {summary['ci_high']:.3f}"
        times = "".join(f"{summary['latency_ms'][name]:9.3f}" for name in ("p50", "p95", "p99"))
        lines.append(f"{summary['num_steps']:5d}{summary['n']:5d}{summary['success_once']:9.3f}  {interval}{times}")
        if lines[0].endswith("sampler"):
            lines[-1] += f"  {summary['sampler']}, {summary['evaluations']} network evaluations"
    return "\n".join([*lines, *(remark for summary in summaries for remark in remarks(summary))])


def check_samplers(policy: FlowPolicy, samplers: Collection[Sampler]) -> None:
    """Fail before the first episode, not between two evaluations.

    Args:
        policy: The policy.
        samplers: All that it is to be evaluated with.

    Raises:
        ValueError: For one that the head does not support, and for none.
    """
    if not samplers:
        raise ValueError("wanted at least one number of steps or sampler, got none")
    for sampler in samplers:
        require_support(sampler, policy.head)


def success_so_far(found: Mapping[int, Mapping[str, Any]], seeds: Sequence[int]) -> str:
    """For a progress bar: of the seeds before the first one that has not ended. Of whatever has ended, the short
    episodes come first, and they are mostly successes.

    Args:
        found: seed -> line of results.jsonl.
        seeds: All of the evaluation, in order.
    """
    ended = [found[seed] for seed in takewhile(found.__contains__, seeds)]
    counted = [row["success_once"] for row in ended if not row.get("solved_at_reset")]
    return f"success {sum(counted) / len(counted):.2f}" if counted else ""


def _roll(
    policy: FlowPolicy,
    env: VectorEnv,
    seeds: range,
    sampler: Sampler,
    *,
    facts: Mapping[str, Any],
    journal: Journal,
    video: int,
    progress: bool,
) -> tuple[list[dict[str, Any]], float | None]:
    """Run what the journal lacks; all lines in seed order, and steps per second of what was run now (None: nothing)."""
    if not journal.complete:
        journal.begin()
    found = journal.rows()
    filmed = set(journal.unfilmed(seeds[:video]))
    todo = [seed for seed in seeds if seed not in found or seed in filmed]
    films = sum(seed in seeds[:video] for seed in todo)  # they come first
    steps, start = 0, time.monotonic()
    label = f"episodes, {sampler.words}"
    with tqdm(total=len(seeds), initial=len(seeds) - len(todo), desc=label, unit="ep", disable=not progress) as bar:

        def note(result: EpisodeResult) -> None:
            nonlocal steps
            if result.seed not in found:
                journal.add(row := episode_row({**facts, **sampler.facts}, result))
                found[result.seed] = row
            steps += result.episode_len
            bar.update()
            bar.set_postfix_str(success_so_far(found, seeds))

        try:
            run_episodes(
                policy,
                env,
                todo,
                sampler=sampler,
                video_dir=journal.videos,
                video_episodes=films,
                on_done=note,
            )
        finally:
            journal.drop_if_empty()
    speed = steps / (time.monotonic() - start) if todo else None
    return [found[seed] for seed in seeds], speed
