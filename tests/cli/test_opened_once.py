"""Every verb opens a checkpoint once and passes it on."""

from collections import Counter
from pathlib import Path

import pytest

from flowpolicy import checkpoint
from flowpolicy.cli.main import main
from tests.catalogue import toy_run

ROLLOUT = ["episodes=1", "envs=1"]
VERBS = {
    "evaluate": ["evaluate", "checkpoint=run", *ROLLOUT, "num_steps=[1,2]", "out=eval"],
    "bench": ["bench", "checkpoint=run", "task=toy", "repeats=1", "warmup=1", "observations=2", "out=bench"],
    "export": ["export", "checkpoint=run", "out=bundle", "episodes=1", "observations=2", "repeats=1", "warmup=1"],
    "compare": ["compare", "run:1", "run:2", "other", *ROLLOUT, "out=compared"],
    "sweep": ["sweep", "checkpoints=[run,other]", "episodes=1", "out=swept"],
    "finetune": ["finetune", "checkpoint=run", "debug=true", "preflight.episodes=0", "receipt.episodes=0", "out=rl"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_checkpoint_is_opened_once(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    toy_run(tmp_path / "run")
    toy_run(tmp_path / "other")
    opened: Counter[Path] = Counter()
    read = checkpoint._read_record
    monkeypatch.setattr(checkpoint, "_read_record", lambda file: opened.update([file]) or read(file))
    assert main(VERBS[verb]) == 0
    given = [file for file in opened if "rl" not in file.parts]  # not the ones that fine-tuning wrote
    assert set(opened.values()) == {1} and len(given) == (2 if verb in ("compare", "sweep") else 1)
