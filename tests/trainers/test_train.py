"""`train` from Python: the weights of `flowpolicy train`, in place, with or without a folder."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from flowpolicy import FlowPolicy, MemoryStore, TrainerSettings, build_policy, load_policy, save_policy, train
from flowpolicy.cli.main import main
from flowpolicy.data import EpisodeStore
from flowpolicy.encoders import StateEncoder
from flowpolicy.heads import MeanFlowHead
from flowpolicy.heads.terms import DispersiveRegularizer
from flowpolicy.nets import ResidualMLP
from tests.helpers import last

SMALL = TrainerSettings(batch_size=16, log_every=5, warmup_steps=2)


def arrays(episodes: int = 3, steps: int = 20) -> MemoryStore:
    rng = np.random.default_rng(0)
    states = [rng.uniform(-1, 1, size=(steps, 2)) for _ in range(episodes)]
    return MemoryStore({"state": states}, [state[:, ::-1] for state in states], control_hz=10)


def policy_for(store: Any, **changes: Any) -> FlowPolicy:
    options = {"encoder": StateEncoder, "net": partial(ResidualMLP, width=32, depth=1), "head": MeanFlowHead, "seed": 0}
    return build_policy(embodiment=store.require_record(), **{**options, **changes})


def test_the_weights_are_those_of_the_command_line_bit_for_bit(tmp_path: Path) -> None:
    """The toy task, once from its store and once from the same numbers as arrays in memory."""
    path = tmp_path / "toy.zarr"
    assert main(["data", "collect", "task=toy", "episodes=4", f"out={path}"]) == 0
    words = [f"dataset.path={path}", "trainer.steps=12", "trainer.batch_size=16", "policy/head=dm1", "seed=3"]
    threads = torch.get_num_threads()
    try:
        assert main(["train", *words, f"out={tmp_path / 'run'}"]) == 0
        spec = load_policy(tmp_path / "run").spec
        disk = EpisodeStore.open(path)
        obs = {key: np.split(disk.load(key), disk.episode_ends[:-1]) for key in disk.obs_keys}
        memory = MemoryStore(obs, np.split(disk.load("action"), disk.episode_ends[:-1]), embodiment=disk.embodiment)
        policy = build_policy(embodiment=disk.require_record(), seed=3, **spec.constructors())
        settings = TrainerSettings(batch_size=16)  # the rest is as in the yaml
        trained = train(policy, memory, steps=12, settings=settings, seed=3, progress=False)
    finally:
        torch.set_num_threads(threads)
    wanted, got = load_file(last(tmp_path / "run") / "policy/model.safetensors"), policy.state_dict()
    assert trained.policy is policy and wanted.keys() == got.keys()
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)


def test_a_policy_is_trained_in_place_saved_and_loaded(tmp_path: Path) -> None:
    store = arrays()
    policy = policy_for(store)
    trained = train(policy, store, steps=10, settings=SMALL, progress=False)
    assert trained.policy is policy and not policy.training
    assert (trained.step, trained.finished, trained.checkpoint) == (10, True, None)
    assert [line["step"] for line in trained.history] == [5, 10] and "train/loss" in trained.history[0]
    assert not list(tmp_path.iterdir())
    obs = {"state": torch.zeros(3, 1, 2)}
    again = load_policy(save_policy(policy, tmp_path / "policy"))
    assert torch.equal(again.predict(obs, noise="zero"), policy.predict(obs, noise="zero"))
    assert not torch.equal(policy_for(store).predict(obs, noise="zero"), policy.predict(obs, noise="zero"))


def test_a_run_folder_holds_checkpoints_and_curves_and_is_gone_on_with(tmp_path: Path) -> None:
    store, out = arrays(), tmp_path / "run"
    settings = TrainerSettings(batch_size=16, log_every=5, warmup_steps=2, cosine_steps=20)
    train(policy_for(store), store, steps=10, settings=settings, out=out, progress=False)
    with pytest.raises(FileExistsError, match="holds a run already"):
        train(policy_for(store), store, steps=20, settings=settings, out=out, progress=False)
    resumed = train(policy_for(store), store, steps=20, settings=settings, out=out, resume=True, progress=False)
    at_once = train(policy_for(store), store, steps=20, settings=settings, progress=False)
    assert resumed.checkpoint == last(out) and len((out / "metrics.jsonl").read_text().splitlines()) == 4
    assert [line["step"] for line in resumed.history] == [15, 20]
    for name, value in load_policy(out).state_dict().items():
        assert torch.equal(value, at_once.policy.state_dict()[name]), name


def test_a_seed_fixes_weights_and_leaves_the_global_generator_alone() -> None:
    store = arrays()
    before = torch.get_rng_state()
    first, second, other = (policy_for(store, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_what_cannot_be_trained_is_refused_before_anything_happens(tmp_path: Path) -> None:
    store = arrays()
    policy = policy_for(store)
    other = MemoryStore({"state": [np.zeros((20, 3))]}, [np.zeros((20, 2))], control_hz=10)
    with pytest.raises(ValueError, match="policy and dataset disagree on the embodiment: .*obs.state.shape"):
        train(policy, other, steps=2, progress=False)
    loaded = load_policy(save_policy(policy, tmp_path / "policy"))
    with pytest.raises(ValueError, match=r"call policy.requires_grad_\(True\)"):
        train(loaded, store, steps=2, progress=False)
    head = partial(MeanFlowHead, dispersive=DispersiveRegularizer())
    with pytest.raises(ValueError, match="batch_size"):
        train(policy_for(store, head=head), store, steps=2, settings=TrainerSettings(batch_size=1), progress=False)
