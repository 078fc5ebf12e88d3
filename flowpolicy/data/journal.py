"""What a collect command has tried and an `EpisodeWriter` has accepted so far, on the disk, however they ended."""

import errno
import io
import json
import os
import time
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, final

import numpy as np

from flowpolicy.data.episode import Episode
from flowpolicy.files import beside, remove_folder, sync_file, sync_folder, write_atomic
from flowpolicy.locks import only_writer
from flowpolicy.provenance import require_same

_FLUSH_S = 1.0  # how much collecting a power cut may cost; a killed process loses what it had not handed over
_SETTINGS, _ATTEMPTS = "settings.json", "attempts.jsonl"
_KEPT = ("success", "kept")  # outcomes of which there is an episode


@final
class Journal:
    """The hidden folder .NAME.journal beside the store NAME to be. One process at a time (`reserved`).

    Numbers stand for seeds that were tried, or count what was accepted. As a context manager it keeps the folder after
    an exception, and says so, if there is an episode to keep.

    Args:
        store: Path of the store to be.
        settings: JSON-ready facts that fix every episode: where they differ, the attempts are another command's.
        who: Whose journal it is, and how that goes on, in words.
        goes_on: As `who`.

    Raises:
        ValueError: Naming what differs from the settings that the folder was begun with.
    """

    def __init__(
        self, store: Path, settings: dict[str, Any], *, who: str = "collect", goes_on: str = "the same command"
    ) -> None:
        self.folder, self._store, self._who, self._goes_on = journal_folder(store), store, who, goes_on
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        self._begin()
        self._outcomes: dict[int, str] = {}
        self._begun: dict[int, int] = {}
        self._unsafe: list[Path] = []
        self._flushed = time.monotonic()
        self._read()
        self._lines = (self.folder / _ATTEMPTS).open("ab", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()
        self.close()
        if error is None or not self.successes:
            remove_folder(self.folder)
            return
        error.add_note(
            f"{self._who}: {self.successes} finished episodes are kept in {self.folder}; {self._goes_on} goes on with "
            f"them, `finish_store({str(self._store)!r})` makes a store of them"
        )

    def __contains__(self, seed: int) -> bool:
        """Whether the seed has been tried to its end."""
        return seed in self._outcomes

    def __len__(self) -> int:
        """Seeds that have been tried to their end."""
        return len(self._outcomes)

    @property
    def successes(self) -> int:
        """Episodes that are kept."""
        return sum(outcome in _KEPT for outcome in self._outcomes.values())

    def crashed(self, seed: int) -> bool:
        """Whether its process died on it.

        Args:
            seed: That was tried.
        """
        return self._outcomes.get(seed) == "crash"

    def begun(self, seed: int) -> int:
        """How often an attempt began that never came to an end.

        Args:
            seed: That was tried.
        """
        return self._begun.get(seed, 0)

    def begin(self, seed: int) -> None:
        """Note that an attempt begins, which may take this very process down.

        Args:
            seed: That is tried now.
        """
        self._note(seed, "begin")

    def add(self, seed: int, episode: Episode | None) -> None:
        """Note how the attempt of `seed` ended; None: its process died. Successful episodes are kept.

        Args:
            seed: That was tried.
            episode: One demonstration.
        """
        if episode is None:
            self._note(seed, "crash")
        elif not episode.success:
            self._note(seed, "failure")
        else:
            self._keep(seed, episode, "success")
        self._flush_sometimes()

    def accept(self, episode: Episode) -> None:
        """Keep an episode under the next number, whatever came of it.

        Args:
            episode: One demonstration.
        """
        self._keep(max(self._outcomes, default=-1) + 1, episode, "kept")
        self._flush_sometimes()

    def episode(self, seed: int) -> Episode | None:
        """The successful episode of a seed that has been tried, None for any other outcome.

        Args:
            seed: That was tried.
        """
        return _load(self._file(seed)) if self._outcomes[seed] in _KEPT else None

    def episodes(self) -> Iterator[Episode]:
        """All that are kept, by their numbers."""
        return (_load(self._file(number)) for number in sorted(self._outcomes) if self._outcomes[number] in _KEPT)

    def flush(self) -> None:
        """Return when all that was noted is on the disk."""
        for file in self._unsafe:
            sync_file(file)
        if self._unsafe:
            sync_folder(self.folder)
        os.fsync(self._lines.fileno())
        self._unsafe, self._flushed = [], time.monotonic()

    def close(self) -> None:
        """Leave the folder as it is."""
        self._lines.close()

    def _keep(self, number: int, episode: Episode, outcome: str) -> None:
        """The episode whole or not at all, and then the line that counts."""
        file = self._file(number)
        part = beside(file)
        try:
            _write(part, episode)
            os.replace(part, file)
        except OSError:
            part.unlink(missing_ok=True)  # what a full disk needs first
            raise
        self._unsafe.append(file)
        self._note(number, outcome)

    def _flush_sometimes(self) -> None:
        if time.monotonic() - self._flushed > _FLUSH_S:
            self.flush()

    def _note(self, number: int, outcome: str) -> None:
        """One line, whole or not at all; it is out of this process, which may be killed."""
        line = json.dumps({"number" if outcome == "kept" else "seed": number, "outcome": outcome}).encode() + b"\n"
        size = os.fstat(self._lines.fileno()).st_size
        if self._lines.write(line) != len(line):
            self._lines.truncate(size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder / _ATTEMPTS))
        self._take(number, outcome)

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
            if entry[1] not in _KEPT or _is_whole(self._file(entry[0])):
                self._take(*entry)
            elif entry[1] == "kept":
                warnings.warn(f"{self._file(entry[0])} is damaged: this episode is lost", stacklevel=4)
            good += len(line)
        if good < len(data):
            write_atomic(file, data[:good])

    def _file(self, seed: int) -> Path:
        return self.folder / f"{seed}.npz"

    def _begin(self) -> None:
        """Write the settings down, or hold them against those that are there."""
        file = self.folder / _SETTINGS
        if not file.exists():
            write_atomic(file, json.dumps(self.settings, indent=2) + "\n")
            return
        before, finish = _settings(file), how_to_finish(self._store)
        where = f"{self.folder} holds the episodes of another {before.get('who', 'collect')} command for this store and"
        fix = "; ".join(["repeat that command to finish it, or remove the folder", *([finish] if finish else [])])
        require_same(before, self.settings, where=where, whole=("",), fix=lambda key, old: fix)


