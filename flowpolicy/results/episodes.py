"""results.jsonl: a line per episode, only ever appended to, so that a killed command finds again what it had done."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from flowpolicy.json_files import read_object
from flowpolicy.provenance import require_same
from flowpolicy.rollout.episodes import EpisodeResult

FACTS = ("task", "task_id", "checkpoint", "num_steps")  # of a line, beside the seed: what was run


def facts_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What was run, of a line: the values of FACTS, and of other samplers than jumps "sampler" and "evaluations".

    Args:
        row: A line, or its facts; older ones, which were all drawn by jumps, say no sampler.
    """
    own = {name: row.get(name) for name in FACTS}
    if row.get("sampler", "jump") == "jump":
        return own
    return own | {name: row.get(name) for name in ("sampler", "evaluations")}


def episode_row(facts: Mapping[str, Any], result: EpisodeResult) -> dict[str, Any]:
    """The line of one episode.

    Args:
        facts: See `facts_of`.
        result: Of the episode.
    """
    row = facts_of(facts) | {
        "seed": result.seed,
        "success_once": result.success_once,
        "success_at_end": result.success_at_end,
        "return": result.return_,
        "episode_len": result.episode_len,
        "failure": result.failure,
        "solved_at_reset": result.solved_at_reset,
    }
    return row | ({"outcome": result.outcome} if result.outcome else {})


def left_to_solve(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Lines of episodes that were not solved at reset, of which success rates are; older lines do not say.

    Args:
        rows: Lines of results.jsonl, one per episode.

    Raises:
        ValueError: When there is none.
    """
    if not (some := [row for row in rows if not row.get("solved_at_reset")]):
        raise ValueError(
            f"all {len(rows)} episodes were solved at reset: there is nothing to measure; take other "
            "seeds, or another task"
        )
    return some


def weights_digest(files: Path) -> str:
    """SHA-256 over config.json and model.safetensors in `files`: says whether it is still the same policy.

    Args:
        files: The folder of config.json and model.safetensors.
    """
    digest = hashlib.sha256()
    for name in ("config.json", "model.safetensors"):
        file = files / name
        state = file.stat()
        digest.update(_file_digest(file, state.st_mtime_ns, state.st_size))
    return digest.hexdigest()


@lru_cache(4096)
def _file_digest(path: Path, changed_ns: int, size: int) -> bytes:
    """A sweep asks for each checkpoint once per number of steps and task."""
    del changed_ns, size
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def require_unchanged(file: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that `file` holds joined by new ones, for the caller to write. facts: name -> JSON-ready value.

    Args:
        file: JSON, written when the folder was begun.
        facts: Name -> JSON-ready value.

    Raises:
        ValueError: Naming the first fact that was another one before: episodes of both would not be comparable.
    """
    before = read_object(file) if file.exists() else {}
    common = facts.keys() & before.keys()
    old, new = ({name: side[name] for name in facts if name in common} for side in (before, facts))
    require_same(old, new, where=str(file.parent), whole=("",))
    return before | dict(facts)
