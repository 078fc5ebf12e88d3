"""`evaluate`: seeded rollouts of one checkpoint on one task, one evaluation folder per number of steps."""

import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from flowpolicy.checkpoint import load_policy, resolve_checkpoint
from flowpolicy.deploy.latency import LatencyReport, measure_latency
from flowpolicy.embodiment import require_match
from flowpolicy.evaluation.chunks import Demonstration, load_demonstration, record_episode, write_chunks
from flowpolicy.evaluation.rows import FACTS, append_rows, episode_row
from flowpolicy.evaluation.statistics import wilson_interval
from flowpolicy.policy import FlowPolicy
from flowpolicy.rollout.episodes import run_episodes
from flowpolicy.rollout.vector_env import VectorEnv, make_vector_env
from flowpolicy.rollout.video import require_video
from flowpolicy.tracking import versions, write_json

START_SEED = 100_000  # reported seeds; training's own evaluations start at 50000, collection at 0


class Task(NamedTuple):
    """What to evaluate on: family name, id, and how to make one environment (takes `render=`; must pickle)."""

    name: str
    id: str
    make_env: Callable[..., Any]


class Evaluation(NamedTuple):
    """What was found at one number of steps, as in summary.json, and the folder it was written to."""

    summary: dict[str, Any]
    out: Path


def evaluate(
    checkpoint: Path,
    task: Task,
    *,
    outs: Mapping[int, Path],
    episodes: int = 100,
    start_seed: int = START_SEED,
    envs: int = 2,
    video: int = 0,
    device: torch.device | str = "cpu",
    demonstrations: Path | None = None,
    trusted_modules: Sequence[str] = (),
    edited: bool = False,
    progress: bool = True,
) -> list[Evaluation]:
    """Roll out seeds start_seed .. start_seed + episodes - 1 at every number of steps in `outs`.

    checkpoint: a run folder or a checkpoint folder.   outs: number of network evaluations per chunk -> folder to write.
    envs: parallel simulators; the results do not depend on it.   video: record the first so many episodes.
    demonstrations: store whose first episode the chunk picture shows too.   trusted_modules,
    edited: as in `load_policy`.
    Each folder gets results.jsonl, summary.json, latency.json (batch 1, after warm-up), chunks.json, and videos/ when
    asked for. Raises ValueError when checkpoint and task disagree on the embodiment, or a count is out of range.
    """
    counts = {"episodes": (episodes, 1), "envs": (envs, 1), "video": (video, 0), "start_seed": (start_seed, 0)}
    for name, (value, least) in counts.items():
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    if video:
        require_video()
    folder = resolve_checkpoint(checkpoint)
    policy = load_policy(folder, device=device, trusted_modules=trusted_modules, edited=edited)
    check_steps(policy, outs)
    demonstration = load_demonstration(demonstrations, policy) if demonstrations else None
    seeds = range(start_seed, start_seed + episodes)
    env = make_vector_env(partial(task.make_env, render=video > 0), min(envs, episodes))
    found = []
    try:
        require_match(policy.embodiment, env.embodiment, what="checkpoint and task", simulated=True)
        for num_steps, out in outs.items():
            facts = {"task": task.name, "task_id": task.id, "checkpoint": str(folder), "num_steps": num_steps}
            out = out.absolute()
            rows, seconds = _roll(policy, env, seeds, facts, out=out, video=video, progress=progress)
            speed = sum(row["episode_len"] for row in rows) / seconds
            summary = describe(policy, env, rows, out=out, env_steps_per_s=speed, demonstration=demonstration)
            found.append(Evaluation(summary, out))
    finally:
        env.close()
    return found


def describe(policy: FlowPolicy, env: VectorEnv, rows: Sequence[Mapping[str, Any]], *, out: Path,
             env_steps_per_s: float | None = None, demonstration: Demonstration | None = None
             ) -> dict[str, Any]:  # fmt: skip
    """Write latency.json (batch 1, after warm-up), chunks.json and summary.json of the episodes `rows`.

    rows: lines of results.jsonl, of one policy at one number of steps.   env: takes the first of these episodes again.
    env_steps_per_s: None is the speed of that episode. Returns the summary.
    """
    num_steps, start_seed = rows[0]["num_steps"], rows[0]["seed"]
    start = time.monotonic()
    record = record_episode(policy, env, seed=start_seed, num_steps=num_steps)
    speed = env_steps_per_s or record.episode_len / (time.monotonic() - start)
    latency = measure_latency(policy, record.seen[0], num_steps=num_steps)
    write_json(out / "latency.json", latency.to_dict())
    write_chunks(out / "chunks.json", policy, record, num_steps=num_steps, demonstration=demonstration)
    summary = {name: rows[0][name] for name in FACTS} | summarize(rows, latency, env_steps_per_s=speed)
    summary |= {"start_seed": start_seed, "device": latency.device, "versions": versions()}
    summary["policy_params"] = policy.num_parameters
    write_json(out / "summary.json", summary)
    return summary


