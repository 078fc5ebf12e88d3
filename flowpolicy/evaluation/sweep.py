"""`sweep`: every policy on every task with every sampler, in processes; a killed sweep goes on where it was.

A cell that fails (a checkpoint that does not load, a simulator that crashes) stops no other: it is named with its error
and tried again by the next call.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from tqdm import tqdm

from flowpolicy.evaluation.arms import Arm, Rollouts, asked_of, require_comparable
from flowpolicy.files import drop_cut_line, write_atomic
from flowpolicy.inference.latency import example_observation, measure_latency
from flowpolicy.json_files import append_rows, write_json
from flowpolicy.launch.local import Outcome, run_all
from flowpolicy.locks import only_writer
from flowpolicy.provenance import versions
from flowpolicy.report.sweep_page import sweep_markdown, sweep_page
from flowpolicy.results.arm_result import ArmResult
from flowpolicy.results.comparison import Comparison, Failure, conclude
from flowpolicy.results.episodes import facts_of, require_unchanged
from flowpolicy.results.folders import EPISODE, read_json, read_lines
from flowpolicy.results.seen_seeds import seen_text
from flowpolicy.samplers.base import supports

_CHUNK = 10  # episodes between two saves of a process


@final
@dataclass(frozen=True)
class Grid:
    """Which episodes, by whom.

    Args:
        seeds: First seeds of blocks of `episodes`; an arm and a block are a cell.
        episodes: Per arm.
        workers: Processes.
        part: This call does every parts-th cell, from the part-th on (1 is the first).
        parts: As `part`.
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
                raise ValueError(
                    f"seeds are the first ones of blocks of episodes={self.episodes}: those from {one} "
                    f"and {other} overlap; keep them that far apart"
                )

    def block(self, seed: int) -> range:
        """The seeds of the block that begins with `seed`.

        Args:
            seed: The block's first.
        """
        return range(seed, seed + self.episodes)


class Job(NamedTuple):
    """A few episodes of one arm, for one process.

    Args:
        arm: Whose episodes.
        seeds: Of the episodes.
    """

    arm: Arm
    seeds: list[int]


class Means(NamedTuple):
    """What every process computes with.

    Args:
        device: Where torch computes, e.g. "cpu" or "cuda".
        threads: CPU threads of torch.
        trusted_modules: Packages outside flowpolicy whose classes a checkpoint may name.
        edited: Take checkpoint files that are not as they were saved, see `Checkpoint.policy`.
    """

    device: str
    threads: int
    trusted_modules: tuple[str, ...]
    edited: bool

    def rollouts(self) -> Rollouts:
        """Without a policy yet."""
        return Rollouts(envs=1, device=self.device, trusted_modules=self.trusted_modules, edited=self.edited)


# What a policy or a simulator raises when it is broken; both may be somebody else's code.
_BROKEN = (
    ValueError,
    RuntimeError,
    OSError,
    ImportError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    MemoryError,
)


