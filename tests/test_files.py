"""Files and folders are there whole or not at all; what a killed process left is removed by the next writer."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flowpolicy import files
from flowpolicy.data.store import EpisodeWriter
from flowpolicy.files import atomic_directory, beside, claim_folder, remove_folder, replace_folder, write_atomic
from tests.helpers import EMBODIMENT, write_store


@pytest.fixture(scope="module")
def dead() -> str:
    """What stands in the hidden names of a process of this host that has ended."""
    code = "from pathlib import Path; from flowpolicy.files import beside; print(beside(Path('x')).name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip().removeprefix(".x.").removesuffix(".part")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def aged(path: Path, monkeypatch: pytest.MonkeyPatch, *, seconds: float) -> None:
    """From here on `path` is so old."""
    later = path.lstat().st_ctime + seconds
    monkeypatch.setattr(time, "time", lambda: later)


def test_the_next_writer_removes_what_a_dead_process_left_and_nothing_else(tmp_path: Path, dead: str) -> None:
    (tmp_path / f".run.{dead}.part").mkdir()
    (tmp_path / f".run.{dead}.part" / "model").write_bytes(b"half")
    (tmp_path / f".notes.txt.{dead}.part").write_text("half")
    pid = dead.split("-")[1]
    alive = dead.replace(pid, str(os.getppid()))
    # alive, another name, not ours, and one whose host is not known
    others = [f".run.{alive}.part", f".running.{dead}.part", ".run.part", f".run.{pid}.part"]
    for other in others:
        (tmp_path / other).mkdir()
    with atomic_directory(tmp_path / "run") as folder:
        (folder / "model").write_text("whole")
    assert names(tmp_path) == sorted([*others, f".notes.txt.{dead}.part", "run"])
    write_atomic(tmp_path / "notes.txt", "whole")
    assert names(tmp_path) == sorted([*others, "notes.txt", "run"])


def test_a_process_before_this_one_with_its_number_is_dead(tmp_path: Path, dead: str) -> None:
    """Every container begins with the same numbers."""
    left = dead.replace(dead.split("-")[1], str(os.getpid()))
    (tmp_path / f".notes.txt.{left}.part").write_text("half")
    mine = beside(tmp_path / "notes.txt")
    mine.write_text("half")
    write_atomic(tmp_path / "notes.txt", "whole")
    assert names(tmp_path) == sorted([mine.name, "notes.txt"])


@pytest.mark.parametrize("hours", [1, 25])
def test_a_leftover_of_another_host_is_one_after_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    left = [f".notes.txt.01234567-{os.getppid()}-89abcdef-01234567.part", f".notes.txt.{os.getppid()}.part"]
    for name in left:
        (tmp_path / name).write_text("half")
    aged(tmp_path / left[0], monkeypatch, seconds=hours * 3600)
    write_atomic(tmp_path / "notes.txt", "whole")
    assert names(tmp_path) == sorted(["notes.txt", *(left if hours < 24 else [])])


WRITER = """
import sys
from pathlib import Path
from flowpolicy.files import atomic_directory
with atomic_directory(Path(sys.argv[1]), replace=True) as folder:
    (folder / "model").write_text("whole")
    print("begun", flush=True)
    sys.stdin.read()
"""


def test_a_live_writer_on_another_host_keeps_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = [sys.executable, "-c", WRITER, str(tmp_path / "run")]
    with subprocess.Popen(writer, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "begun\n"

        def unknown(pid: int, signal: int) -> None:
            raise ProcessLookupError(pid, signal)

        with monkeypatch.context() as elsewhere:  # as this host looks to a job on another one
            elsewhere.setattr(socket, "gethostname", lambda: "elsewhere")
            elsewhere.setattr(os, "kill", unknown)
            files.host.cache_clear()
            with pytest.raises(KeyError), atomic_directory(tmp_path / "run"):
                raise KeyError
        files.host.cache_clear()
        process.communicate("go")
    assert process.returncode == 0 and names(tmp_path) == ["run"] and names(tmp_path / "run") == ["model"]


MANY = """
import sys
from pathlib import Path
from flowpolicy.files import write_atomic
from flowpolicy.json_files import write_json
for n in range(100):
    write_atomic(Path(sys.argv[1], "notes.txt"), str(n))
    write_json(Path(sys.argv[1], "asked.json"), {"n": n})  # as the parts of a sweep do
"""
NAMESPACE = ["unshare", "--user", "--map-root-user", "--pid", "--fork"]


def may_make_namespaces() -> bool:
    return bool(shutil.which("unshare")) and subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not may_make_namespaces(), reason="this user may make no process namespaces")
def test_writers_in_separate_process_namespaces_do_not_disturb_each_other(tmp_path: Path) -> None:
    """As containers with a common folder do, in each of which the process has number 1."""
    command = [*NAMESPACE, sys.executable, "-c", MANY, str(tmp_path)]
    writers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    errors = [writer.communicate()[1] for writer in writers]
    assert errors == [""] * 4 and names(tmp_path) == ["asked.json", "notes.txt"]


def test_nothing_else_makes_up_temporary_names_in_shared_folders() -> None:
    """`beside` does, with host and random words; the system's own temporary folders are nobody else's."""
    library = [*Path(files.__file__).parent.rglob("*.py"), *Path("envs").rglob("*.py")]
    own = r"""["'][^"'\n]*(?<!self)(?<!grid)\.(?:tmp|part|temp)\b|getpid\(|mkstemp|NamedTemporary|uuid"""
    found = {path.name for path in library if re.search(own, path.read_text())}
    assert found == {"files.py", "locks.py"}  # the latter writes into its lock who holds it


def test_a_folder_that_was_only_set_aside_comes_back(tmp_path: Path, dead: str) -> None:
    (tmp_path / f".run.{dead}.old").mkdir()
    with pytest.raises(KeyError), atomic_directory(tmp_path / "run", replace=True):
        raise KeyError
    assert names(tmp_path) == ["run"]


@pytest.mark.parametrize("seconds", [10, 100])
def test_a_folder_set_aside_before_a_reboot_comes_back_after_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    aside = tmp_path / f".run.01234567-{os.getppid()}-89abcdef-01234567.old"
    aside.mkdir()
    aged(aside, monkeypatch, seconds=seconds)
    with pytest.raises(KeyError), atomic_directory(tmp_path / "run", replace=True):
        raise KeyError
    assert names(tmp_path) == ([aside.name] if seconds < 60 else ["run"])


def test_a_new_writer_removes_the_half_store_of_a_killed_one(tmp_path: Path, dead: str) -> None:
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
    assert len(names(tmp_path)) == 1 and names(tmp_path)[0].startswith(".000010.")


def test_processes_that_want_the_same_folder_get_one_each(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(claim_folder, [tmp_path / "runs" / "toy"] * 8))
    assert len(set(claimed)) == 8 and names(tmp_path / "runs")[:3] == ["toy", "toy_2", "toy_3"]
