"""results.jsonl: a line per episode, only ever appended to, so that a killed command finds again what it had done."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flowpolicy.rollout.episodes import EpisodeResult

FACTS = ("task", "task_id", "checkpoint", "num_steps")  # of a line, beside the seed: what was run


def episode_row(facts: Mapping[str, Any], result: EpisodeResult) -> dict[str, Any]:
    """The line of one episode. facts: values of FACTS."""
    row = {name: facts[name] for name in FACTS} | {
        "seed": result.seed,
        "success_once": result.success_once,
        "success_at_end": result.success_at_end,
        "return": result.return_,
        "episode_len": result.episode_len,
        "failure": result.failure,
    }
    return row | ({"outcome": result.outcome} if result.outcome else {})


def append_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add lines in one write; missing folders are made. No lines: nothing is written."""
    if not rows:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


@contextmanager
def only_writer(folder: Path, name: str = "lock") -> Iterator[None]:
    """Hold `folder` for this process while the block runs; the system frees it however the process ends.

    name: of the hidden lock file; another one is another lock. Raises ValueError when a process that runs holds it.
    """
    import fcntl  # POSIX, as the simulators are

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{name}").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{folder} is being written by another command; wait for it, or choose another out="
                             ) from error  # fmt: skip
        yield


def weights_digest(checkpoint: Path) -> str:
    """SHA-256 over configuration and weights of a checkpoint folder: says whether it is still the same policy."""
    digest = hashlib.sha256()
    for name in ("config.json", "model.safetensors"):
        with (checkpoint / "policy" / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def require_unchanged(file: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that `file` holds joined by new ones, for the caller to write. facts: name -> JSON-ready value.

    Raises ValueError naming the first fact that was another one before: episodes of both would not be comparable.
    """
    before = json.loads(file.read_text()) if file.exists() else {}
    for name, value in facts.items():
        if name in before and before[name] != value:
            raise ValueError(f"{file.parent} was begun with {_difference(name, before[name], value)}; "
                             "choose another out=, or the same again")  # fmt: skip
    return before | dict(facts)


def _difference(name: str, old: Any, new: Any) -> str:
    """Where two values differ, as deep as both have the same keys."""
    if isinstance(old, dict) and isinstance(new, dict) and set(old) == set(new):
        key = next(key for key in old if old[key] != new[key])
        return _difference(f"{name}: {key}", old[key], new[key])
    return f"{name} {old}, now {new}"