def journal_folder(store: Path) -> Path:
    """Where the attempts for the store at this path are kept.

    Args:
        store: Path of the store to be.
    """
    return store.with_name(f".{store.name}.journal")


@contextmanager
def reserved(store: Path) -> Iterator[None]:
    """Hold the journal's folder for this process; what was not begun leaves none behind. Raises ValueError while
    another process holds it.

    Args:
        store: Path of the store to be.
    """
    folder = journal_folder(store)
    with only_writer(folder):
        try:
            yield
        finally:
            if folder.is_dir() and not any(not file.name.startswith(".") for file in folder.iterdir()):
                remove_folder(folder)


def unfinished(store: Path) -> dict[str, Any] | None:
    """The settings of the journal beside the place of a store, None where none holds an episode.

    Args:
        store: Path of the store to be.

    Raises:
        ValueError: Naming its file where that is damaged.
    """
    folder = journal_folder(store)
    return _settings(folder / _SETTINGS) if _count(folder) and (folder / _SETTINGS).is_file() else None


def how_to_finish(store: Path) -> str:
    """In words, how many episodes wait beside the place of a store and for what; nothing where none do.

    Args:
        store: Path of the store to be.
    """
    folder = journal_folder(store)
    if not (count := _count(folder)):
        return ""
    return f"{count} accepted episodes are safe in {folder}: `finish_store({str(store)!r})` makes a store of them"


def _count(folder: Path) -> int:
    """How many episodes the lines speak of."""
    file = folder / _ATTEMPTS
    entries = map(_parse, file.read_bytes().splitlines(keepends=True) if file.is_file() else [])
    return sum(entry is not None and entry[1] in _KEPT for entry in entries)


def _settings(file: Path) -> dict[str, Any]:
    try:
        settings = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}); remove its folder to collect anew") from error
    return settings if isinstance(settings, dict) else {}


def _parse(line: bytes) -> tuple[int, str] | None:
    try:
        entry = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    match entry:
        case {"seed": int(seed), "outcome": "begin" | "success" | "failure" | "crash" as outcome}:
            return seed, outcome
        case {"number": int(number), "outcome": "kept" as outcome}:
            return number, outcome
    return None


def _write(file: Path, episode: Episode) -> None:
    arrays = {f"obs.{key}": np.asarray(value) for key, value in episode.obs.items()}
    arrays |= {"action": np.asarray(episode.action), "reward": np.asarray(episode.reward)}
    if objects := [name for name, array in arrays.items() if array.dtype == object]:
        raise ValueError(f"collect: seed {episode.seed}: {', '.join(objects)} are no arrays of numbers")
    with file.open("wb") as stream:
        np.savez(stream, seed=np.int64(episode.seed), success=np.bool_(episode.success), **arrays)


def _load(file: Path) -> Episode:
    with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as found:
        obs = {name.removeprefix("obs."): found[name] for name in found.files if name.startswith("obs.")}
        success = bool(found["success"]) if "success" in found.files else True  # older ones kept nothing else
        return Episode(obs, found["action"], found["reward"], success, int(found["seed"]))


def _is_whole(file: Path) -> bool:
    """Whether the episode is there, byte for byte as its checksums say."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False
