"""What a crash, a signal, a limit of hours or a bad number may cost: nothing that was trained."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flowpolicy.checkpoint import resolve_checkpoint
from flowpolicy.cli.main import main
from flowpolicy.rl.settings import PPOSettings
from flowpolicy.rollout.chunk_env import Reward
from flowpolicy.stopping import Stop, Terminated
from flowpolicy.trainers.finetune_settings import FinetuneSettings
from flowpolicy.trainers.imitate import SimulatorCheck
from flowpolicy.trainers.imitation import ImitationTrainer, TrainerSettings
from flowpolicy.trainers.ppo import LoopSettings
from tests.helpers import named, write_store
from tests.trainers.test_imitation import _trainer, _weights

EVERY = {"log_every": 5, "eval_every": 10, "checkpoint_every": 0}


def succeeded(policy: Any, step: int) -> dict[str, float]:
    return {"eval/success_once": 1.0 / step}


def lines(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without times."""
    found = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("time")} for line in found]


def go_on(folder: Path, **settings: Any) -> None:
    """Resume as `train` does, and finish."""
    trainer = _trainer(folder, evaluate=succeeded, **{**EVERY, **settings})
    step = trainer.resume()
    trainer.tracker.truncate_after(step, evaluation=trainer.pending)
    trainer.run()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    _trainer(folder, evaluate=succeeded, **EVERY).run()
    return folder


def same(one: Path, two: Path) -> None:
    assert lines(one) == lines(two)
    for name in ("index.json", "best", "last"):
        assert (one / "run/checkpoints" / name).read_text() == (two / "run/checkpoints" / name).read_text()
    assert all(torch.equal(value, _weights(two / "run")[name]) for name, value in _weights(one / "run").items())


def test_an_evaluation_that_fails_costs_nothing_and_is_made_up_for(whole: Path, tmp_path: Path) -> None:
    def crash(policy: Any, step: int) -> dict[str, float]:
        if step == 30:
            raise RuntimeError("the simulator died")
        return succeeded(policy, step)

    with pytest.raises(RuntimeError, match="simulator died"):
        _trainer(tmp_path, evaluate=crash, **EVERY).run()
    assert named(tmp_path / "run/checkpoints/last") == "000030"
    go_on(tmp_path)
    same(whole, tmp_path)


