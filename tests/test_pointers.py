"""Which checkpoint is meant: by a text file, an older run's link, a copied folder, or nothing; and if it is damaged."""

import os
import shutil
import subprocess
import warnings
from pathlib import Path

import pytest

from flowpolicy.checkpoint import load_weights, resolve_checkpoint
from tests.helpers import named, small_policy
from tests.trainers.test_checkpoints import Run

FILES = (
    "policy/config.json",
    "policy/embodiment.json",
    "policy/model.safetensors",
    "state/step.json",
    "state/model.safetensors",
    "state/optimizer.safetensors",
)


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with three checkpoints; `best` is the second."""
    run = tmp_path_factory.mktemp("made") / "run"
    checkpoints = Run(run / "checkpoints", keep_best=2)
    for step, score in ((10, 0.5), (20, 0.9), (30, 0.1)):
        checkpoints.save(step, score)
    return run


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def link(run: Path) -> None:
    """As flowpolicy wrote it before the pointers were text."""
    for name in ("best", "last"):
        target = named(run / "checkpoints" / name)
        (run / "checkpoints" / name).unlink()
        (run / "checkpoints" / name).symlink_to(target)


def goes_on(run: Path, step: int) -> None:
    """The run resumes at `step`, the next checkpoint is written, and both pointers are text again."""
    again = Run(run / "checkpoints", keep_best=2)
    assert again.restore() == step
    again.save(40, 0.7)
    assert (named(run / "checkpoints/best"), named(run / "checkpoints/last")) == ("000020", "000040")
    assert sorted(os.listdir(run / "checkpoints")) == ["000020", "000040", "best", "index.json", "last"]
    assert resolve_checkpoint(run).name == "000020" and Run(run / "checkpoints").restore() == 40


def test_the_pointers_are_text(run: Path) -> None:
    assert (run / "checkpoints/last").read_text() == "000030\n" and (run / "checkpoints/best").read_text() == "000020\n"
    for name, step in (("best", "000020"), ("last", "000030"), ("last/policy", "000030"), ("000010", "000010")):
        assert resolve_checkpoint(run / "checkpoints" / name) == run.resolve() / "checkpoints" / step
    assert resolve_checkpoint(run).name == "000020"
    goes_on(run, 30)


def test_an_older_run_with_links_is_read_and_goes_on(run: Path) -> None:
    link(run)
    assert resolve_checkpoint(run).name == "000020" and resolve_checkpoint(run / "checkpoints/last").name == "000030"
    assert resolve_checkpoint(run / "checkpoints/last/policy").name == "000030"
    goes_on(run, 30)


def test_a_copy_that_follows_links_goes_on(run: Path, tmp_path: Path) -> None:
    link(run)
    subprocess.run(["cp", "-rL", str(run), str(tmp_path / "copy")], check=True)
    copy = tmp_path / "copy"
    assert (copy / "checkpoints/last/policy").is_dir() and not (copy / "checkpoints/last").is_symlink()
    assert resolve_checkpoint(copy).name == "000020" and resolve_checkpoint(copy / "checkpoints/last").name == "000030"
    goes_on(copy, 30)


def test_a_copy_of_the_last_checkpoint_alone_goes_on_and_keeps_its_number(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy/checkpoints"
    shutil.copytree(run / "checkpoints/000030", copy / "last")
    assert resolve_checkpoint(tmp_path / "copy") == copy / "last" == resolve_checkpoint(copy / "last/policy")
    again = Run(copy, keep_best=2)
    assert again.restore() == 30
    again.save(40, 0.0)
    assert sorted(os.listdir(copy)) == ["000030", "000040", "best", "index.json", "last"]


def test_without_pointers_the_highest_number_is_last_and_the_highest_score_best(run: Path) -> None:
    for name in ("best", "last"):
        (run / "checkpoints" / name).unlink()
    assert resolve_checkpoint(run).name == "000020" and resolve_checkpoint(run / "checkpoints/last").name == "000030"
    goes_on(run, 30)


def test_no_link_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refused)
    Run(tmp_path).save(10, 0.5)
    assert Run(tmp_path).restore() == 10


@pytest.mark.parametrize("how", ["emptied", "cut", "garbage", "gone"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_passed_over_with_a_sentence(run: Path, name: str, how: str) -> None:
    file = run / "checkpoints/000030" / name
    content = file.read_bytes()
    file.write_bytes({"emptied": b"", "cut": content[: len(content) // 2], "garbage": b"\0" * 100}.get(how, b""))
    if how == "gone":
        file.unlink()
    with pytest.warns(UserWarning, match=rf"last: checkpoint 000030 is damaged \({name} .*\); 000020 is taken in its"):
        assert Run(run / "checkpoints", keep_best=2).restore() == 20
    last = run / "checkpoints/last"
    if name.startswith("policy"):
        with pytest.warns(UserWarning, match="000020 is taken in its place"):
            assert resolve_checkpoint(last).name == "000020"
    else:
        assert resolve_checkpoint(last).name == "000030"  # its policy is whole
    assert resolve_checkpoint(run).name == "000020"


def test_a_damaged_best_gives_way_to_the_next_best(run: Path) -> None:
    (run / "checkpoints/000020/policy/model.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="best: checkpoint 000020 is damaged .*; 000010 is taken in its place"):
        assert resolve_checkpoint(run).name == "000010"


def test_a_run_of_which_nothing_is_whole_is_not_begun_anew(run: Path) -> None:
    for step in (10, 20, 30):
        (run / f"checkpoints/{step:06d}/state/model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="000030/state/model.safetensors is damaged"):
        Run(run / "checkpoints").restore()


def test_a_named_checkpoint_is_that_one_or_an_error(run: Path) -> None:
    (run / "checkpoints/000030/policy/model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="000030"):
        load_weights(small_policy(), resolve_checkpoint(run / "checkpoints/000030") / "policy/model.safetensors")
