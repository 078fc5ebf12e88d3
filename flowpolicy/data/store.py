"""Episode store: a zarr v2 folder in the layout that diffusion_policy and DP3 read, written whole or not at all.

    data/<observation key>  (S, ...)     all steps of all episodes, one after the other
    data/action             (S, A)       robot units;    data/reward (S,)
    meta/episode_ends       (E,) int64   index one past the last step of each episode; the last entry is S
    meta/episode_seed, meta/episode_success (E,)

The group attributes hold the format's name and version, the embodiment record and facts about the task. Until it is
whole, every episode lies in a journal beside it (`journal`): `EpisodeWriter` goes on there, `finish_store` ends it.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self, final

import numpy as np

from flowpolicy.data.build import DISK_FULL, StoreBuilder, fitted, refuse_existing as refuse_existing, store_attrs
from flowpolicy.data.episode import Episode as Episode
from flowpolicy.data.journal import Journal, how_to_finish, journal_folder, reserved, unfinished
from flowpolicy.data.motion import trim_idle_starts
from flowpolicy.data.reading import EpisodeStore as EpisodeStore
from flowpolicy.embodiment import Embodiment
from flowpolicy.files import remove_folder, remove_leftovers, write_atomic
from flowpolicy.matching import require_match


@final
class EpisodeWriter:
    """Context manager that accepts episodes and writes the store at `path` of them on a clean exit.

    What `add` has accepted is safe: after an exception, Ctrl-C or a kill it lies in the hidden folder .NAME.journal
    beside `path`, where `unfinished_episodes` reads it, append=True goes on with it, and `finish_store` or `flowpolicy
    data finish PATH` makes the store of it. A power cut costs at most the last second.

    Args:
        path: The store to write.
        embodiment: The robot's contract: observation keys, shapes, units, action bounds.
        attrs: JSON-ready facts about the task, stored as group attributes.
        overwrite: Replace an existing store, at the moment the new one is complete.
        append: Go on with what a writer that ended early has accepted, and behind the episodes of a whole store, which
            is there unchanged until the longer one replaces it. Contract and facts are those of the first writer; given
            again, they must be the same. Where there is nothing yet, a store begins.

    Raises:
        FileExistsError: When `path` exists or a writer ended early there.
        ValueError: For a contract or facts that differ, while another process writes there, for an episode that does
            not fit the embodiment, or when none was added.
        OSError: When the disk is full, which costs only the episode that was being added: free some space and go on.
    """

    def __init__(
        self,
        path: Path,
        embodiment: Embodiment | None = None,
        attrs: dict[str, Any] | None = None,
        *,
        overwrite: bool = False,
        append: bool = False,
    ) -> None:
        if append and overwrite:
            raise ValueError("EpisodeWriter: `append=True` or `overwrite=True`, not both")
        self.path = Path(path).absolute()
        remove_leftovers(self.path)
        if journal_folder(self.path).is_dir():
            _drop_merged(self.path)
        if not append:
            refuse_existing(self.path, overwrite=overwrite)
            if fix := how_to_finish(self.path):
                raise FileExistsError(f"{fix}; EpisodeWriter(path, append=True) goes on with them")
        self._facts = _begun(self.path) if append else None
        if self._facts is None:
            if embodiment is None:
                raise ValueError(f"EpisodeWriter: there is no store at {self.path} yet; pass the embodiment")
            store_attrs(embodiment, attrs or {})
            self._facts = {
                "who": "EpisodeWriter",
                "embodiment": embodiment.to_dict(),
                "attrs": attrs or {},
                "before": 0,
                "overwrite": overwrite,
            }
        self.embodiment = Embodiment.from_dict(self._facts["embodiment"])
        if embodiment is not None:
            require_match(self.embodiment, embodiment, what=f"{self.path} and EpisodeWriter")
        if attrs is not None and attrs != self._facts["attrs"]:
            raise ValueError(f"EpisodeWriter: {self.path} was begun with attrs {self._facts['attrs']}, got {attrs}")

    def __enter__(self) -> Self:
        assert self._facts is not None
        with ExitStack() as undo:
            undo.enter_context(reserved(self.path))
            journal = Journal(self.path, self._facts, who="EpisodeWriter", goes_on="EpisodeWriter(path, append=True)")
            self._journal = undo.enter_context(journal)
            self._open = undo.pop_all()
        return self

    def __len__(self) -> int:
        """Episodes that the store will have, were it finished now."""
        assert self._facts is not None
        return self._facts["before"] + self._journal.successes

    def add(self, episode: Episode) -> None:
        """Accept one episode. Raises ValueError naming the key whose shape, type or length does not fit.

        Args:
            episode: One demonstration.
        """
        episode = fitted(episode, self.embodiment)
        try:
            self._journal.accept(episode)
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            text = f"disk full: the episode of seed {episode.seed} was not accepted, {self._journal.successes} before "
            raise OSError(error.errno, f"{text}it are safe in {self._journal.folder}") from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._open.__exit__(kind, error, trace)
            return
        with self._open:
            _merge(self._journal, self.path)


def finish_store(path: Path | str, *, overwrite: bool = False) -> int:
    """Make the store at `path` of what a writer or a collection that ended early has accepted; how many episodes it
    then has.

    Args:
        path: Of the store to be.
        overwrite: Also where a store is there by now; a writer's own overwrite=True or append=True is kept to anyway.

    Raises:
        FileNotFoundError: Where nothing is unfinished.
        ValueError: While another process writes there.
    """
    path = Path(path).absolute()
    if journal_folder(path).is_dir():
        _drop_merged(path)
    if (facts := unfinished(path)) is None:
        is_whole = ": it is whole already" if path.exists() else ""
        raise FileNotFoundError(f"{path} has no unfinished episodes{is_whole}")
    with reserved(path), Journal(path, facts, who="finish", goes_on="EpisodeWriter(path, append=True)") as journal:
        return _merge(journal, path, overwrite=overwrite)


def unfinished_episodes(path: Path | str) -> Iterator[Episode]:
    """The accepted episodes of a store that is not whole yet, in their order. Raises as `finish_store`.

    Args:
        path: Of the store to be.
    """
    path = Path(path).absolute()
    if (facts := unfinished(path)) is None:
        raise FileNotFoundError(f"{path} has no unfinished episodes")
    with reserved(path):
        journal = Journal(path, facts)
        try:
            yield from journal.episodes()
        finally:
            journal.close()


def trim_store(path: Path | str, out: Path | str, *, overwrite: bool = False) -> tuple[int, int]:
    """Write the store at `path` again to `out`, without the steps at the start of episodes in which nothing moves.

    Args:
        path: The store that is read.
        out: The store that is written.
        overwrite: Replace what is there.

    Returns:
        How many steps were left out, and of how many episodes.

    Raises:
        FileExistsError: When `out` exists.
        ValueError: For a store that flowpolicy did not write.
    """
    store = _own(EpisodeStore.open(path))
    assert store.embodiment is not None
    with StoreBuilder(Path(out).absolute(), store.embodiment, store.attrs, overwrite=overwrite) as builder:
        left_out = trim_idle_starts(store, builder)
    return int(left_out.sum()), int((left_out > 0).sum())


def add_record(path: Path | str, embodiment: Embodiment, attrs: dict[str, Any] | None = None) -> None:
    """Say what the numbers of somebody else's zarr mean, so that it can be trained on; only its .zattrs changes.

    Args:
        path: Of the zarr.
        embodiment: The robot's contract: observation keys, shapes, units, action bounds.
        attrs: Facts about the task, e.g. {"task": "mine"}, beside those that are there.

    Raises:
        ValueError: For a store that has a record, and naming the key whose shape or type is not what the record says;
            floats of any size may be float32.
    """
    store = EpisodeStore.open(path)
    if store.embodiment is not None:
        raise ValueError(f"{store.path} has an embodiment record; correct it in its .zattrs")
    for key, spec in {**embodiment.obs, "action": embodiment.action}.items():
        store.require_key(key)
        shape, dtype = store.shapes[key][1:], store.dtypes[key]
        if shape != spec.shape or (dtype != spec.dtype and not (dtype.kind == "f" and spec.dtype == "float32")):
            raise ValueError(
                f"add_record: {store.path}: {key}: the record says {spec.dtype} {spec.shape} per step, "
                f"the store has {dtype} {shape}"
            )
    whole = store_attrs(embodiment, {**store.attrs, **(attrs or {})})
    write_atomic(store.path / ".zattrs", json.dumps(whole, indent=4) + "\n")


def _own(store: EpisodeStore) -> EpisodeStore:
    """Raise ValueError unless it holds all that flowpolicy writes."""
    columns = (store.episode_seeds, store.episode_success)
    if store.embodiment is None or "reward" not in store.keys or any(column is None for column in columns):
        raise ValueError(
            f"{store.path} was not written by flowpolicy (no embodiment record, reward, seeds or "
            "successes); write its episodes to a new store with EpisodeWriter"
        )
    return store


def _begun(path: Path) -> dict[str, Any] | None:
    """What a writer began there with; of a whole store, what one would that appends to it. None: nothing is there."""
    if (facts := unfinished(path)) is not None:
        if facts.get("who") != "EpisodeWriter":
            raise ValueError(f"{how_to_finish(path)}; they are those of a collect command, which goes on with them")
        return facts
    if not path.exists():
        return None
    store = _own(EpisodeStore.open(path))
    assert store.embodiment is not None
    return {
        "who": "EpisodeWriter",
        "embodiment": store.embodiment.to_dict(),
        "attrs": store.attrs,
        "before": store.num_episodes,
        "overwrite": False,
    }


def _merge(journal: Journal, path: Path, *, overwrite: bool = False) -> int:
    """Write the store of the journal's episodes, behind those that were there before."""
    before, overwrite = journal.settings.get("before", 0), overwrite or journal.settings.get("overwrite", False)
    if before and (not path.exists() or EpisodeStore.open(path).num_episodes != before):
        raise ValueError(
            f"{path} is not the store of {before} episodes any more to which {journal.successes} were to "
            f"be appended; put it back, or read them with unfinished_episodes({str(path)!r})"
        )
    if before and not journal.successes:
        return before
    embodiment, attrs = Embodiment.from_dict(journal.settings["embodiment"]), journal.settings["attrs"]
    base = path if before else None
    try:
        with StoreBuilder(path, embodiment, attrs, base=base, overwrite=overwrite or before > 0) as builder:
            for episode in journal.episodes():
                builder.add(episode)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise OSError(error.errno, f"disk full while writing {path}: free some space; {how_to_finish(path)}") from error
    return before + journal.successes


def _drop_merged(path: Path) -> None:
    """Remove the journal of a writer that was killed when its store was whole: the episodes are in there."""
    with reserved(path):
        if (facts := unfinished(path)) is None or not path.exists():
            return
        journal = Journal(path, facts)
        try:
            merged = _is_in(EpisodeStore.open(path), journal, facts.get("before", 0))
        finally:
            journal.close()
        if merged:
            remove_folder(journal.folder)


def _is_in(store: EpisodeStore, journal: Journal, before: int) -> bool:
    """Whether the store is `before` episodes and then those of the journal, number by number."""
    if store.num_episodes != before + journal.successes or store.episode_seeds is None:
        return False
    starts = [0, *store.episode_ends.tolist()]
    for index, episode in enumerate(journal.episodes(), start=before):
        rows = slice(starts[index], starts[index + 1])
        values = {**episode.obs, "action": episode.action, "reward": episode.reward}
        if store.episode_seeds[index] != episode.seed or set(values) != set(store.keys):
            return False
        if not all(
            np.array_equal(store.load(key, rows), value, equal_nan=value.dtype.kind == "f")
            for key, value in values.items()
        ):
            return False
    return True