@pytest.mark.parametrize("moment", ["tracker.sync", "checkpoints.set_score"])
def test_a_kill_around_the_score_neither_loses_nor_doubles_the_evaluation(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    trainer = _trainer(tmp_path, evaluate=succeeded, **EVERY)
    part, name = moment.split(".")
    call = getattr(getattr(trainer, part), name)

    def killed(*arguments: Any) -> None:
        if trainer.step == 20 and lines(tmp_path)[-1].keys() >= {"eval/success_once"}:
            raise KeyboardInterrupt
        call(*arguments)

    monkeypatch.setattr(getattr(trainer, part), name, killed)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    go_on(tmp_path)
    same(whole, tmp_path)


def sigterm_at(trainer: ImitationTrainer, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    update = trainer._update

    def wrapped(*arguments: Any) -> Any:
        if trainer.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(*arguments)

    monkeypatch.setattr(trainer, "_update", wrapped)


def test_sigterm_writes_a_checkpoint_from_which_the_run_goes_on_bit_for_bit(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = _trainer(tmp_path, evaluate=succeeded, **EVERY)
    sigterm_at(trainer, 16, monkeypatch)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(
        Terminated, match="stopped by SIGTERM at step 17 of 40; `resume=True` goes on from there"
    ) as stop:
        trainer.run()
    assert stop.value.code == 143 and signal.getsignal(signal.SIGTERM) is before
    assert named(tmp_path / "run/checkpoints/last") == "000017"
    go_on(tmp_path)
    same(whole, tmp_path)


def test_sigterm_in_an_evaluation_ends_it_at_once(whole: Path, tmp_path: Path) -> None:
    def terminated(policy: Any, step: int) -> dict[str, float]:
        if step == 20:
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("the evaluation went on")
        return succeeded(policy, step)

    with pytest.raises(Terminated, match="at step 20 of 40"):
        _trainer(tmp_path, evaluate=terminated, **EVERY).run()
    go_on(tmp_path)
    same(whole, tmp_path)


def test_max_hours_end_with_a_checkpoint_and_resume_goes_on(whole: Path, tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, evaluate=succeeded, max_hours=1e-9, **EVERY)
    trainer.run()
    assert trainer.step == 1 and named(tmp_path / "run/checkpoints/last") == "000001"
    go_on(tmp_path, max_hours=0)
    same(whole, tmp_path)


def test_a_thread_trains_without_the_signal() -> None:
    errors: list[BaseException] = []

    def watch() -> None:
        try:
            with Stop().watched():
                pass
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=watch)
    thread.start()
    thread.join()
    assert not errors


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = _trainer(tmp_path, checkpoint_every=10)
    update = trainer._update

    def poisoned(*arguments: Any) -> Any:
        found = update(*arguments)
        if trainer.step == 15:
            trainer.ema.module.head.net.get_parameter("output.weight")[0, 0] = float("inf")
        return found

    monkeypatch.setattr(trainer, "_update", poisoned)
    with pytest.raises(ValueError, match=r"step 20: head.net.output.weight \(policy\) is not finite, so no checkpoint"):
        trainer.run()
    assert named(tmp_path / "run/checkpoints/last") == "000010"
    assert all(value.isfinite().all() for value in _weights(tmp_path / "run").values())


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("settings", "changes", "said"),
    [
        (TrainerSettings(), {"ema_power": -1.0}, "`ema_power` must be positive, got -1.0"),
        (TrainerSettings(), {"ema_power": 0}, "`ema_power` must be positive, got 0"),
        (TrainerSettings(), {"ema_max_decay": 1.0}, "`ema_max_decay` must be below 1, got 1.0"),
        (TrainerSettings(), {"ema_max_decay": -0.1}, "`ema_max_decay` must be at least 0, got -0.1"),
        (TrainerSettings(), {"lr": INF}, "`lr` must be a finite number, got inf"),
        (TrainerSettings(), {"lr": 0}, "`lr` must be positive, got 0"),
        (TrainerSettings(), {"grad_clip": INF}, "`grad_clip` must be a finite number, got inf"),
        (TrainerSettings(), {"weight_decay": INF}, "`weight_decay` must be a finite number"),
        (TrainerSettings(), {"obs_noise": NAN}, "`obs_noise` must be a finite number"),
        (TrainerSettings(), {"warmup_steps": -1}, "`warmup_steps` must be at least 0, got -1"),
        (TrainerSettings(), {"steps": 1.5}, "`steps` must be a whole number, got 1.5"),
        (TrainerSettings(), {"checkpoint_every": 0.5}, "`checkpoint_every` must be a whole number, got 0.5"),
        (TrainerSettings(), {"max_hours": -1}, "`max_hours` must be at least 0, got -1"),
        (LoopSettings(), {"decisions": 1.5}, "`decisions` must be a whole number, got 1.5"),
        (LoopSettings(), {"max_hours": NAN}, "`max_hours` must be a finite number"),
        (PPOSettings(), {"actor_lr": INF}, "`actor_lr` must be a finite number, got inf"),
        (PPOSettings(), {"entropy_weight": NAN}, "`entropy_weight` must be a finite number"),
        (PPOSettings(), {"gamma": 1.1}, "`gamma` must be between 0 and 1, got 1.1"),
        (Reward(), {"success": NAN}, "`success` of the reward must be a finite number"),
        (FinetuneSettings(), {"eval_episodes": 0}, "`eval_episodes` must be at least 1, got 0"),
        (FinetuneSettings(), {"envs": 0}, "`envs` must be at least 1, got 0"),
        (FinetuneSettings(), {"min_success": NAN}, "`min_success` must be a finite number"),
        (SimulatorCheck(lambda: None), {"episodes": 0}, "`check.episodes` must be at least 1, got 0"),
        (SimulatorCheck(lambda: None), {"envs": 0}, "`check.envs` must be at least 1, got 0"),
        (SimulatorCheck(lambda: None), {"num_steps": 0}, "`check.num_steps` must be at least 1, got 0"),
    ],
)
def test_a_number_that_would_spoil_the_run_is_refused_before_it(settings: Any, changes: dict, said: str) -> None:
    with pytest.raises(ValueError) as error:
        replace(settings, **changes)
    assert str(error.value).startswith(said)


@pytest.fixture
def train_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    monkeypatch.chdir(tmp_path)
    write_store(tmp_path / "demos.zarr")
    yield [
        "train",
        "dataset.path=demos.zarr",
        "task=toy",
        "policy.net.width=16",
        "trainer.log_every=100",
        "policy.obs_keys=[agent_pos,env_state]",
    ]


def test_the_command_says_that_it_stopped_and_how_to_go_on(
    train_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main([*train_words, "trainer.max_hours=1e-9", "out=run"]) == 0
    assert "stopped     after trainer.max_hours=1e-09 at step 1 of 6000; resume=true goes on" in capsys.readouterr().out
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'envs'}"}
    command = [sys.executable, "-m", "flowpolicy", *train_words, "out=run", "resume=true", "trainer.steps=1000000"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run/metrics.jsonl"
    while process.poll() is None and not metrics.stat().st_size:
        pass
    process.send_signal(signal.SIGTERM)
    error = process.communicate()[1].splitlines()[-1]
    assert process.returncode == 143
    step = int(named(tmp_path / "run/checkpoints/last"))
    assert error == f"flowpolicy train: stopped by SIGTERM at step {step} of 1000000; resume=true goes on from there"
    assert step >= 100 and resolve_checkpoint("run").name == f"{step:06d}"
