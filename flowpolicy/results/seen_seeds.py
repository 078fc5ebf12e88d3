"""Seeds that a policy has seen: those of its demonstrations, and those on which its checkpoint was chosen.

A success rate on them is not one on unseen episodes. Checkpoints record both as ranges, so that no store is needed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from flowpolicy.seeding import seed_ranges

START_SEED = 100_000  # reported seeds; training's own evaluations start at 50000, collection at 0
RL_SEEDS = 1_000_000  # simulators that train draw theirs from here on, see `rollout.vector_env.episode_seed`
_WORDS = {
    "demonstrations": "of its demonstrations",
    "selection": "that chose the checkpoint",
    "training": "that reinforcement learning draws from",
}


def seen_seeds(recorded: Mapping[str, Any], task: tuple[str, str], seeds: range) -> dict[str, int]:
    """How many of `seeds` the policy has seen, by what: "demonstrations", "selection", "training"; {} for none.

    Args:
        recorded: config.json of its checkpoint; what an older one does not record counts as unseen.
        task: Family and id of the evaluation; on another task than the policy's own the same seeds are other episodes.
            A policy that does not say its task is taken to be of this one.
        seeds: Of an evaluation.
    """
    own = recorded.get("task")
    if own and (own.get("name"), own.get("id")) != task:
        return {}
    known = {
        "demonstrations": (recorded.get("dataset") or {}).get("seeds", []),
        "selection": recorded.get("selection_seeds", []),
        "training": [[RL_SEEDS, 2**31]] if "finetune" in recorded else [],
    }
    found = {what: sum(len(_common(seeds, first, last)) for first, last in ranges) for what, ranges in known.items()}
    return {what: count for what, count in found.items() if count}


def require_unseen(
    recorded: Mapping[str, Any], task: tuple[str, str], seeds: range, *, allow: bool, name: str = "the policy"
) -> dict[str, int]:
    """`seen_seeds`. Raises ValueError where there are some, unless they are allowed: then the result is marked.

    Args:
        recorded: config.json of the checkpoint.
        task: Family and id of the evaluation.
        seeds: Of the evaluation.
        allow: Go on where some have been seen.
        name: Of the policy, for the message.
    """
    found = seen_seeds(recorded, task, seeds)
    if found and not allow:
        raise ValueError(
            f"{name} has seen {seen_text(found)} of the {len(seeds)} seeds from {seeds.start}; take "
            f"others (`start_seed={START_SEED}`), or pass `allow_seen_seeds=True`, which marks the result"
        )
    return found


def seen_text(found: Mapping[str, int]) -> str:
    """ "20 (of its demonstrations)".

    Args:
        found: As `seen_seeds` returns it.
    """
    return ", ".join(f"{count} ({_WORDS.get(what, what)})" for what, count in found.items())


def seen_warning(name: str, found: Mapping[str, int]) -> str:
    """For a table or a page.

    Args:
        name: Of the policy or arm.
        found: As `seen_seeds` returns it.
    """
    return f"{name}: not a result on unseen episodes, {seen_text(found)} of the seeds had been seen."


def require_selection(seeds: range, demonstrations: Sequence[Sequence[int]]) -> list[list[int]]:
    """The ranges to record of the seeds that evaluations in training choose by.

    Args:
        seeds: Of the evaluations in training.
        demonstrations: Ranges of the store's seeds.

    Raises:
        ValueError: Where a checkpoint would be chosen on its own demonstrations or on seeds that are reported.
    """
    if len(seeds) and seeds.stop > START_SEED:
        raise ValueError(
            f"eval: {len(seeds)} episodes from start_seed={seeds.start} choose the checkpoint, and seeds "
            f"from {START_SEED} on are reported; take a `check.start_seed` below"
        )
    if common := sum(len(_common(seeds, first, last)) for first, last in demonstrations):
        raise ValueError(
            f"eval: {common} of the {len(seeds)} seeds from start_seed={seeds.start} are those of the "
            f"demonstrations; take another `check.start_seed` below {START_SEED}"
        )
    return seed_ranges(seeds)


def _common(seeds: range, first: int, last: int) -> range:
    return range(max(seeds.start, first), min(seeds.stop, last + 1))


def remarks(summary: Mapping[str, Any], name: str = "") -> list[str]:
    """What must be said beside the numbers of a summary.json.

    Args:
        summary: A summary.json.
        name: Of the evaluation.
    """
    name = name or f"{summary['num_steps']} step{'' if summary['num_steps'] == 1 else 's'}"
    found = []
    if solved := summary.get("solved_at_reset"):
        found.append(f"{name}: {solved} more episodes were solved at reset and count neither way.")
    if seen := summary.get("seen_seeds"):
        found.append(seen_warning(name, seen))
    return found
