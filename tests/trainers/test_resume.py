"""A run: what it records, what a resumed one may change, and that nothing is written before all input is good."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flowpolicy.checkpoint import Checkpoint, create_policy
from flowpolicy.data.store import EpisodeStore
from flowpolicy.spec import packages
from flowpolicy.tracking import CompositeTracker
from flowpolicy.trainers import imitate
from flowpolicy.trainers.imitate import SimulatorCheck
from flowpolicy.trainers.imitation import TrainerSettings
from tests.helpers import POLICY_CONFIG, last, write_store

SETTINGS = TrainerSettings(steps=4, batch_size=8, log_every=2, checkpoint_every=2, warmup_steps=1)


class Recorder:
    """A tracker that knows whether it was closed."""

    def __init__(self) -> None:
        self.closed = False

    def log(self, step: int, metrics: dict[str, float]) -> None: ...

    def sync(self) -> None: ...
    def truncate_after(self, step: int, *, evaluation: bool = False) -> None: ...

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    return EpisodeStore.open(write_store(tmp_path_factory.mktemp("store") / "demos.zarr", episodes=3))


def train(store: EpisodeStore, out: Path, **changes: Any) -> Path:
    options: dict[str, Any] = {
        "facts": {"dataset": {"path": "demos.zarr", "hash": "abc"}},
        "out": out,
        "settings": SETTINGS,
        "start": lambda: CompositeTracker([]),
        "seed": 3,
        "progress": False,
    }
    config = changes.pop("policy_config", POLICY_CONFIG)
    policy = create_policy(
        config, store.require_record(), trusted_modules=packages(config), seed=changes.get("seed", 3)
    )
    checkpoint = imitate.train(policy, store, **{**options, **changes}).checkpoint
    assert checkpoint is not None
    return checkpoint


@pytest.fixture(scope="module")
def run(store: EpisodeStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder at step 4."""
    out = tmp_path_factory.mktemp("runs") / "run"
    train(store, out)
    return out


def test_a_checkpoint_says_how_it_was_trained(run: Path) -> None:
    record = Checkpoint.open(run).record
    assert record["seed"] == 3 and record["normalization"] == {"obs": "minmax", "action": "minmax"}
    assert record["trainer"]["batch_size"] == 8 and record["trainer"]["betas"] == [0.95, 0.999]
    assert record["dataset"].pop("record") and record["threads"] == torch.get_num_threads()
    assert record["dataset"].pop("seeds") == [[0, 2]] and record["selection_seeds"] == []
    assert record["dataset"] == {"path": "demos.zarr", "hash": "abc", "val_episodes": 0, "mask_padding": False}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 4}, "begun with seed 3, now 4; set `seed=3` to go on"),
        ({"settings": replace(SETTINGS, lr=0.1)}, "begun with trainer.lr 0.001, now 0.1"),
        ({"settings": replace(SETTINGS, betas=(0.9, 0.99))}, "begun with trainer.betas"),
        (
            {"facts": {"dataset": {"path": "b.zarr", "hash": "def"}}},
            "dataset.hash .*use the store that it began",
        ),
        ({"val_episodes": 1}, "begun with dataset.val_episodes 0"),
        ({"mask_padding": True}, "begun with dataset.mask_padding false"),
        ({"action_mode": "meanstd"}, 'begun with normalization.action "minmax", now "meanstd"'),
        ({"policy_config": {**POLICY_CONFIG, "action_horizon": 2}}, "begun with policy.action_horizon 4"),
        (
            {"policy_config": {**POLICY_CONFIG, "net": {**POLICY_CONFIG["net"], "depth": 2}}},
            "with policy.net.depth 1",
        ),
        ({"policy_config": {**POLICY_CONFIG, "head": {**POLICY_CONFIG["head"], "p_equal": 0.5}}}, "policy.head.p_eq"),
    ],
)
def test_a_resumed_run_that_would_not_be_the_same_is_refused_before_it_starts(
    store: EpisodeStore, run: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        train(store, run, resume=True, start=lambda: pytest.fail("started"), **changes)
    assert len(str(caught.value)) < 300


def test_other_threads_round_otherwise_and_are_refused(store: EpisodeStore, tmp_path: Path) -> None:
    train(store, tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.raises(ValueError, match=f"begun with threads {threads}, now {threads + 1}; set `threads"):
            train(store, tmp_path, resume=True)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"action_low": [-4.0] * 3, "action_high": [4.0] * 3}, r"begun with embodiment.action_high \[2.0, 2.0, 1.0\]"),
        ({"control_hz": 50.0}, "begun with embodiment.control_hz 20.0, now 50.0"),
        ({"reference_index": [0, 1, -1]}, r"begun with embodiment.reference_index \[1, 0, -1\]"),
    ],
)
def test_another_contract_of_the_same_data_is_refused(
    store: EpisodeStore, run: Path, tmp_path: Path, change: dict, said: str
) -> None:
    other = shutil.copytree(store.path, tmp_path / "demos.zarr")
    attrs = json.loads((other / ".zattrs").read_text())
    attrs["embodiment"] |= change
    (other / ".zattrs").write_text(json.dumps(attrs))
    assert EpisodeStore.open(other).content_hash() == store.content_hash()
    with pytest.raises(ValueError, match=f"resume: .*{said}.*; use the store that it began with"):
        train(EpisodeStore.open(other), run, resume=True)


