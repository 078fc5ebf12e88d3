"""Two commands that write to one folder: the first finishes undisturbed, the second is refused by one line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flowpolicy.checkpoint import load_policy
from flowpolicy.cli.main import main
from tests.helpers import write_store
from tests.test_locks import HOLDER

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'envs'}", "OMP_NUM_THREADS": "1"}

SMALL = ["policy.net.width=16", "policy.obs_keys=[agent_pos,env_state]"]


def test_a_second_training_into_one_folder_is_refused_and_the_first_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    write_store(tmp_path / "demos.zarr")
    words = [
        "train",
        "dataset.path=demos.zarr",
        "task=toy",
        "out=run",
        *SMALL,
        "trainer.steps=200",
        "resume=true",
        "trainer.log_every=10",
        "trainer.checkpoint_every=100",
    ]
    first = subprocess.Popen([sys.executable, "-m", "flowpolicy", *words], env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    metrics = tmp_path / "run/metrics.jsonl"
    while first.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.002)
    first.send_signal(signal.SIGSTOP)  # in the middle of it, however slow this machine is
    try:
        assert main(words) == 2
    finally:
        first.send_signal(signal.SIGCONT)
    assert f"run is being written by another command (process {first.pid} on " in capsys.readouterr().err
    assert first.wait() == 0
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == list(range(10, 201, 10))
    load_policy(tmp_path / "run")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step."""
    folder = tmp_path_factory.mktemp("made")
    store = write_store(folder / "demos.zarr")
    words = ["train", f"dataset.path={store}", "task=toy", f"out={folder / 'made'}", *SMALL, "trainer.steps=1"]
    assert main(words) == 0
    return folder


@pytest.mark.parametrize(
    "words",
    [
        ["train", "dataset.path=demos.zarr", "task=toy", "out=out", *SMALL],
        ["finetune", "checkpoint=made", "task=toy", "task.id=reach", "out=out"],
        ["protocol", "tasks=[assembly-v3]", "trainer.eval_every=10", "task=metaworld", "out=out"],
        ["protocol", "experiment=heads_metaworld", "tasks=[assembly-v3]", "out=out"],
        ["compare", "made", "made/checkpoints/last", "out=out"],
    ],
)
def test_a_folder_that_a_process_holds_is_left_alone(
    words: list[str], made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(made)
    command = [sys.executable, "-c", HOLDER, "out"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        assert process.stdout and process.stdout.readline() == "held\n"
        assert main(words) == 2
        process.communicate("done")
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"out is being written by another command (process {process.pid} on" in error
    assert not Path("out").exists()
