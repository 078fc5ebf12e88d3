"""Checkpoints on disk: whatever moment a save is cut short at, the run goes on from there and leaves nothing behind."""

import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flowpolicy import files
from flowpolicy.checkpoint import resolve_checkpoint
from flowpolicy.trainers.checkpoints import Checkpoints
from flowpolicy.trainers.ema import ExponentialMovingAverage
from tests.helpers import named, small_policy


class Killed(BaseException):
    """Stands for signal 9: no `except OSError` sees it, and nothing on disk changes after it."""


class Run:
    """A policy with optimiser and average, and their checkpoints."""

    def __init__(self, folder: Path, *, keep_best: int = 1) -> None:
        policy = small_policy()
        self.parts = {
            "policy": policy,
            "ema": ExponentialMovingAverage(policy),
            "optimizer": torch.optim.AdamW(policy.parameters()),
        }
        self.checkpoints = Checkpoints(folder, facts={}, keep_best=keep_best)

    def save(self, step: int, score: float | None = None) -> None:
        self.checkpoints.save(step, score=score, **self.parts)

    def restore(self) -> int | None:
        return self.checkpoints.restore(**self.parts)


def die_at(count: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """From the `count`-th change of the disk on, every one raises Killed; tells whether it came to that."""
    seen = [0]

    def deadly(call: Callable) -> Callable:
        def wrapped(*arguments, **options):
            seen[0] += 1
            if seen[0] >= count:
                if call is rmtree and seen[0] == count:  # killed in the middle: the scores are gone
                    for file in Path(arguments[0]).rglob("step.json"):
                        unlink(file)
                raise Killed
            return call(*arguments, **options)

        return wrapped

    rmtree, unlink = shutil.rmtree, Path.unlink
    for name in ("replace", "symlink"):
        monkeypatch.setattr(os, name, deadly(getattr(os, name)))
    monkeypatch.setattr(shutil, "rmtree", deadly(rmtree))
    monkeypatch.setattr(Path, "unlink", lambda *a, **k: unlink(*a, **k) if seen[0] < count else None)
    return lambda: seen[0] >= count


def test_a_save_killed_at_any_change_of_the_disk_is_resumed_and_cleaned_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restored = []
    for count in range(1, 100):
        folder = tmp_path / str(count)
        before = Run(folder)
        before.save(10, 0.5)
        before.save(20, 0.2)
        with monkeypatch.context() as patch:
            died = die_at(count, patch)
            with suppress(Killed):
                before.save(30, 0.9)  # replaces `last` and `best`, and both of the older checkpoints go
            finished = not died()
        resolve_checkpoint(folder / "last")
        monkeypatch.setattr(files, "_PROCESS", f"{count:08x}")  # another process goes on
        after = Run(folder)
        restored.append(after.restore())
        if restored[-1] == 20:
            after.save(30, 0.9)
        after.save(40, 0.1)
        assert sorted(os.listdir(folder)) == ["000030", "000040", "best", "index.json", "last"], count
        assert (named(folder / "best"), named(folder / "last")) == ("000030", "000040")
        assert json.loads((folder / "index.json").read_text()) == {"000030": 0.9, "000040": 0.1}
        if finished:
            break
    assert finished and count > 10 and set(restored) == {20, 30}


def test_a_folder_without_state_does_not_stop_the_next_save(tmp_path: Path) -> None:
    """An older flowpolicy, killed while it deleted a checkpoint, left such folders."""
    run = Run(tmp_path)
    run.save(10, 0.5)
    (tmp_path / "000005" / "policy").mkdir(parents=True)
    assert run.restore() == 10
    run.save(20, 0.6)
    assert named(tmp_path / "best") == "000020"


def test_steps_beyond_a_million_are_ranked_as_numbers(tmp_path: Path) -> None:
    run = Run(tmp_path, keep_best=2)
    for step, score in ((999_999, 0.9), (1_000_000, 0.9), (1_000_010, 0.1), (1_000_020, 0.2)):
        run.save(step, score)
    assert named(tmp_path / "best") == "1000000"  # of two equal ones the later
    index = json.loads((tmp_path / "index.json").read_text())
    assert list(index) == ["999999", "1000000", "1000020"]
    assert run.restore() == 1_000_020


def test_without_any_kept_there_is_no_best(tmp_path: Path) -> None:
    Run(tmp_path).save(10, 0.5)
    assert named(tmp_path / "best") == "000010"
    Run(tmp_path, keep_best=0).save(20, 0.6)
    assert sorted(os.listdir(tmp_path)) == ["000020", "index.json", "last"]


def _bent(file: Path, how: str) -> None:
    """A header of the right length that says nothing, or tensors of another optimiser."""
    content = file.read_bytes()
    if how == "header":
        file.write_bytes(content[:8] + content[8:].replace(b'"dtype"', b'"dtyqe"'))
    else:
        save_file({how: torch.zeros(3)}, file)


@pytest.mark.parametrize(
    ("how", "said"),
    [("header", "damaged"), ("99.exp_avg", "none of the optimiser's"), ("0.exp_avg", "shape"), ("exp_avg", "none of")],
)
def test_an_optimiser_that_cannot_be_read_is_named(tmp_path: Path, how: str, said: str) -> None:
    run = Run(tmp_path)
    for parameter in run.parts["policy"].parameters():
        parameter.grad = torch.ones_like(parameter)
    run.parts["optimizer"].step()
    run.save(1)
    file = tmp_path / "000001/state/optimizer.safetensors"
    _bent(file, how)
    with pytest.raises(ValueError, match=rf"{re.escape(str(file))}.*{said}"):
        run.restore()
