"""Actions outside the declared box: a share is refused before training, with the dimension and the measured box."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flowpolicy.cli.main import main
from flowpolicy.data.bounds import require_inside
from flowpolicy.data.store import Episode, EpisodeStore, EpisodeWriter
from flowpolicy.data.validate import validate_store
from tests.helpers import EMBODIMENT

BOX = replace(EMBODIMENT, action_low=(-0.5, -2.0, -1.0), action_high=(0.5, 2.0, 1.0))


def write(path: Path, *, outside: int) -> EpisodeStore:
    """1,000 steps, the first `outside` of them with 3.25 in entry 0, whose bounds are half a unit."""
    rng = np.random.default_rng(0)
    action = rng.uniform(-0.5, 0.5, (1000, 3)).astype(np.float32)
    action[:outside, 0] = 3.25
    obs = {key: rng.normal(size=(1000, *spec.shape)) for key, spec in BOX.obs.items()}
    with EpisodeWriter(path, BOX, {"task": "toy", "task_id": "two-ways"}) as writer:
        writer.add(Episode(obs, action, np.zeros(1000), True, 0))
    return EpisodeStore.open(path)


def test_a_store_with_all_its_actions_outside_is_not_trained_on(tmp_path, capsys):
    store = write(tmp_path / "a.zarr", outside=1000)
    words = ["train", f"dataset.path={store.path}", "task.env=null", "trainer.steps=2", "trainer.batch_size=8"]
    assert main([*words, f"out={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert "100.0% of the steps have actions outside the declared bounds (dimension: share 0: 100.0%)" in said
    assert "declared action_low=[-0.5,-2,-1] action_high=[0.5,2,1], measured action_low=[3.25," in said
    assert "dataset.max_outside=0.01" in said and len(said.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
    assert main([*words, f"out={tmp_path / 'run'}", "dataset.max_outside=1"]) == 0


def test_up_to_the_share_is_let_through(tmp_path):
    require_inside(write(tmp_path / "a.zarr", outside=10))
    store = write(tmp_path / "b.zarr", outside=11)
    with pytest.raises(ValueError, match=r"1.1% of the steps .*share 0: 1.1%.*max_outside=0.01"):
        require_inside(store)
    require_inside(store, max_outside=0.02)
    with pytest.raises(ValueError, match="`max_outside`: wanted a share from 0 to 1, got 3"):
        require_inside(store, max_outside=3)


def test_rounding_is_not_outside(tmp_path):
    store = write(tmp_path / "a.zarr", outside=0)
    assert not [finding for finding in validate_store(store.path) if "outside" in finding.message]
    require_inside(store, max_outside=0.0)


def test_validate_says_the_same(tmp_path):
    store = write(tmp_path / "a.zarr", outside=11)
    (error,) = [finding.message for finding in validate_store(store.path) if finding.severity == "error"]
    with pytest.raises(ValueError) as refused:
        require_inside(store)
    assert error.partition(": ")[2].partition("; episodes")[0] in str(refused.value)
