"""EpisodeWriter: what `add` accepted is safe, however the program ends; it can be read, gone on with, or finished."""

import errno
import multiprocessing
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from flowpolicy.cli.main import main
from flowpolicy.data.store import Episode, EpisodeStore, EpisodeWriter, finish_store, unfinished_episodes
from tests.helpers import EMBODIMENT

ATTRS = {"task": "mine"}


def episode(seed: int, steps: int = 5) -> Episode:
    rng = np.random.default_rng(seed)
    obs = {key: rng.normal(size=(steps, *spec.shape)).astype(np.float32) for key, spec in EMBODIMENT.obs.items()}
    action = rng.uniform(-1, 1, (steps, 3)).astype(np.float32)
    return Episode(obs, action, rng.random(steps, np.float32), seed % 2 == 0, seed)


def files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def undisturbed(path: Path, episodes: int) -> dict[str, bytes]:
    with EpisodeWriter(path, EMBODIMENT, ATTRS) as writer:
        for seed in range(episodes):
            writer.add(episode(seed))
    return files(path)


def write(path: Path, how: str, after: int) -> None:
    with EpisodeWriter(path, EMBODIMENT, ATTRS) as writer:
        for seed in range(after):
            writer.add(episode(seed))
        if how == "exception":
            raise KeyError(how)
        os.kill(os.getpid(), getattr(signal, how))
        time.sleep(60)


def stopped(path: Path, how: str, *, after: int) -> None:
    """A writer that ends in this way when it has accepted so many episodes."""
    if how == "exception":
        with pytest.raises(KeyError):
            write(path, how, after)
    elif how == "SIGINT":
        with pytest.raises(KeyboardInterrupt):
            write(path, how, after)
    else:
        process = multiprocessing.get_context("spawn").Process(target=write, args=(path, how, after))
        process.start()
        process.join()
        assert process.exitcode == -getattr(signal, how)


@pytest.mark.parametrize("how", ["exception", "SIGINT", "SIGKILL", "SIGTERM"])
def test_whatever_ends_a_writer_what_it_accepted_can_be_read_gone_on_with_and_finished(tmp_path, how):
    wanted = undisturbed(tmp_path / "whole.zarr", 9)
    path = tmp_path / "own.zarr"
    stopped(path, how, after=9)
    with pytest.raises(FileNotFoundError, match=r"9 accepted episodes .*finish_store\(.*own\.zarr"):
        EpisodeStore.open(path)
    read = list(unfinished_episodes(path))
    assert [one.seed for one in read] == list(range(9)) and [one.success for one in read] == [True, False] * 4 + [True]
    np.testing.assert_array_equal(read[7].obs["env_state"], episode(7).obs["env_state"])
    with pytest.raises(FileExistsError, match=r"9 accepted episodes.*append=True"):
        EpisodeWriter(path, EMBODIMENT, ATTRS)
    with pytest.raises(FileExistsError, match="append=True"):  # that would cost them
        EpisodeWriter(path, EMBODIMENT, ATTRS, overwrite=True)
    assert main(["data", "finish", str(path)]) == 0
    assert files(path) == wanted and sorted(p.name for p in tmp_path.iterdir()) == ["own.zarr", "whole.zarr"]


@pytest.mark.parametrize("how", ["exception", "SIGKILL"])
def test_the_next_writer_goes_on_with_what_the_one_before_it_accepted(tmp_path, how):
    path = tmp_path / "own.zarr"
    stopped(path, how, after=5)
    with EpisodeWriter(path, append=True) as writer:  # contract and facts are the first one's
        assert writer.embodiment == EMBODIMENT and len(writer) == 5
        for seed in range(len(writer), 8):
            writer.add(episode(seed))
    assert files(path) == undisturbed(tmp_path / "whole.zarr", 8)


def test_a_whole_store_is_appended_to_and_stays_as_it_was_until_that_is_done(tmp_path):
    path = tmp_path / "own.zarr"
    before = undisturbed(path, 5)
    with pytest.raises(KeyError), EpisodeWriter(path, append=True) as writer:
        writer.add(episode(5))
        raise KeyError
    assert files(path) == before and len(list(unfinished_episodes(path))) == 1
    with EpisodeWriter(path, EMBODIMENT, ATTRS, append=True) as writer:
        assert len(writer) == 6
        writer.add(episode(6))
    assert files(path) == undisturbed(tmp_path / "whole.zarr", 7)
    with EpisodeWriter(path, append=True):
        pass
    assert EpisodeStore.open(path).num_episodes == 7


def test_append_begins_a_store_where_there_is_none_and_needs_its_contract_for_that(tmp_path):
    path = tmp_path / "own.zarr"
    with pytest.raises(ValueError, match=r"own\.zarr.*pass the embodiment"):
        EpisodeWriter(path, append=True)
    with EpisodeWriter(path, EMBODIMENT, ATTRS, append=True) as writer:
        for seed in range(3):
            writer.add(episode(seed))
    assert files(path) == undisturbed(tmp_path / "whole.zarr", 3)


def test_another_contract_or_other_facts_are_not_appended(tmp_path):
    from dataclasses import replace

    path = tmp_path / "own.zarr"
    stopped(path, "exception", after=2)
    with pytest.raises(ValueError, match="control_hz: wanted 20.0, got 5.0"):
        EpisodeWriter(path, replace(EMBODIMENT, control_hz=5.0), ATTRS, append=True)
    with pytest.raises(ValueError, match="attrs"):
        EpisodeWriter(path, EMBODIMENT, {"task": "other"}, append=True)
    with pytest.raises(ValueError, match="`append=True` or `overwrite=True`"):
        EpisodeWriter(path, EMBODIMENT, ATTRS, append=True, overwrite=True)
    assert len(list(unfinished_episodes(path))) == 2


