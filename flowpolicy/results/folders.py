"""Finding and reading what a report shows: evaluation folders and train run folders, wherever they lie below a path."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from flowpolicy.json_files import read_object, read_objects

_NONE = type(None)
_TIMES = {"p50": float, "p95": float, "p99": float}
EPISODE = {
    "task": str,
    "task_id": str,
    "checkpoint": str,
    "num_steps": int,
    "seed": int,
    "success_once": bool,
    "failure": (str, _NONE),
    "episode_len": int,
}
"""The keys of every line of an evaluation's results.jsonl; a line may have others."""
_WANTED: dict[str, Any] = {
    "summary.json": {
        "num_steps": int,
        "sampler?": str,
        "evaluations?": int,
        "n": int,
        "success_once": float,
        "ci_low": float,
        "ci_high": float,
        "success_at_end": float,
        "return_mean": float,
        "latency_ms": _TIMES,
        "env_steps_per_s": float,
        "versions?": {"*": str},
        "start_seed?": int,
        "policy_params?": int,
        "success_outcomes?": {"*": int},
        "seen_seeds?": {"*": int},
        "solved_at_reset?": int,
    },
    "latency.json": {
        "threads": int,
        "device": str,
        "predict": {**_TIMES, "max": float},
        "floor": {"p50": float},
        "overhead": float,
        "stages": {name: {"p50": float} for name in ("encode", "head", "decode")},
        "samples_ms": [float],
    },
    "chunks.json": {
        "names": [str],
        "panels": [
            {
                "title": str,
                "line": str,
                "actions": [[float]],
                "chunks": [{"step": int, "actions": [[[float]]]}],
            }
        ],
    },
    "results.jsonl": EPISODE,
    "metrics.jsonl": {"step?": int, "*": (float, _NONE)},
    "latency.jsonl": {"checkpoint": str, "num_steps": int},
    "run.json": {"versions?": {"*": str}, "seeds?": dict, "argv?": [str]},
}
"""What the page reads from each file."""


@final
@dataclass(frozen=True)
class EvaluationFolder:
    """One folder that `evaluate` wrote. latency, chunks: None where the file is missing.

    Args:
        label: Short name, see `short_names`.
        path: The folder.
        summary: Its summary.json.
        episodes: Lines of its results.jsonl.
        latency: Its latency.json.
        chunks: Its chunks.json.
        videos: The recordings in it.
    """

    label: str
    path: Path
    summary: dict[str, Any]
    episodes: list[dict[str, Any]]
    latency: dict[str, Any] | None
    chunks: dict[str, Any] | None
    videos: list[Path]


@final
@dataclass(frozen=True)
class RunFolder:
    """One folder that a trainer wrote. record: run.json, None when missing.

    Args:
        label: Short name, see `short_names`.
        path: The folder.
        record: Its run.json.
        metrics: Lines of its metrics.jsonl.
        config: The resolved yaml, or "".
    """

    label: str
    path: Path
    record: dict[str, Any] | None
    metrics: list[dict[str, Any]]
    config: str


def find_folders(paths: Sequence[Path]) -> tuple[list[EvaluationFolder], list[RunFolder]]:
    """Every evaluation (has summary.json) and every train run (has metrics.jsonl) at or below `paths`.

    Args:
        paths: Where to look.

    Raises:
        FileNotFoundError: For a path that does not exist.
        ValueError: Where there is nothing to report or a file is not what its name says.
    """
    for path in paths:
        if not path.is_dir():
            raise FileNotFoundError(f"{path} is not a folder; pass an evaluation or train run folder")
    evaluations = _with_file(paths, "summary.json")
    runs = _with_file(paths, "metrics.jsonl")
    if not evaluations and not runs:
        looked = ", ".join(str(path) for path in paths)
        raise ValueError(
            f"nothing to report in {looked}: wanted a folder with summary.json (of an evaluation)"
            " or metrics.jsonl (of a training) at or below it"
        )
    labels = short_names(sorted({*evaluations, *runs}))
    found = [_read_evaluation(path, labels[path]) for path in evaluations]
    found.sort(key=lambda one: (str(one.summary.get("task_id")), one.label, one.summary.get("num_steps", 0)))
    if len({one.summary.get("task_id") for one in found}) > 1:
        found = [replace(one, label=f"{one.summary.get('task_id')} · {one.label}") for one in found]
    return found, [_read_run(path, labels[path]) for path in runs]


def _with_file(paths: Sequence[Path], name: str) -> list[Path]:
    """Folders that hold `name`, resolved, each once, in path order; checkpoints are not searched."""
    found: set[Path] = set()
    for path in paths:
        for folder, below, files in os.walk(path):
            below[:] = [d for d in below if d != "checkpoints" and not d.startswith(".") and not d.endswith(".zarr")]
            if name in files:
                found.add(Path(folder).resolve())
    return sorted(found)


def short_names(paths: Sequence[Path]) -> dict[Path, str]:
    """A short name per folder: its path below what all share, without the words that every evaluation has in it.

    Args:
        paths: The folders to tell apart.
    """
    words = {path: [p for p in path.parts if p != "evaluation" and not p.startswith("steps_")] for path in paths}
    shared = len(os.path.commonprefix(list(words.values())))
    labels = {}
    for path, parts in words.items():
        first = min(shared, len(parts) - 1)
        if parts[first:] and parts[first].isdigit() and first > 0:
            first -= 1  # a training step alone names nothing
        labels[path] = "/".join(parts[first:])
    return labels


def _read_evaluation(path: Path, label: str) -> EvaluationFolder:
    videos = path / "videos"
    return EvaluationFolder(
        label=label,
        path=path,
        summary=read_json(path / "summary.json") or {},
        episodes=read_lines(path / "results.jsonl"),
        latency=read_json(path / "latency.json"),
        chunks=read_json(path / "chunks.json"),
        videos=sorted(v for v in videos.iterdir() if v.suffix in (".mp4", ".png")) if videos.is_dir() else [],
    )


def _read_run(path: Path, label: str) -> RunFolder:
    config = path / ".hydra" / "config.yaml"
    return RunFolder(
        label=label,
        path=path,
        record=read_json(path / "run.json"),
        metrics=read_lines(path / "metrics.jsonl"),
        config=config.read_text() if config.exists() else "",
    )


def read_json(path: Path) -> dict[str, Any] | None:
    """The object that a file of ours holds; None without the file. Raises ValueError for another content.

    Args:
        path: The file.
    """
    if not path.exists():
        return None
    with _advice(path):
        return read_object(path, _WANTED.get(path.name, dict))


def read_lines(path: Path, wanted: Any = None) -> list[dict[str, Any]]:
    """Objects of a JSON-lines file; a last line without its end belongs to a run that is still writing it.

    Args:
        path: The file.
        wanted: The keys of each line, see `json_files.Kind`; by default those of an evaluation's file of this name.
    """
    with _advice(path):
        return read_objects(path, wanted or _WANTED.get(path.name, dict), growing=True)


@contextmanager
def _advice(path: Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        fix = f"run the command that wrote it again, or leave {path.parent} out"
        raise ValueError(f"{error}; {fix}") from error
