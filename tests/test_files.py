"""Files and folders are there whole or not at all; what a killed process left is removed by the next writer."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flowpolicy.data.store import EpisodeWriter
from flowpolicy.files import atomic_directory, claim_folder, remove_folder, replace_folder, write_atomic
from tests.helpers import EMBODIMENT, write_store


@pytest.fixture(scope="module")
def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_next_writer_removes_what_a_dead_process_left_and_nothing_else(tmp_path: Path, dead: int) -> None:
    (tmp_path / f".run.{dead}.part").mkdir()
    (tmp_path / f".run.{dead}.part" / "model").write_bytes(b"half")
    (tmp_path / f".notes.txt.{dead}.part").write_text("half")
    others = [f".run.{os.getppid()}.part", f".running.{dead}.part", ".run.part"]  # alive, another name, not ours
    for other in others:
        (tmp_path / other).mkdir()
    with atomic_directory(tmp_path / "run") as folder:
        (folder / "model").write_text("whole")
    assert names(tmp_path) == sorted([*others, f".notes.txt.{dead}.part", "run"])
    write_atomic(tmp_path / "notes.txt", "whole")
    assert names(tmp_path) == sorted([*others, "notes.txt", "run"])


def test_a_folder_that_was_only_set_aside_comes_back(tmp_path: Path, dead: int) -> None:
    (tmp_path / f".run.{dead}.old").mkdir()
    with pytest.raises(KeyError), atomic_directory(tmp_path / "run", replace=True):
        raise KeyError
    assert names(tmp_path) == ["run"]


def test_a_new_writer_removes_the_half_store_of_a_killed_one(tmp_path: Path, dead: int) -> None:
    write_store(tmp_path / f".demos.zarr.{dead}.part", episodes=1)
    with pytest.raises(KeyError), EpisodeWriter(tmp_path / "demos.zarr", EMBODIMENT, {}):
        raise KeyError
    assert names(tmp_path) == []


def test_a_swap_that_fails_puts_the_old_folder_back(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(FileNotFoundError):
        replace_folder(tmp_path / "missing", tmp_path / "run")
    assert names(tmp_path) == ["run"]


def test_a_delete_that_is_cut_short_leaves_nothing_under_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "000010").mkdir()
    (tmp_path / "000010" / "model").write_text("x")

    def killed(path: Path, *, ignore_errors: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove_folder(tmp_path / "000010")
    assert names(tmp_path) == [f".000010.{os.getpid()}.part"]


def test_processes_that_want_the_same_folder_get_one_each(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(claim_folder, [tmp_path / "runs" / "toy"] * 8))
    assert len(set(claimed)) == 8 and names(tmp_path / "runs")[:3] == ["toy", "toy_2", "toy_3"]