def test_killed_between_the_store_and_the_end_of_its_journal_nothing_is_there_twice(tmp_path, monkeypatch):
    path = tmp_path / "own.zarr"
    undisturbed(path, 2)

    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), EpisodeWriter(path, append=True) as writer:
        writer.add(episode(2))
        monkeypatch.setattr("flowpolicy.data.journal.remove_folder", killed)
    monkeypatch.undo()
    assert EpisodeStore.open(path).num_episodes == 3 and (tmp_path / ".own.zarr.journal").is_dir()
    with EpisodeWriter(path, append=True) as writer:
        assert len(writer) == 3
        writer.add(episode(3))
    assert files(path) == undisturbed(tmp_path / "whole.zarr", 4)


def test_an_older_store_gives_way_only_to_a_whole_one(tmp_path):
    path = tmp_path / "own.zarr"
    undisturbed(path, 5)
    with pytest.raises(KeyError), EpisodeWriter(path, EMBODIMENT, ATTRS, overwrite=True) as writer:
        writer.add(episode(0))
        raise KeyError
    assert EpisodeStore.open(path).num_episodes == 5
    assert finish_store(path) == 1 and EpisodeStore.open(path).num_episodes == 1


def test_an_episode_that_is_refused_costs_only_itself(tmp_path):
    path = tmp_path / "own.zarr"
    with EpisodeWriter(path, EMBODIMENT, ATTRS) as writer:
        writer.add(episode(0))
        with pytest.raises(ValueError, match="action"):
            writer.add(episode(9)._replace(action=episode(9).action[:, :1]))
        writer.add(episode(1))
    assert files(path) == undisturbed(tmp_path / "whole.zarr", 2)


def test_two_writers_of_one_store_are_refused(tmp_path):
    path = tmp_path / "own.zarr"
    with EpisodeWriter(path, EMBODIMENT, ATTRS) as writer:
        writer.add(episode(0))
        with pytest.raises(ValueError, match="is being written by another command"), EpisodeWriter(path, append=True):
            pass
        with pytest.raises(ValueError, match="is being written by another command"):
            finish_store(path)
    assert EpisodeStore.open(path).num_episodes == 1


def test_nothing_accepted_leaves_nothing_and_nothing_to_finish_is_one_line(tmp_path):
    path = tmp_path / "own.zarr"
    with pytest.raises(KeyError), EpisodeWriter(path, EMBODIMENT, ATTRS):
        raise KeyError
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match="no unfinished episodes"):
        finish_store(path)
    undisturbed(path, 1)
    with pytest.raises(FileNotFoundError, match="is whole already"):
        finish_store(path)


def test_a_collection_that_was_stopped_can_be_finished_too(tmp_path):
    """Its journal is the same: whoever wanted 100 and has no time for the last 40 takes the 60."""
    from flowpolicy.data.collect import collect_episodes
    from tests.data.test_collect import Dice, Stubborn

    with pytest.raises(ValueError, match="seed 11"):
        collect_episodes(lambda: Stubborn(Dice), tmp_path / "a.zarr", episodes=8, seed=1, attrs=ATTRS, progress=False)
    assert [one.seed for one in unfinished_episodes(tmp_path / "a.zarr")] == [1, 2, 4, 5, 7, 8, 10]
    with pytest.raises(ValueError, match="collect"), EpisodeWriter(tmp_path / "a.zarr", append=True):
        pass
    assert finish_store(tmp_path / "a.zarr") == 7
    collect_episodes(Dice, tmp_path / "b.zarr", episodes=7, seed=1, attrs=ATTRS, progress=False)
    assert files(tmp_path / "a.zarr") == files(tmp_path / "b.zarr")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_disk_that_is_full_and_then_free_costs_nothing_that_was_accepted(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True).returncode != 0:
        pytest.skip("this machine does not allow mounts")
    try:
        path, ballast = disk / "own.zarr", disk / "ballast"
        ballast.write_bytes(bytes(1 << 20))
        with EpisodeWriter(path, EMBODIMENT, ATTRS) as writer:
            with pytest.raises(OSError, match="disk full.*accepted") as caught:
                for seed in range(500):
                    writer.add(episode(seed, steps=400))
            assert caught.value.errno == errno.ENOSPC and 5 < len(writer) < 100
            kept = len(writer)
            ballast.unlink()
            writer.add(episode(kept, steps=400))
        assert EpisodeStore.open(path).episode_seeds.tolist() == [*range(kept + 1)]
        np.testing.assert_array_equal(EpisodeStore.open(path).load("action")[-400:], episode(kept, 400).action)
        assert [file.name for file in disk.iterdir()] == ["own.zarr"]
        # full when the store itself is to be written
        other = disk / "other.zarr"
        with pytest.raises(OSError, match="disk full.*finish_store"), EpisodeWriter(other, EMBODIMENT, ATTRS) as writer:
            for seed in range(3):
                writer.add(episode(seed, steps=400))
            with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
                while True:
                    file.write(bytes(4096))
        ballast.unlink()
        assert finish_store(other) == 3 and EpisodeStore.open(other).num_episodes == 3
    finally:
        subprocess.run(["umount", disk], check=True)