def summarize(rows: Sequence[Mapping[str, Any]], latency: LatencyReport, *, env_steps_per_s: float) -> dict[str, Any]:
    """The measured part of summary.json. env_steps_per_s: of all the rollouts, policy included.

    success_outcomes: where the environment has words for ways to succeed ("left", "right"), how often each was taken.
    """
    n, once = len(rows), sum(row["success_once"] for row in rows)
    low, high = wilson_interval(once, n)
    ways = Counter(row["outcome"] for row in rows if row.get("outcome") and row["success_once"])
    return {
        "n": n,
        "success_once": once / n,
        "ci_low": low,
        "ci_high": high,
        "success_at_end": sum(row["success_at_end"] for row in rows) / n,
        "return_mean": sum(row["return"] for row in rows) / n,
        "latency_ms": {name: latency.predict[name] for name in ("p50", "p95", "p99")},
        "env_steps_per_s": env_steps_per_s,
    } | ({"success_outcomes": dict(sorted(ways.items()))} if ways else {})


def evaluation_folders(
    checkpoint: Path, num_steps: int | Sequence[int], *, out: Path | None, task_id: str | None = None
) -> dict[int, Path]:
    """Number of steps -> folder: `out` itself for a single number, out/steps_<K> for several.

    out: None is RUN_DIR/evaluation/<checkpoint>, always with steps_<K>, so that no evaluation overwrites another's.
    task_id: a folder more for a task that is not the checkpoint's own; None is its own. Without effect on a given out.
    checkpoint: the resolved folder, RUN_DIR/checkpoints/<step>.
    """
    several = num_steps if isinstance(num_steps, Sequence) else [num_steps]
    if out is not None and several is not num_steps:
        return {several[0]: out}
    if out is None:
        inside = checkpoint.parent.name == "checkpoints"
        out = checkpoint.parents[1] / "evaluation" / checkpoint.name if inside else checkpoint / "evaluation"
        out = out / task_id.replace("/", "_") if task_id is not None else out
    return {k: out / f"steps_{k}" for k in several}


def format_table(summaries: Sequence[Mapping[str, Any]]) -> str:
    """Success with interval and latency, one line per number of steps, for a terminal."""
    lines = ["steps    n  success  95 % interval   p50 ms   p95 ms   p99 ms"]
    for summary in summaries:
        interval = f"{summary['ci_low']:.3f} - {summary['ci_high']:.3f}"
        times = "".join(f"{summary['latency_ms'][name]:9.3f}" for name in ("p50", "p95", "p99"))
        lines.append(f"{summary['num_steps']:5d}{summary['n']:5d}{summary['success_once']:9.3f}  {interval}{times}")
    return "\n".join(lines)


def check_steps(policy: FlowPolicy, num_steps: Collection[int]) -> None:
    """Fail before the first episode, not between two evaluations."""
    most = policy.head.max_steps
    bad = [k for k in num_steps if not isinstance(k, int) or k < 1 or (most is not None and k > most)]
    if bad or not num_steps:
        limit = f"1 to {most}" if most is not None else "1 or more"
        raise ValueError(f"num_steps must be {limit} for {type(policy.head).__name__}, got {bad or 'none'}")


def _roll(
    policy: FlowPolicy,
    env: VectorEnv,
    seeds: Sequence[int],
    facts: dict[str, Any],
    *,
    out: Path,
    video: int,
    progress: bool,
) -> tuple[list[dict[str, Any]], float]:
    """Run all seeds, adding each finished group to results.jsonl.part; renamed when the last one is in.

    What a killed evaluation had finished is still there to read; an error before the first group leaves no file.
    """
    group = 10 * env.num_envs  # a group ends with its slowest episode: ten per simulator keep the others' wait small
    videos = out / "videos" if video else None
    for old in [*out.glob("videos/*.mp4"), *out.glob("results.jsonl.part")]:
        old.unlink()  # an earlier evaluation's recordings would pass for this one's
    rows: list[dict[str, Any]] = []
    start = time.monotonic()
    label = f"episodes, {facts['num_steps']} step{'' if facts['num_steps'] == 1 else 's'}"
    with tqdm(total=len(seeds), desc=label, unit="ep", disable=not progress) as bar:
        for first in range(0, len(seeds), group):
            done = run_episodes(
                policy,
                env,
                seeds[first : first + group],
                num_steps=facts["num_steps"],
                video_dir=videos,
                video_episodes=max(0, video - first),
            )
            append_rows(out / "results.jsonl.part", [episode_row(facts, result) for result in done])
            rows += [episode_row(facts, result) for result in done]
            bar.update(len(done))
            bar.set_postfix_str(f"success {sum(row['success_once'] for row in rows) / len(rows):.2f}")
    seconds = time.monotonic() - start
    os.replace(out / "results.jsonl.part", out / "results.jsonl")
    return rows, seconds