class Sweep(NamedTuple):
    """What was found: one comparison per task; names of arms whose head does not take their sampler; what failed.

    Args:
        comparisons: One per task.
        left_out: Arms whose head does not take that many steps.
        failed: What could not be run.
        waits: Whether other parts have not finished theirs.
    """

    comparisons: list[Comparison]
    left_out: list[str]
    failed: list[Failure]
    waits: bool


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
    failed: Sequence[Failure] = (),
    may_differ: Sequence[str] = (),
    allow_seen_seeds: bool = False,
) -> Sweep:
    """Run every missing episode, adding lines to out/results.jsonl; then write out/sweep.json, sweep.md and sweep.html.

    While other parts have not finished theirs there is no comparison yet: the last one writes the page.

    Args:
        arms: With tasks; on one task all under the same conditions.
        out: Folder for everything.
        grid: Which episodes, by whom.
        device: Where torch computes, e.g. "cpu" or "cuda".
        threads: CPU threads of torch.
        trusted_modules: Packages outside flowpolicy whose classes a checkpoint may name.
        edited: Take checkpoint files that are not as they were saved, see `Checkpoint.policy`.
        progress: Whether to show a progress bar.
        failed: What could not even become an arm.
        may_differ: See `require_comparable`.
        allow_seen_seeds: See `require_unseen`.

    Raises:
        ValueError: When `out` was begun with other policies or settings, or when not one arm could be run.
    """
    means, failed = Means(device, threads, tuple(trusted_modules), edited), list(failed)
    able, left_out, asked = _sorted_out(arms, means, read_json(out / "asked.json") or {}, failed)
    if not able:
        raise ValueError(failed[0].error if failed else "no head takes that sampler; add jump, or 1 to num_steps")
    for together in _by_task(able).values():
        if len(together) > 1:
            require_comparable(together, may_differ=may_differ)
    for arm in able:
        if (seen := _seen(arm, grid)) and not allow_seen_seeds:
            raise ValueError(
                f"{arm.name} has seen {seen_text(seen)} of the seeds; take others, or pass "
                "`allow_seen_seeds=True`, which marks the result"
            )
    asked = require_unchanged(out / "asked.json", asked)
    part = "" if grid.parts == 1 else f"_{grid.part}_of_{grid.parts}"
    with only_writer(out, f"results{part}.jsonl.lock"):
        write_json(out / "asked.json", asked)
        drop_cut_line(out / f"results{part}.jsonl")
        failed += _run_missing(able, grid, means, out / f"results{part}.jsonl", progress=progress)
        write_json(out / f"failed{part}.json", {"failed": [one._asdict() for one in failed]})
        results = _results(able, grid, _finished(out))
        whole = {i for i, rows in results.items() if len(rows) == len(grid.seeds) * grid.episodes}
        told = {(one.name, one.task_id): one for one in [*_failures(out), *failed]}
        missing = [_place(arm) for i, arm in enumerate(able) if i not in whole]
        if any(place not in told for place in missing):
            return Sweep([], left_out, failed, waits=True)
        failed = list(dict.fromkeys([*failed, *(told[place] for place in missing)]))
        if not whole:
            raise ValueError(failed[0].error)
        found = {id(able[i]): results[i] for i in whole}
        comparisons = _conclude([able[i] for i in sorted(whole)], found, means, out, failed, grid)
    return Sweep(comparisons, left_out, failed, waits=False)


def _sorted_out(
    arms: Sequence[Arm], means: Means, before: Mapping[str, Any], failed: list[Failure]
) -> tuple[list[Arm], list[str], dict[str, Any]]:
    """Arms that can run; names of those whose head does not take their sampler; what decides their outcomes.

    before: what an earlier call was asked, which found that they can.   failed: gets those whose policy does not load.
    """
    able, left_out, asked = [], [], {}
    with closing(means.rollouts()) as rollouts:
        for arm in arms:
            key = _key(arm.facts())
            try:
                own = asked_of(arm)
                if before.get(key) != own:
                    rollouts.keep(arm)  # only one policy stays in memory
                    if not supports(rollouts.policy(arm).head, arm.drawn):
                        left_out.append(arm.name)
                        continue
            except _BROKEN as error:
                failed.append(_failure(arm, error))
                continue
            able.append(arm)
            asked[key] = own
    return able, left_out, asked


def _run_missing(arms: Sequence[Arm], grid: Grid, means: Means, file: Path, *, progress: bool) -> list[Failure]:
    """Add the lines of what is missing to `file`; the arms that failed, whose further episodes are not tried."""
    jobs = _jobs(arms, grid, _finished(file.parent))
    failed: dict[tuple[str, str], Failure] = {}
    total = sum(len(job.seeds) for job in jobs)
    with tqdm(total=total, desc="episodes", unit="ep", disable=not progress or not total) as bar:
        for job, rows, error in _run(jobs, means, grid.workers, skip=lambda job: _place(job.arm) in failed):
            append_rows(file, rows or [])
            bar.update(len(job.seeds))
            if error:
                failed.setdefault(_place(job.arm), Failure(*_place(job.arm), error))
    return list(failed.values())


def _failure(arm: Arm, error: BaseException) -> Failure:
    return Failure(*_place(arm), f"{' '.join(str(error).split()) or type(error).__name__}")


def _failures(out: Path) -> list[Failure]:
    """Of all parts' last calls."""
    found = [read_json(file) or {} for file in sorted(out.glob("failed*.json"))]
    return [Failure(**one) for content in found for one in content["failed"]]


def _place(arm: Arm) -> tuple[str, str]:
    """An arm's name, and the task that it has it on."""
    assert arm.task is not None
    return arm.name, arm.task.id


def _by_task(arms: Sequence[Arm]) -> dict[tuple[str, str], list[Arm]]:
    found: dict[tuple[str, str], list[Arm]] = defaultdict(list)
    for arm in arms:
        assert arm.task is not None
        found[arm.task.name, arm.task.id].append(arm)
    return found