def test_what_the_hash_of_the_data_leaves_out_is_compared(store: EpisodeStore, run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(store.path, tmp_path / "demos.zarr")
    train(EpisodeStore.open(other), run, resume=True)  # a copy is the same
    attrs = json.loads((other / ".zattrs").read_text())
    (other / ".zattrs").write_text(json.dumps(attrs | {"note": "another"}))
    assert EpisodeStore.open(other).content_hash() == store.content_hash()
    with pytest.raises(ValueError, match="resume: .*begun with dataset.record .*; use the store that it began with"):
        train(EpisodeStore.open(other), run, resume=True)


def test_steps_may_change_and_so_may_the_schedule_of_logs_and_checkpoints(store: EpisodeStore, tmp_path: Path) -> None:
    train(store, tmp_path)
    other = replace(SETTINGS, steps=6, log_every=3, eval_every=0, checkpoint_every=1, keep_best=1)
    moved = {"dataset": {"path": "moved.zarr", "hash": "abc"}}
    assert train(store, tmp_path, settings=other, facts=moved, resume=True).name == "000006"


def test_a_checkpoint_that_did_not_record_these_is_compared_by_its_run_record(
    store: EpisodeStore, tmp_path: Path
) -> None:
    train(store, tmp_path)
    file = last(tmp_path) / "policy/config.json"
    record = json.loads(file.read_text())
    for key in ("seed", "trainer", "normalization"):
        del record[key]
    file.write_text(json.dumps(record))
    (tmp_path / "run.json").write_text(json.dumps({"seeds": {"seed": 3}}))
    with pytest.raises(ValueError, match="begun with seed 3"):
        train(store, tmp_path, resume=True, seed=4)
    train(store, tmp_path, resume=True, settings=replace(SETTINGS, steps=5))


def test_a_state_that_cannot_be_loaded_is_refused_before_it_starts(store: EpisodeStore, tmp_path: Path) -> None:
    train(store, tmp_path)
    weights = last(tmp_path) / "state/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ValueError, match="model.safetensors is damaged"):
        train(store, tmp_path, resume=True, start=lambda: pytest.fail("started"))


def test_the_tracker_is_closed_when_training_fails(
    store: EpisodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Recorder()

    def fail(self, policy, step) -> None:
        raise RuntimeError("the simulator died")

    monkeypatch.setattr(SimulatorCheck, "require", lambda self, policy: None)
    monkeypatch.setattr(SimulatorCheck, "__call__", fail)
    with pytest.raises(RuntimeError, match="simulator died"):
        train(store, tmp_path, debug=True, check=SimulatorCheck(lambda: None), start=lambda: tracker)
    assert tracker.closed


def test_debug_plays_two_episodes_and_leaves_the_callers_check_alone(
    store: EpisodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played = []

    def play(self, policy, step) -> dict[str, float]:
        played.append(self.episodes)
        return {"eval/success_once": 0.0}

    monkeypatch.setattr(SimulatorCheck, "require", lambda self, policy: None)
    monkeypatch.setattr(SimulatorCheck, "__call__", play)
    check = SimulatorCheck(lambda: None, episodes=50)
    train(store, tmp_path, debug=True, check=check)
    assert played == [2, 2] and check.episodes == 50


def test_parts_of_ones_own_package_train_wherever_the_config_names_them(
    store: EpisodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_spread.py").write_text(
        "class Spread:\n    weight = 0.5\n    def __call__(self, features, cond):\n        return cond.mean()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    head = {**POLICY_CONFIG["head"], "dispersive": {"_target_": "own_spread.Spread"}}
    assert train(store, tmp_path / "run", policy_config={**POLICY_CONFIG, "head": head}).name == "000004"
