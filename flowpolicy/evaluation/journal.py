"""An evaluation in the making: a line per finished episode in a hidden folder, which moves to its place when complete.

.NAME.unfinished/asked.json, results.jsonl, videos/      then, with the rest and as a whole,      NAME/
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from flowpolicy.files import drop_cut_line, replace_folder, write_atomic
from flowpolicy.json_files import append_rows, write_json
from flowpolicy.results.episodes import require_unchanged
from flowpolicy.results.folders import read_json, read_lines


@final
class Journal:
    """The folder `out` of one evaluation, and the hidden one beside it until then.

    Args:
        out: The folder to be.
        asked: JSON-ready, all that decides the results.

    Raises:
        ValueError: Where `out` holds anything else than what was asked for in the same words, or an unfinished
            evaluation of other words lies beside it.
    """

    def __init__(self, out: Path, asked: Mapping[str, Any]) -> None:
        self.out, self._asked = out.absolute(), json.loads(json.dumps(asked))
        self.unfinished = self.out.with_name(f".{self.out.name}.unfinished")
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"{self.out} is a file; choose another `out=`")
        there = sorted(path.name for path in self.out.iterdir()) if self.out.is_dir() else []
        if there and "asked.json" not in there:
            raise ValueError(
                f"{self.out} holds {there[0]}, and does not say what was asked of it; choose another `out=`"
            )
        for folder in (self.out, self.unfinished):
            if (folder / "asked.json").exists():
                require_unchanged(folder / "asked.json", self._asked)

    @property
    def complete(self) -> bool:
        """Whether the evaluation has been finished."""
        return (self.out / "summary.json").is_file()

    @property
    def videos(self) -> Path:
        """Where recordings belong."""
        return (self.out if self.complete else self.unfinished) / "videos"

    def unfilmed(self, seeds: Sequence[int]) -> list[int]:
        """Those of `seeds` without a recording.

        Args:
            seeds: Of episodes.
        """
        return [seed for seed in seeds if not any(self.videos.glob(f"{seed}_*.mp4"))]

    def rows(self) -> dict[int, dict[str, Any]]:
        """Seed -> line, of every finished episode."""
        return {row["seed"]: row for row in read_lines(self._place / "results.jsonl")}

    def summary(self) -> dict[str, Any]:
        """Of the complete evaluation."""
        return read_json(self.out / "summary.json") or {}

    def begin(self) -> None:
        """Say what is asked for; half a line that a kill left goes."""
        write_json(self.unfinished / "asked.json", self._asked)
        drop_cut_line(self.unfinished / "results.jsonl")

    def add(self, row: Mapping[str, Any]) -> None:
        """One finished episode.

        Args:
            row: Its line of results.jsonl.
        """
        append_rows(self.unfinished / "results.jsonl", [row])

    def finish(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Put the lines in order and move everything to its place.

        Args:
            rows: All lines.
        """
        write_atomic(self.unfinished / "results.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        if self.out.is_dir():
            self.out.rmdir()  # empty, or the constructor had refused it
        replace_folder(self.unfinished, self.out)

    def drop_if_empty(self) -> None:
        """Leave nothing of an evaluation that failed before its first episode ended."""
        if self.unfinished.is_dir() and not self.rows():
            shutil.rmtree(self.unfinished, ignore_errors=True)

    @property
    def _place(self) -> Path:
        return self.out if self.complete else self.unfinished
