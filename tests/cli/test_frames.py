"""How far it is from a verb to the mathematics: the frames of a traceback that begins in the loss."""

import traceback
from pathlib import Path

import pytest

from flowpolicy import policy
from flowpolicy.cli import train
from flowpolicy.cli.main import main


def test_at_most_four_frames_lie_between_the_verb_and_the_line_of_the_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "collect", "task=toy", "episodes=2", "out=toy.zarr"]) == 0

    def loss(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(policy.FlowPolicy, "loss", loss)
    with pytest.raises(ZeroDivisionError) as raised:
        train.main(["dataset.path=toy.zarr", "trainer.steps=1", "task.env=null", "out=run"])
    own = Path(policy.__file__).parent
    every = traceback.extract_tb(raised.value.__traceback__)
    frames = [frame for frame in every if Path(frame.filename).is_relative_to(own)]
    names = [frame.name for frame in frames]
    assert names[0] == "main" and "self.loss(" in str(frames[-1].line)
    assert len(names[1:]) <= 4, names
