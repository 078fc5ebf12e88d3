"""`sweep`: every policy on every task at every number of steps, in processes; a killed sweep goes on where it was."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from tqdm import tqdm

from flowpolicy.deploy.latency import example_observation, measure_latency
from flowpolicy.evaluation.arms import Arm, ArmResult, Rollouts, asked_of, require_comparable
from flowpolicy.evaluation.comparison import Comparison, conclude
from flowpolicy.evaluation.folders import read_lines
from flowpolicy.evaluation.processes import run_all
from flowpolicy.evaluation.rows import FACTS, append_rows, require_unchanged
from flowpolicy.evaluation.sweep_page import sweep_markdown, sweep_page
from flowpolicy.files import drop_cut_line, write_atomic
from flowpolicy.locks import only_writer
from flowpolicy.tracking import versions, write_json

_CHUNK = 10  # episodes between two saves of a process


@final
@dataclass(frozen=True)
class Grid:
    """Which episodes, by whom.

    seeds: first seeds of blocks of `episodes`; an arm and a block are a cell.   workers: processes.
    part, parts: this call does every parts-th cell, from the part-th on (1 is the first).
    """

    seeds: Sequence[int]
    episodes: int = 50
    workers: int = 1
    part: int = 1
    parts: int = 1

    def __post_init__(self) -> None:
        numbers = {"episodes": self.episodes, "workers": self.workers}
        if bad := [name for name, value in numbers.items() if not isinstance(value, int) or value < 1]:
            raise ValueError(f"{bad[0]} must be a whole number of at least 1, got {numbers[bad[0]]!r}")
        if not self.seeds or not all(isinstance(seed, int) and seed >= 0 for seed in self.seeds):
            raise ValueError(f"seeds must be whole numbers of at least 0, got {list(self.seeds)}")
        if not 1 <= self.part <= self.parts:
            raise ValueError(f"part must be I/N with 1 <= I <= N, got {self.part}/{self.parts}")
        ordered = sorted(self.seeds)
        for one, other in zip(ordered, ordered[1:], strict=False):
            if other - one < self.episodes:
                raise ValueError(f"seeds are the first ones of blocks of episodes={self.episodes}: those from {one} "
                                 f"and {other} overlap; keep them that far apart")  # fmt: skip

    def block(self, seed: int) -> range:
        """The seeds of the block that begins with `seed`."""
        return range(seed, seed + self.episodes)


class Job(NamedTuple):
    """A few episodes of one arm, for one process."""

    arm: Arm
    seeds: list[int]


class Means(NamedTuple):
    """What every process computes with."""

    device: str
    threads: int
    trusted_modules: tuple[str, ...]
    edited: bool

    def rollouts(self) -> Rollouts:
        """Without a policy yet."""
        return Rollouts(envs=1, device=self.device, trusted_modules=self.trusted_modules, edited=self.edited)


class Sweep(NamedTuple):
    """What was found: one comparison per task; and the names of arms whose head does not take that many steps."""

    comparisons: list[Comparison]
    left_out: list[str]


def sweep(
    arms: Sequence[Arm],
    *,
    out: Path,
    grid: Grid,
    device: str = "cpu",
    threads: int = 1,
    trusted_modules: Sequence[str] = (),
    edited: bool = False,
    progress: bool = True,
) -> Sweep:
    """Run every missing episode, adding lines to out/results.jsonl; then write out/sweep.json, sweep.md and sweep.html.

    arms: with tasks; on one task all under the same conditions.
    While other parts have not finished theirs there is no comparison yet: the last one writes the page.
    Raises ValueError when `out` was begun with other policies or settings, RuntimeError when a process died.
    """
    means = Means(device, threads, tuple(trusted_modules), edited)
    with closing(means.rollouts()) as rollouts:
        able = [_takes(rollouts, arm) for arm in arms]
    left_out = [arm.name for arm, takes in zip(arms, able, strict=True) if not takes]
    arms = [arm for arm, takes in zip(arms, able, strict=True) if takes]
    if not arms:
        raise ValueError("no head takes that many steps; add 1 to num_steps")
    for together in _by_task(arms).values():
        if len(together) > 1:
            require_comparable(together)
    asked = require_unchanged(out / "asked.json", {_key(arm.facts()): asked_of(arm) for arm in arms})
    name = "results.jsonl" if grid.parts == 1 else f"results_{grid.part}_of_{grid.parts}.jsonl"
    with only_writer(out, f"{name}.lock"):
        write_json(out / "asked.json", asked)
        drop_cut_line(out / name)
        jobs = _jobs(arms, grid, _finished(out))
        total = sum(len(job.seeds) for job in jobs)
        with tqdm(total=total, desc="episodes", unit="ep", disable=not progress or not total) as bar:
            for rows in _run(jobs, means, grid.workers):
                append_rows(out / name, rows)
                bar.update(len(rows))
        results = _results(arms, grid, _finished(out))
        if sum(len(rows) for rows in results.values()) < len(arms) * len(grid.seeds) * grid.episodes:
            return Sweep([], left_out)
        return Sweep(_conclude(arms, results, means, out), left_out)


def _takes(rollouts: Rollouts, arm: Arm) -> bool:
    """Whether the arm's head takes that many steps; only one policy stays in memory."""
    rollouts.keep(arm)
    most = rollouts.policy(arm).head.max_steps
    if arm.num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {arm.num_steps}")
    return most is None or arm.num_steps <= most


