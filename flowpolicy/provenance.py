"""What made a run: versions, commit, command line and digests of configs; and whether a rerun asks for the same."""

import hashlib
import json
import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from flowpolicy.json_files import write_json

VERSIONED = (
    "flowpolicy",
    "torch",
    "numpy",
    "scipy",
    "hydra-core",
    "safetensors",
    "zarr",
    "numba",
    "gymnasium",
    "mani_skill",
    "sapien",
    "mplib",
    "metaworld",
    "mujoco",
    "wandb",
    "imageio",
    "onnx",
    "onnxruntime",
)
"""Distributions whose version changes results or decides what can run."""

NUMERICAL = ("torch", "numpy", "mani_skill", "sapien", "metaworld", "mujoco")


def versions() -> dict[str, str]:
    """Python and the installed ones of VERSIONED, read from package metadata: nothing is imported."""
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def numerics() -> dict[str, str]:
    """The installed ones of the distributions that decide what a rollout does to the last digit."""
    known = versions()
    return {name: known[name] for name in NUMERICAL if name in known}


def git_commit() -> str | None:
    """Commit of the flowpolicy checkout ("-dirty" appended when files differ from it); None when it is not one."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):  # no git program, no commit yet, a checkout owned by someone else
        return None
    return commit + ("-dirty" if changed else "")


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def write_run_record(
    out: Path | str,
    *,
    argv: Sequence[str],
    config_hash: str,
    seeds: Mapping[str, int],
    device: str,
    dataset_hash: str | None,
    wandb_run_id: str | None = None,
) -> Path:
    """Write out/run.json: versions, git commit, command line, config hash, seeds, device, dataset hash, start time.

    seeds: stream or purpose -> seed.   dataset_hash: None where a run reads no dataset.   wandb_run_id: None without.
    A folder's first start stays as it is; "starts" has a record of each, the first and this one among them.
    Returns the path written. Raises ValueError for a run.json that is damaged.

    Args:
        out: Folder of the run.
        argv: The command line.
        config_hash: Of the resolved config.
        seeds: Stream or purpose -> seed.
        device: Where torch computes, e.g. "cpu" or "cuda".
        dataset_hash: None where a run reads no dataset.
        wandb_run_id: None without one.
    """
    path = Path(out) / "run.json"
    record = {
        "argv": list(argv),
        "config_hash": config_hash,
        "seeds": dict(seeds),
        "device": device,
        "dataset_hash": dataset_hash,
        "git_commit": git_commit(),
        "versions": versions(),
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "wandb_run_id": wandb_run_id,
    }
    first = _read_record(path) or record
    starts = first.pop("starts", [dict(first)] if first is not record else [])
    return write_json(path, first | {"wandb_run_id": wandb_run_id, "starts": [*starts, dict(record)]})


def _read_record(path: Path) -> dict[str, Any] | None:
    """What run.json holds, None without one."""
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); remove it, and the run begins a new record") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} is damaged (no object); remove it, and the run begins a new record")
    return record


def wandb_run(out: Path | str) -> str | None:
    """The wandb run that out/run.json names, None where there is neither.

    Args:
        out: Folder of the run.
    """
    return (_read_record(Path(out) / "run.json") or {}).get("wandb_run_id")


def digest(facts: Mapping[str, Any]) -> str:
    """Of a resolved config or a part of it.

    Args:
        facts: JSON-ready.
    """
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def recipe(facts: Mapping[str, Any]) -> str:
    """Digest of the numbers that `flowpolicy train` trains and evaluates with.

    Args:
        facts: Its config, resolved.
    """
    trainer = {name: value for name, value in facts["trainer"].items() if name != "max_hours"}
    own = {key: facts[key] for key in ("policy", "task", "normalization", "dataset", "eval")}
    return digest(own | {"trainer": trainer})


def flat(config: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf; a list is a leaf.

    Args:
        config: Nested mappings.
        name: What the keys begin with.
    """
    if isinstance(config, Mapping) and config:
        for key, value in config.items():
            yield from flat(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, config


def require_same(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    where: str,
    whole: Sequence[str] = (),
    fix: Callable[[str, str], str] = lambda key, old: "choose another `out=`, or the same again",
) -> None:
    """Refuse to go on with what was begun otherwise: the results of both would not be comparable.

    Args:
        before: What was asked for at the start, nested as it was recorded.
        now: What is asked for today; JSON-ready.
        where: What was begun, for the message.
        whole: Beginnings of dotted keys where an entry more or less is a difference too; elsewhere one that only one
            side has is none.
        fix: (dotted key, its old value) -> what to try.

    Raises:
        ValueError: Naming the first entry that differs, and how many more do.
    """
    old, new = dict(flat(before)), dict(flat(json.loads(json.dumps(now))))
    both = sorted({*old, *new})
    differ = [key for key in both if old.get(key) != new.get(key)]
    differ = [key for key in differ if (key in old and key in new) or key.startswith(tuple(whole))]
    empty = [key for key in differ if old.get(key, {}) == new.get(key, {})]  # on one side, not there on the other
    differ = [key for key in differ if key not in empty or not any(one.startswith(f"{key}.") for one in differ)]
    if differ:
        key, more = differ[0], f" (and {len(differ) - 1} more: {', '.join(differ[1:4])})" if differ[1:] else ""
        was, is_ = (_short(side[key]) if key in side else "nothing" for side in (old, new))
        raise ValueError(f"{where} was begun with {key} {was}, now {is_}{more}; {fix(key, was)}")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
