"""A power cut at any moment costs at most what was being written: a checkpoint that was finished is on the disk."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from flowpolicy.checkpoint import load_policy, load_weights, resolve_checkpoint
from flowpolicy.cli.main import main
from flowpolicy.files import append_lines, atomic_directory, remove_folder, write_atomic
from tests.helpers import last, named, small_policy, write_store
from tests.power import Disk, lay_out
from tests.trainers.test_checkpoints import Run

WEIGHTS = "policy/model.safetensors"


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    (root := tmp_path / "disk").mkdir()
    with monkeypatch.context() as patch:
        disk = Disk(root, patch)
        yield disk
    disk.close()


def test_a_file_a_folder_and_a_line_are_old_or_new_whatever_was_flushed(disk: Disk) -> None:
    wanted = []
    for content in (b"one", b"two"):
        write_atomic(disk.root / "file", content)
        with atomic_directory(disk.root / "folder", replace=True) as new:
            (new / "below").mkdir()
            (new / "below" / "part").write_bytes(content)
        append_lines(disk.root / "lines", [content.decode()])
        wanted.append({"file": content, "folder": None, "folder/below": None, "folder/below/part": content})
    for kind, tree in disk.states:
        seen = {name: content for name, content in tree.items() if not name.startswith((".", "lines"))}
        assert tree.get("file") in (None, b"one", b"two"), (kind, tree)
        assert seen.get("folder/below/part", b"one") in (b"one", b"two"), (kind, tree)
        assert ("folder" in seen) == ("folder/below/part" in seen), (kind, tree)
        assert tree.get("lines", b"") in (b"", b"one\n", b"one\ntwo\n"), (kind, tree)
    for kind in ("late", "early"):
        after = [tree for name, tree in disk.states if name == kind][-1]
        assert {name: content for name, content in after.items() if not name.startswith(".")} == {
            **wanted[1],
            "lines": b"one\ntwo\n",
        }
    remove_folder(disk.root / "folder")
    parts = [("folder" in tree, "folder/below/part" in tree) for _, tree in disk.states]
    assert (True, False) not in parts and parts[-1] == (False, False)


def test_a_checkpoint_that_was_finished_is_there_after_a_power_cut_at_any_moment(disk: Disk, tmp_path: Path) -> None:
    run, finished = Run(disk.root / "run" / "checkpoints"), []
    for step, score in ((10, 0.5), (20, 0.2), (30, 0.9)):
        run.save(step, score)
        finished.append((len(disk.states), step))
    restored = set()
    for number, (kind, tree) in enumerate(disk.states):
        least = max((step for count, step in finished if count <= number), default=None)
        after = Run(lay_out(tree, tmp_path / str(number)) / "run" / "checkpoints")
        found = after.restore()
        assert found == least or found == (least or 0) + 10, (kind, number, sorted(tree))
        if least is not None:
            load_weights(small_policy(), resolve_checkpoint(tmp_path / str(number) / "run") / WEIGHTS)
        restored.add(found)
        if number % 10 == 0:
            after.save(40, 0.1)
            assert after.restore() == 40
        shutil.rmtree(tmp_path / str(number))
    assert restored == {None, 10, 20, 30}


def test_a_run_goes_on_after_a_power_cut_just_after_the_first_checkpoint(disk: Disk, tmp_path: Path) -> None:
    write_store(tmp_path / "demos.zarr")
    words = [
        "train",
        f"dataset.path={tmp_path / 'demos.zarr'}",
        "task=toy",
        "policy.net.width=16",
        "trainer.steps=8",
        "policy.obs_keys=[agent_pos,env_state]",
        "trainer.checkpoint_every=4",
        "trainer.log_every=2",
    ]
    whole = disk.root / "run"
    assert main([*words, f"out={whole}"]) == 0
    for kind in ("late", "early"):
        tree = next(tree for name, tree in disk.states if name == kind and "run/checkpoints/last" in tree)
        broken = lay_out(tree, tmp_path / kind) / "run"
        json.loads((broken / "run.json").read_text())
        assert named(broken / "checkpoints/last") == "000004" and (broken / ".hydra/config.yaml").stat().st_size
        assert [json.loads(line)["step"] for line in (broken / "metrics.jsonl").read_text().splitlines()] == [2, 4]
        assert main([*words, f"out={broken}", "resume=true"]) == 0
        for name, value in load_policy(last(whole)).state_dict().items():
            assert torch.equal(value, load_policy(last(broken)).state_dict()[name]), (kind, name)


@pytest.fixture
def partition(tmp_path: Path) -> Iterator[Path]:
    """A mounted ext4 file system of 32 MB in tmp_path/image; skipped where only others may make one."""
    image, folder = tmp_path / "image", tmp_path / "partition"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(32 * 2**20)
    try:
        subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(folder)], check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("this user may not mount a file system in a file")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_real_file_system_copied_just_after_last_moved_holds_the_checkpoint(partition: Path, tmp_path: Path) -> None:
    """The copy of the image is what the disk holds: nothing that is only in memory."""
    run = Run(partition / "run" / "checkpoints")
    for step in (10, 20):
        run.save(step, 0.1 * step)
        shutil.copy(tmp_path / "image", tmp_path / "after")
        (copy := tmp_path / f"copy_{step}").mkdir()
        subprocess.run(["mount", "-o", "loop", str(tmp_path / "after"), str(copy)], check=True)
        try:
            after = Run(copy / "run" / "checkpoints")
            assert after.restore() == step
            after.save(30, 0.0)
            load_weights(small_policy(), resolve_checkpoint(copy / "run") / WEIGHTS)
        finally:
            subprocess.run(["umount", str(copy)], check=True)
