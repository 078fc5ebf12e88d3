"""The imitation loop: it learns, clips, keeps the best, and resumes bit for bit after a kill."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from flowpolicy.checkpoint import create_policy, load_policy
from flowpolicy.data.dataset import SequenceDataset
from flowpolicy.data.store import EpisodeStore
from flowpolicy.tracking import JsonlTracker
from flowpolicy.trainers import imitation
from flowpolicy.trainers.checkpoints import Checkpoints
from flowpolicy.trainers.fitting import fit_normalizers
from flowpolicy.trainers.imitation import ImitationTrainer, TrainerSettings
from flowpolicy.trainers.validation import Validation
from tests.helpers import EMBODIMENT, POLICY_CONFIG, named, needs_compiler, write_store

COMPILED = [pytest.mark.slow, pytest.mark.ci, needs_compiler]


def _trainer(tmp_path: Path, *, evaluate=None, **settings) -> ImitationTrainer:
    store = tmp_path / "demos.zarr"
    if not store.exists():
        write_store(store)
    torch.manual_seed(0)
    policy = create_policy(POLICY_CONFIG, EMBODIMENT)
    dataset = SequenceDataset.from_store(EpisodeStore.open(store), horizon=8, obs_horizon=2)
    fit_normalizers(policy, dataset)
    options = {"steps": 40, "batch_size": 16, "log_every": 10, "checkpoint_every": 0, "warmup_steps": 5, **settings}
    return ImitationTrainer(
        policy,
        dataset,
        settings=TrainerSettings(**options),
        checkpoints=Checkpoints(tmp_path / "run/checkpoints", facts={}),
        tracker=JsonlTracker(tmp_path / "run/metrics.jsonl"),
        seed=3,
        evaluate=evaluate,
        progress=False,
    )


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return load_policy(run / "checkpoints/last").state_dict()


def test_training_lowers_the_loss_and_logs_what_it_measured(tmp_path: Path) -> None:
    _trainer(tmp_path, steps=400, log_every=20).run()
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(20, 401, 20))
    assert lines[-1]["train/loss_meanflow"] < 0.5 * lines[0]["train/loss_meanflow"]
    wanted = {"train/loss", "train/loss_velocity", "train/grad_norm", "train/lr", "time/data_frac", "time/step_ms"}
    assert wanted <= lines[0].keys() and lines[-1]["train/lr"] < 1e-5


def test_a_batch_too_small_for_the_head_is_refused_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="MeanFlowHead: wanted at least 3 rows .* got 2; raise `batch_size`"):
        _trainer(tmp_path, batch_size=2)


def test_the_learning_rate_may_be_on_its_way_when_a_run_ends(tmp_path: Path) -> None:
    """MP1 stops at a third of its schedule, with 0.75 of the learning rate."""
    trainer = _trainer(tmp_path, steps=15, cosine_steps=45, warmup_steps=0, batch_size=4)
    trainer.run()
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * 0.5 * (1 + math.cos(math.pi * 14 / 45)))


@pytest.mark.parametrize(("flags", "expected"), [("avx2 avx512_bf16", True), ("amx_bf16", True), ("avx512f", False)])
def test_auto_is_bfloat16_where_the_processor_multiplies_in_it(
    flags: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imitation, "processor_flags", lambda: set(flags.split()))
    cpu = torch.device("cpu")
    assert imitation.uses_bfloat16("auto", cpu) is expected
    assert imitation.uses_bfloat16("bf16", cpu) and not imitation.uses_bfloat16("fp32", cpu)


def test_validation_sees_other_episodes_and_changes_with_the_weights_alone(tmp_path: Path) -> None:
    write_store(tmp_path / "demos.zarr")
    store = EpisodeStore.open(tmp_path / "demos.zarr")
    held_out = SequenceDataset.from_store(store, horizon=8, obs_horizon=2, episodes=range(3, store.num_episodes))
    rest = SequenceDataset.from_store(store, horizon=8, obs_horizon=2, episodes=range(3))
    assert len(held_out) + len(rest) == store.num_steps and len(rest) == store.episode_ends[2]
    assert torch.equal(held_out.action, torch.from_numpy(store.load("action")[len(rest) :]))

    trainer = _trainer(tmp_path, steps=200, checkpoint_every=100, log_every=0)
    trainer.validate = Validation(held_out, seed=0)
    before = trainer.validate(trainer.ema.module)
    assert before == trainer.validate(trainer.ema.module)
    trainer.run()
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [100, 200]
    assert lines[-1]["val/action_mse"] < 0.7 * before["val/action_mse"]


def test_gradients_are_clipped_before_the_step(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, grad_clip=1e-3)
    seen = []
    step = trainer.optimizer.step
    trainer.optimizer.step = lambda *a, **k: (
        seen.append(torch.stack([p.grad.norm() for p in trainer.policy.parameters()]).norm()),
        step(*a, **k),
    )  # type: ignore[method-assign]
    trainer.run()
    assert len(seen) == 40 and all(float(norm) <= 1.001e-3 for norm in seen)


def test_every_window_is_seen_once_per_epoch(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, batch_size=32)
    total = len(trainer.dataset)
    seen = torch.cat([trainer._indices(step) for step in range(3 * total // 32 + 1)])[: 3 * total]
    for epoch in seen.split(total):
        assert torch.equal(epoch.sort().values, torch.arange(total))


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=COMPILED)])
def test_a_stopped_and_resumed_run_equals_an_unbroken_one(tmp_path: Path, compiled: bool) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir(), broken.mkdir()
    _trainer(whole, compile=compiled).run()

    class Stop(Exception):
        pass

    def stop(policy, step):  # noqa: ANN001, ANN202
        if step == 30:
            raise Stop
        return {"eval/success_once": 0.0}

    with pytest.raises(Stop):
        _trainer(broken, checkpoint_every=20, eval_every=10, evaluate=stop, compile=compiled).run()
    resumed = _trainer(broken, compile=compiled)
    assert resumed.resume() == 30  # saved before its evaluation
    resumed.run()
    for name, value in _weights(whole / "run").items():
        assert torch.equal(value, _weights(broken / "run")[name]), name


def test_best_follows_the_score_and_old_checkpoints_go(tmp_path: Path) -> None:
    scores = {10: 0.2, 20: 0.9, 30: 0.5, 40: 0.1}
    trainer = _trainer(tmp_path, eval_every=10, evaluate=lambda policy, step: {"eval/success_once": scores[step]})
    trainer.run()
    folder = tmp_path / "run/checkpoints"
    assert named(folder / "best") == "000020" and named(folder / "last") == "000040"
    assert json.loads((folder / "index.json").read_text()) == {"000020": 0.9, "000030": 0.5, "000040": 0.1}
    assert sorted(p.name for p in folder.glob("0*")) == ["000020", "000030", "000040"]


def test_a_loss_that_is_not_finite_stops_training_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the loss is (nan|inf) at step"):
        _trainer(tmp_path, lr=1e30, warmup_steps=1, checkpoint_every=1, log_every=10).run()
    folder = tmp_path / "run/checkpoints"
    assert all(value.isfinite().all() for value in _weights(tmp_path / "run").values())
    assert len(list(folder.glob("0*"))) == 1


def test_a_gradient_that_is_not_finite_keeps_the_last_checkpoint_though_the_loss_is(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, checkpoint_every=1, log_every=0)
    weight = trainer.policy.head.net.get_parameter("output.weight")
    weight.register_hook(lambda gradient: gradient * (float("nan") if trainer.step == 2 else 1.0))
    with pytest.raises(ValueError, match="the gradient norm is nan at step 3"):
        trainer.run()
    assert named(tmp_path / "run/checkpoints/last") == "000002"
    assert all(value.isfinite().all() for value in _weights(tmp_path / "run").values())


def test_the_clock_counts_batches_and_updates_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that a batch moves by 1 ms, an update by 3 ms and an evaluation by a minute, every number is exact."""
    clock = [0.0]

    def costs(seconds: float, call):
        def wrapped(*arguments):
            clock[0] += seconds
            return call(*arguments)

        return wrapped

    monkeypatch.setattr(imitation, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    evaluate = costs(60.0, lambda policy, step: {"eval/success_once": 0.0})
    trainer = _trainer(tmp_path, steps=25, log_every=10, eval_every=4, evaluate=evaluate)
    trainer.dataset.batch = costs(0.001, trainer.dataset.batch)  # type: ignore[method-assign]
    trainer._update = costs(0.003, trainer._update)  # type: ignore[method-assign]
    trainer.run()
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    timed = [(line["step"], line["time/step_ms"], line["time/data_frac"]) for line in lines if "time/step_ms" in line]
    assert timed == [(step, pytest.approx(4.0), pytest.approx(0.25)) for step in (10, 20, 25)]


def test_a_training_step_encodes_the_observations_once(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, steps=3)
    calls = []
    trainer.policy.encoder.register_forward_hook(lambda *_: calls.append(1))
    trainer.run()
    assert len(calls) == 3