def _by_task(arms: Sequence[Arm]) -> dict[tuple[str, str], list[Arm]]:
    found: dict[tuple[str, str], list[Arm]] = defaultdict(list)
    for arm in arms:
        assert arm.task is not None
        found[arm.task.name, arm.task.id].append(arm)
    return found


def _key(facts: Mapping[str, Any]) -> str:
    """An arm, as in the lines of results.jsonl."""
    return " · ".join(str(facts[name]) for name in FACTS)


def _finished(out: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """Arm -> seed -> line, of all parts."""
    found: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for file in sorted(out.glob("results*.jsonl")):
        for row in read_lines(file):
            found[_key(row)][row["seed"]] = row
    return found


def _jobs(arms: Sequence[Arm], grid: Grid, done: Mapping[str, Mapping[int, Any]]) -> list[Job]:
    """What is missing of this part, cell by cell, so that a process seldom changes its policy or simulator."""
    cells = [(arm, seed) for arm in arms for seed in grid.seeds]
    jobs = []
    for arm, first in cells[grid.part - 1 :: grid.parts]:
        there = done.get(_key(arm.facts()), {})
        missing = [seed for seed in grid.block(first) if seed not in there]
        jobs += [Job(arm, missing[i : i + _CHUNK]) for i in range(0, len(missing), _CHUNK)]
    return jobs


def _results(arms: Sequence[Arm], grid: Grid, done: Mapping[str, Mapping[int, Any]]) -> dict[int, list[dict[str, Any]]]:
    """Index of the arm -> its lines in seed order, the blocks asked for only."""
    seeds = sorted(seed for first in grid.seeds for seed in grid.block(first))
    found = [done.get(_key(arm.facts()), {}) for arm in arms]
    return {i: [rows[seed] for seed in seeds if seed in rows] for i, rows in enumerate(found)}


def _run(jobs: Sequence[Job], means: Means, workers: int) -> Iterator[list[dict[str, Any]]]:
    """The lines of each finished job, in any order."""
    if workers == 1 or len(jobs) < 2:
        with closing(means.rollouts()) as rollouts:
            for job in jobs:
                yield _roll(job, rollouts)
        return
    advice = "run it again, with workers=1 to see its own message"
    yield from run_all(_worker_roll, jobs, workers=workers, advice=advice, start=_start_worker, arguments=(means,))


def _roll(job: Job, rollouts: Rollouts) -> list[dict[str, Any]]:
    rollouts.keep(job.arm)
    return rollouts.roll(job.arm, job.seeds)


_rollouts: Rollouts | None = None  # one per worker process


def _start_worker(means: Means) -> None:
    global _rollouts
    torch.set_num_threads(means.threads)
    _rollouts = means.rollouts()


def _worker_roll(job: Job) -> list[dict[str, Any]]:
    assert _rollouts is not None
    return _roll(job, _rollouts)


def _conclude(arms: Sequence[Arm], rows: Mapping[int, list[dict[str, Any]]], means: Means, out: Path
              ) -> list[Comparison]:  # fmt: skip
    """One comparison per task, sweep.json, sweep.md and sweep.html."""
    summaries = _summaries(arms, means, out / "latency.jsonl")
    results = {id(arm): ArmResult(arm.name, rows[i], summaries[i]) for i, arm in enumerate(arms)}
    comparisons = [conclude([results[id(arm)] for arm in together]) for together in _by_task(arms).values()]
    write_json(out / "sweep.json", {"tasks": [one.to_dict() for one in comparisons], "versions": versions()})
    write_atomic(out / "sweep.md", sweep_markdown(comparisons))
    write_atomic(out / "sweep.html", sweep_page(comparisons))
    return comparisons


def _summaries(arms: Sequence[Arm], means: Means, file: Path) -> list[dict[str, Any]]:
    """Latency and size of every arm, measured where `file` does not hold them: now, when no other process computes."""
    drop_cut_line(file)
    found = {(line["checkpoint"], line["num_steps"]): line for line in read_lines(file)}
    with closing(means.rollouts()) as rollouts:
        for arm in arms:
            if (key := (str(arm.checkpoint), arm.num_steps)) in found:
                continue
            rollouts.keep(arm)
            policy = rollouts.policy(arm)
            device = next(policy.parameters()).device
            report = measure_latency(policy, example_observation(policy, device), num_steps=arm.num_steps)
            found[key] = {"checkpoint": key[0], "num_steps": key[1], "device": report.device,
                          "latency_ms": {name: report.predict[name] for name in ("p50", "p95", "p99")},
                          "policy_params": policy.num_parameters}  # fmt: skip
            append_rows(file, [found[key]])
    return [found[str(arm.checkpoint), arm.num_steps] for arm in arms]
