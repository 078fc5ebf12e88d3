"""`compare`: policies rolled out on common seeds until it is clear which is better, or until the episodes are spent."""

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from tqdm import tqdm

from flowpolicy.evaluation.arms import Arm, Rollouts, asked_of, require_comparable
from flowpolicy.files import drop_cut_line, write_atomic
from flowpolicy.json_files import append_rows, read_object, write_json
from flowpolicy.locks import only_writer
from flowpolicy.report.compare_page import comparison_page
from flowpolicy.results.arm_result import ArmResult
from flowpolicy.results.comparison import Comparison, conclude
from flowpolicy.results.episodes import require_unchanged
from flowpolicy.results.seen_seeds import START_SEED, require_unseen
from flowpolicy.statistics.pairs import Requirement, check_requirement, compare_pairs

LOOK_EVERY = 20  # episodes between two looks of a sequential comparison; not of `envs`, on which no result may depend
_PER_ENV = 10  # episodes per simulator between two saves, as in `evaluate`


@final
@dataclass(frozen=True)
class Plan:
    """How many episodes, and what is wanted of them.

    Args:
        episodes: Of each arm, on seeds start_seed, start_seed + 1, ...; when sequential, before the first look.
        start_seed: Of the first episode.
        envs: Parallel simulators.
        sequential: Look again and again, drop arms that are decided, stop when every pair is or at max_episodes.
        max_episodes: Per arm, where more are added until the pairs are told apart.
        alpha: Chance of calling any equal pair different.
        require: See `judge`; about the first arm.
        margin: As `require`.
        may_differ: See `require_comparable`.
        allow_seen_seeds: See `require_unseen`.
    """

    episodes: int = 100
    start_seed: int = START_SEED
    envs: int = 2
    sequential: bool = False
    max_episodes: int = 500
    alpha: float = 0.05
    require: Requirement | None = None
    margin: float = 0.05
    may_differ: Sequence[str] = ()
    allow_seen_seeds: bool = False

    def __post_init__(self) -> None:
        for name, least in {"episodes": 1, "envs": 1, "max_episodes": 1, "start_seed": 0}.items():
            if not isinstance(value := getattr(self, name), int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
        if not 0.0 < self.alpha < 1.0:
            raise ValueError(f"alpha must lie in (0, 1), got {self.alpha}; 0.05 is 5 %")
        if self.sequential and self.max_episodes < self.episodes:
            raise ValueError(f"max_episodes must be at least episodes={self.episodes}, got {self.max_episodes}")
        if self.require is not None:
            check_requirement(self.require, margin=self.margin)
        if self.sequential and self.require == "no_worse":
            raise ValueError(
                "`require='no_worse'` goes by intervals, for a number of episodes fixed in advance; "
                "use `sequential=False`, or `require='better'` or not_beaten"
            )

    def looks(self) -> Iterator[int]:
        """Numbers of episodes at which to save, and when sequential to look, in order; the last one is the most."""
        step = LOOK_EVERY if self.sequential else _PER_ENV * self.envs
        yield from range(step, self.episodes, step)
        yield self.episodes
        if self.sequential:
            yield from range(self.episodes + step, self.max_episodes, step)
            if self.max_episodes > self.episodes:
                yield self.max_episodes


def compare(
    arms: Sequence[Arm],
    *,
    out: Path,
    plan: Plan,
    device: torch.device | str = "cpu",
    trusted_modules: Sequence[str] = (),
    edited: bool = False,
    progress: bool = True,
) -> Comparison:
    """Roll out what is missing, test every pair, write out/compare.json and out/compare.html.

    After a kill, call it again: finished episodes are kept. More episodes or arms may be asked for later.

    Args:
        arms: Those with a task are rolled out, each into its own folder; recorded ones are taken as they are.
        out: Folder for everything.
        plan: How many episodes, and what is wanted of them.
        device: Where torch computes, e.g. "cpu" or "cuda".
        trusted_modules: Packages outside flowpolicy whose classes a checkpoint may name.
        edited: Take checkpoint files that are not as they were saved, see `Checkpoint.policy`.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: When the arms cannot be compared, or `out` was begun with other policies or conditions.
    """
    require_comparable(arms, may_differ=plan.may_differ)
    seeds = range(plan.start_seed, plan.start_seed + [*plan.looks()][-1])
    for arm in arms:
        if arm.task is not None and arm.checkpoint is not None:
            require_unseen(
                arm.checkpoint.record, (arm.task.name, arm.task.id), seeds, name=arm.name, allow=plan.allow_seen_seeds
            )
    if plan.sequential and (recorded := [arm.name for arm in arms if arm.task is None]):
        raise ValueError(f"`sequential=True` rolls out as it goes, {recorded[0]} is recorded; pass a checkpoint")
    with (
        only_writer(out),
        closing(Rollouts(envs=plan.envs, device=device, trusted_modules=trusted_modules, edited=edited)) as rollouts,
    ):
        asked = require_unchanged(out / "asked.json", _asked(arms, plan, out))
        rolled = [arm for arm in arms if arm.task is not None]
        if any(len(arm.rows()) < plan.episodes for arm in rolled):
            rollouts.open(rolled)  # what does not fit is said before anything is written
        write_json(out / "asked.json", asked)
        rows = _roll(arms, rollouts, plan, progress=progress)
        results = [ArmResult(arm.name, rows[arm.name], rollouts.describe(arm, rows[arm.name])) for arm in arms]
        looks = _looks(out / "compare.json", results, plan)
        comparison = conclude(
            results, alpha=plan.alpha, sequential=plan.sequential, require=plan.require, margin=plan.margin, looks=looks
        )
        write_json(out / "compare.json", comparison.to_dict())
        write_atomic(out / "compare.html", comparison_page(comparison))
    return comparison


def _asked(arms: Sequence[Arm], plan: Plan, out: Path) -> dict[str, Any]:
    """What decides the outcomes, by folder; a rerun must ask for the same."""
    rolled = [arm for arm in arms if arm.task is not None]
    return ({"start_seed": plan.start_seed} if rolled else {}) | {
        os.path.relpath(arm.folder, out): asked_of(arm) for arm in rolled
    }


def _roll(arms: Sequence[Arm], rollouts: Rollouts, plan: Plan, *, progress: bool) -> dict[str, list[dict[str, Any]]]:
    """Name -> the lines that count, in seed order; recorded arms: all of theirs."""
    found = {arm.name: arm.rows() for arm in arms}
    active = [arm for arm in arms if arm.task is not None]
    for arm in active:
        drop_cut_line(arm.folder / "results.jsonl")
    counted = {arm.name: sorted(found[arm.name]) for arm in arms if arm.task is None}
    looks = list(plan.looks())
    last = range(plan.start_seed, plan.start_seed + looks[-1])
    there = sum(seed in last for arm in active for seed in found[arm.name])
    with tqdm(
        total=len(last) * len(active), initial=there, desc="episodes", unit="ep", disable=not progress or not active
    ) as bar:
        for upto in looks if active else []:
            seeds = range(plan.start_seed, plan.start_seed + upto)
            for arm in active:
                missing = [seed for seed in seeds if seed not in found[arm.name]]
                rows = rollouts.roll(arm, missing) if missing else []
                append_rows(arm.folder / "results.jsonl", rows)
                found[arm.name] |= {row["seed"]: row for row in rows}
                bar.update(len(rows))
                counted[arm.name] = list(seeds)
            if plan.sequential and upto >= plan.episodes:
                outcomes = {n: {s: found[n][s]["success_once"] for s in counted[n]} for n in found}
                pairs = compare_pairs(outcomes, alpha=plan.alpha, sequential=True)
                open_ = {name for pair in pairs if not pair.winner for name in (pair.name_a, pair.name_b)}
                active = [arm for arm in active if arm.name in open_]
                bar.set_postfix_str(f"{sum(not pair.winner for pair in pairs)} of {len(pairs)} pairs open")
    return {name: [found[name][seed] for seed in counted[name]] for name in found}


def _looks(before: Path, results: Sequence[ArmResult], plan: Plan) -> list[int]:
    """The numbers of episodes tested so far; the same number again is the same look."""
    if plan.sequential:
        return []
    earlier = read_object(before, {"looks": list})["looks"] if before.exists() else []
    return sorted({*earlier, max(result.n for result in results)})