def _key(facts: Mapping[str, Any]) -> str:
    """An arm, as in the lines of results.jsonl."""
    return " · ".join(map(str, facts_of(facts).values()))


def _finished(out: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """Arm -> seed -> line, of all parts."""
    found: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for file in sorted(out.glob("results*.jsonl")):
        for row in read_lines(file, EPISODE):
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


def _run(
    jobs: Sequence[Job], means: Means, workers: int, *, skip: Callable[[Job], bool]
) -> Iterator[Outcome[Job, list[dict[str, Any]]]]:
    """The lines of each finished job, in any order."""
    if workers > 1 and len(jobs) > 1:
        yield from run_all(_worker_roll, jobs, workers=workers, skip=skip, start=_start_worker, arguments=(means,))
        return
    with closing(means.rollouts()) as rollouts:
        for job in jobs:
            if skip(job):
                continue
            try:
                yield Outcome(job, _roll(job, rollouts), "")
            except _BROKEN as error:
                yield Outcome(job, None, _failure(job.arm, error).error)


def _roll(job: Job, rollouts: Rollouts) -> list[dict[str, Any]]:
    try:
        rollouts.keep(job.arm)
        return rollouts.roll(job.arm, job.seeds)
    except _BROKEN:
        with suppress(*_BROKEN):
            rollouts.keep(None)  # a simulator that failed is not used again
        raise


_rollouts: Rollouts | None = None  # one per worker process


def _start_worker(means: Means) -> None:
    global _rollouts
    torch.set_num_threads(means.threads)
    _rollouts = means.rollouts()


def _worker_roll(job: Job) -> list[dict[str, Any]]:
    assert _rollouts is not None
    return _roll(job, _rollouts)


def _conclude(
    arms: Sequence[Arm],
    rows: Mapping[int, list[dict[str, Any]]],
    means: Means,
    out: Path,
    failed: Sequence[Failure],
    grid: Grid,
) -> list[Comparison]:
    """One comparison per task, sweep.json, sweep.md and sweep.html.   rows: id of an arm -> its lines."""
    summaries = _summaries(arms, means, out / "latency.jsonl")
    summaries = [one | {"seen_seeds": _seen(arm, grid)} for one, arm in zip(summaries, arms, strict=True)]
    results = {id(arm): ArmResult(arm.name, rows[id(arm)], summaries[i]) for i, arm in enumerate(arms)}
    comparisons = [conclude([results[id(arm)] for arm in together]) for together in _by_task(arms).values()]
    content = {"tasks": [one.to_dict() for one in comparisons], "failed": [one._asdict() for one in failed]}
    write_json(out / "sweep.json", content | {"versions": versions()})
    write_atomic(out / "sweep.md", sweep_markdown(comparisons, failed=failed))
    write_atomic(out / "sweep.html", sweep_page(comparisons, failed=failed))
    return comparisons


def _seen(arm: Arm, grid: Grid) -> dict[str, int]:
    """How many of the grid's seeds the arm's policy has seen, by what."""
    found: Counter[str] = Counter()
    for first in grid.seeds:
        found.update(arm.seen(grid.block(first)))
    return dict(found)


def _summaries(arms: Sequence[Arm], means: Means, file: Path) -> list[dict[str, Any]]:
    """Latency and size of every arm, measured where `file` does not hold them: now, when no other process computes."""
    drop_cut_line(file)
    found = {_drawn(line): line for line in read_lines(file)}
    with closing(means.rollouts()) as rollouts:
        for arm in arms:
            if (key := _drawn(arm.facts())) in found:
                continue
            rollouts.keep(arm)
            policy = rollouts.policy(arm)
            device = policy.device
            report = measure_latency(policy, example_observation(policy, device), sampler=arm.drawn)
            found[key] = {
                "checkpoint": arm.place,
                **arm.drawn.facts,
                "device": report.device,
                "latency_ms": {name: report.predict[name] for name in ("p50", "p95", "p99")},
                "policy_params": policy.num_parameters,
            }
            append_rows(file, [found[key]])
    return [found[_drawn(arm.facts())] for arm in arms]


def _drawn(facts: Mapping[str, Any]) -> tuple[Any, ...]:
    """What decides how long a prediction takes, of a line or an arm."""
    return facts["checkpoint"], facts["num_steps"], facts.get("sampler", "jump")
