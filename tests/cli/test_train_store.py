"""What `train` says of a store that it cannot, or can hardly, learn from, and what then goes on."""

from pathlib import Path

import numpy as np
import pytest
import zarr

from flowpolicy.checkpoint import load_policy
from flowpolicy.cli import config
from flowpolicy.cli.main import main
from flowpolicy.data.residence import Residence
from flowpolicy.data.store import Episode, EpisodeStore, EpisodeWriter, add_record
from tests.helpers import EMBODIMENT

SMALL = ["task.env=null", "policy.net.width=16", "policy.net.depth=1", "trainer.steps=2", "trainer.batch_size=4"]


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """As diffusion_policy writes it, in float64."""
    root, rng = zarr.open_group(tmp_path / "theirs.zarr", mode="w", zarr_format=2), np.random.default_rng(0)
    position = rng.uniform(-1, 1, (40, 3))
    values = {
        "data/agent_pos": position,
        "data/env_state": rng.normal(size=(40, 2)),
        "data/action": 0.9 * position,
        "meta/episode_ends": np.array([20, 40]),
    }
    for name, value in values.items():
        root.create_array(name, data=value)
    return tmp_path / "theirs.zarr"


def test_a_store_without_a_record_is_told_how_to_get_one_and_trains_with_it(foreign: Path, tmp_path: Path, capsys):
    command = ["train", f"dataset.path={foreign}", f"out={tmp_path / 'run'}", *SMALL]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "has no embodiment record" in said and "(agent_pos (3,), env_state (2,), action (3,))" in said
    assert "flowpolicy.data.store.add_record(path, Embodiment(robot=" in said and said.count("\n") == 1
    before = EpisodeStore.open(foreign).content_hash()
    add_record(foreign, EMBODIMENT, {"task": "theirs"})
    store = EpisodeStore.open(foreign)
    assert store.embodiment == EMBODIMENT and store.attrs == {"task": "theirs"} and store.content_hash() == before
    assert main(command) == 0
    assert load_policy(tmp_path / "run").embodiment == EMBODIMENT
    with pytest.raises(ValueError, match="has an embodiment record"):
        add_record(foreign, EMBODIMENT)


def test_a_record_that_does_not_fit_is_not_written(foreign: Path):
    root = zarr.open_group(foreign, mode="r+", zarr_format=2)
    del root["data/env_state"]
    with pytest.raises(ValueError, match="no key 'env_state'"):
        add_record(foreign, EMBODIMENT)
    root.create_array("data/env_state", data=np.zeros((40, 4)))
    with pytest.raises(ValueError, match=r"env_state: the record says float32 \(2,\) per step, the store has float64"):
        add_record(foreign, EMBODIMENT)
    assert EpisodeStore.open(foreign).embodiment is None


def test_train_says_how_many_steps_an_episode_needs(tmp_path: Path):
    rng = np.random.default_rng(0)
    with EpisodeWriter(tmp_path / "own.zarr", EMBODIMENT, {"task": "own"}) as writer:
        for seed, steps in enumerate([1, 30, 2]):
            obs = {key: rng.normal(size=(steps, *spec.shape)) for key, spec in EMBODIMENT.obs.items()}
            writer.add(Episode(obs, rng.uniform(-1, 1, (steps, 3)), np.zeros(steps), True, seed))
    words = [f"dataset.path={tmp_path / 'own.zarr'}", "policy.action_horizon=8", "policy.obs_horizon=2", *SMALL]
    with pytest.warns(UserWarning, match=r"needs at least 9 steps .* episodes 0, 2 have fewer \(the shortest 1\)"):
        assert main(["train", *words, f"out={tmp_path / 'run'}"]) == 0
    assert load_policy(tmp_path / "run").action_horizon == 8


@pytest.mark.parametrize("where", ["true", "false"])
def test_where_the_steps_lie_can_be_said(where: str) -> None:
    """The yaml's default is a word, `auto`; true and false are no words."""
    cfg = config.load("train", ["dataset.path=none", f"dataset.in_memory={where}"])
    assert Residence(cfg.dataset.in_memory).in_memory is (where == "true")
