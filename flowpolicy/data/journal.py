"""What a collect command has tried so far, on the disk: the same command goes on from there, however it ended."""

import io
import json
import os
import sys
import time
import zipfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self, final

import numpy as np

from flowpolicy.data.store import Episode
from flowpolicy.files import remove_folder, sync_file, sync_folder, write_atomic

_FLUSH_S = 1.0  # how much collecting a power cut may cost; a killed process loses what it had not handed over
_SETTINGS, _ATTEMPTS = "settings.json", "attempts.jsonl"


@final
class Journal:
    """The hidden folder .NAME.journal beside the store NAME to be. One process at a time.

    settings: JSON-ready facts that fix every episode: where they differ, the attempts are another command's.
    As a context manager it keeps the folder after an exception, and says so, if there is an episode to keep.
    Raises ValueError naming what differs from the settings that the folder was begun with.
    """

    def __init__(self, store: Path, settings: dict[str, Any]) -> None:
        self.folder = journal_folder(store)
        self._require_same(json.loads(json.dumps(settings)))
        self._outcomes: dict[int, str] = {}
        self._begun: dict[int, int] = {}
        self._unsafe: list[Path] = []
        self._flushed = time.monotonic()
        self._read()
        self._lines = (self.folder / _ATTEMPTS).open("a")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()
        self._lines.close()
        if error is None or not self.successes:
            remove_folder(self.folder)
            return
        print(
            f"collect: {self.successes} finished episodes are kept in {self.folder}; the same command goes on with "
            "them, and without the folder it starts anew", file=sys.stderr,
        )  # fmt: skip

    def __contains__(self, seed: int) -> bool:
        """Whether the seed has been tried to its end."""
        return seed in self._outcomes

    def __len__(self) -> int:
        """Seeds that have been tried to their end."""
        return len(self._outcomes)

    @property
    def successes(self) -> int:
        """Episodes that are kept."""
        return sum(outcome == "success" for outcome in self._outcomes.values())

    def crashed(self, seed: int) -> bool:
        """Whether its process died on it."""
        return self._outcomes.get(seed) == "crash"

    def begun(self, seed: int) -> int:
        """How often an attempt began that never came to an end."""
        return self._begun.get(seed, 0)

    def begin(self, seed: int) -> None:
        """Note that an attempt begins, which may take this very process down."""
        self._note(seed, "begin")

    def add(self, seed: int, episode: Episode | None) -> None:
        """Note how the attempt of `seed` ended; None: its process died. Successful episodes are kept."""
        if episode is None:
            self._note(seed, "crash")
        elif not episode.success:
            self._note(seed, "failure")
        else:
            file = self._file(seed)
            _write(file.with_suffix(".part"), episode)
            os.replace(file.with_suffix(".part"), file)
            self._unsafe.append(file)
            self._note(seed, "success")
        if time.monotonic() - self._flushed > _FLUSH_S:
            self.flush()

    def episode(self, seed: int) -> Episode | None:
        """The successful episode of a seed that has been tried, None for any other outcome."""
        return _load(self._file(seed)) if self._outcomes[seed] == "success" else None

    def flush(self) -> None:
        """Return when all that was noted is on the disk."""
        for file in self._unsafe:
            sync_file(file)
        if self._unsafe:
            sync_folder(self.folder)
        self._lines.flush()
        os.fsync(self._lines.fileno())
        self._unsafe, self._flushed = [], time.monotonic()

    def _note(self, seed: int, outcome: str) -> None:
        self._take(seed, outcome)
        self._lines.write(json.dumps({"seed": seed, "outcome": outcome}) + "\n")
        self._lines.flush()  # out of this process, which may be killed

    def _take(self, seed: int, outcome: str) -> None:
        if outcome == "begin":
            self._begun[seed] = self._begun.get(seed, 0) + 1
        else:
            self._outcomes[seed] = outcome

    def _read(self) -> None:
        """Take what the file says up to the first line that a power cut or a kill damaged; drop the rest."""
        file = self.folder / _ATTEMPTS
        data = file.read_bytes() if file.exists() else b""
        good = 0
        for line in data.splitlines(keepends=True):
            entry = _parse(line)
            if entry is None:
                break
            if entry[1] != "success" or _is_whole(self._file(entry[0])):
                self._take(*entry)
            good += len(line)
        if good < len(data):
            write_atomic(file, data[:good])

    def _file(self, seed: int) -> Path:
        return self.folder / f"{seed}.npz"

    def _require_same(self, settings: dict[str, Any]) -> None:
        file = self.folder / _SETTINGS
        if not file.exists():
            write_atomic(file, json.dumps(settings, indent=2) + "\n")
            return
        try:
            before = json.loads(file.read_bytes())
        except ValueError as error:
            raise ValueError(f"{file} is damaged ({error}); remove its folder to collect anew") from error
        if not isinstance(before, dict) or before != settings:
            names = sorted(settings) if not isinstance(before, dict) else _different(before, settings)
            raise ValueError(
                f"{self.folder} holds the episodes of another collect command for this store ({', '.join(names)} "
                "differ): repeat that command to finish it, or remove the folder"
            )


def journal_folder(store: Path) -> Path:
    """Where the attempts for the store at this path are kept."""
    return store.with_name(f".{store.name}.journal")


def _different(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]


def _parse(line: bytes) -> tuple[int, str] | None:
    try:
        entry = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    match entry:
        case {"seed": int(seed), "outcome": "begin" | "success" | "failure" | "crash" as outcome}:
            return seed, outcome
    return None


def _write(file: Path, episode: Episode) -> None:
    arrays = {f"obs.{key}": np.asarray(value) for key, value in episode.obs.items()}
    arrays |= {"action": np.asarray(episode.action), "reward": np.asarray(episode.reward)}
    if objects := [name for name, array in arrays.items() if array.dtype == object]:
        raise ValueError(f"collect: seed {episode.seed}: {', '.join(objects)} are no arrays of numbers")
    with file.open("wb") as stream:
        np.savez(stream, seed=np.int64(episode.seed), **arrays)


def _load(file: Path) -> Episode:
    with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as found:
        obs = {name.removeprefix("obs."): found[name] for name in found.files if name.startswith("obs.")}
        return Episode(obs, found["action"], found["reward"], True, int(found["seed"]))


def _is_whole(file: Path) -> bool:
    """Whether the episode is there, byte for byte as its checksums say."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False
