"""Dataset: batches equal the per-sample definition; bad stores are refused with a place; it is fast."""

import time

import numpy as np
import pytest
import torch
import zarr

from flowpolicy.data.dataset import SequenceDataset
from flowpolicy.data.store import Episode, EpisodeStore, EpisodeWriter
from flowpolicy.embodiment import Embodiment, KeySpec

EMBODIMENT = Embodiment(
    robot="test",
    obs={"agent_pos": KeySpec((3,)), "env_state": KeySpec((2,))},
    action=KeySpec((2,)),
    action_kind="velocity",
    control_hz=10.0,
    action_low=(-9.0, -9.0),
    action_high=(9.0, 9.0),
)
LENGTHS = (1, 4, 9)


@pytest.fixture
def path(tmp_path):
    rng = np.random.default_rng(0)
    with EpisodeWriter(tmp_path / "a.zarr", EMBODIMENT, {}) as writer:
        for seed, steps in enumerate(LENGTHS):
            obs = {key: rng.normal(size=(steps, *spec.shape)) for key, spec in EMBODIMENT.obs.items()}
            writer.add(Episode(obs, rng.normal(size=(steps, 2)), np.zeros(steps), True, seed))
    return tmp_path / "a.zarr"


def test_a_batch_equals_the_windows_cut_one_by_one(path):
    store = EpisodeStore.open(path)
    dataset = SequenceDataset.from_store(store, horizon=5, obs_horizon=2, mask_padding=True)
    assert len(dataset) == store.num_steps == 14
    index = torch.tensor([13, 0, 4, 5, 5, 7])
    batch = dataset.batch(index)
    action, agent_pos = store.load("action"), store.load("agent_pos")
    for b, c in enumerate(index.tolist()):
        start = max(s for s in (0, 1, 5) if s <= c)
        end = min(e for e in (1, 5, 14) if e > c)
        rows = [min(max(row, start), end - 1) for row in range(c - 1, c + 4)]
        np.testing.assert_array_equal(batch.action[b], action[rows])
        np.testing.assert_array_equal(batch.obs["agent_pos"][b], agent_pos[rows[:2]])
        assert batch.mask[b].tolist() == [float(row < end) for row in range(c - 1, c + 4)]
    assert batch.action.shape == (6, 5, 2) and batch.obs["env_state"].shape == (6, 2, 2) and batch.mask.shape == (6, 5)
    assert {batch.action.dtype, batch.mask.dtype, batch.obs["agent_pos"].dtype} == {torch.float32}


def test_padding_counts_in_the_loss_unless_it_is_masked(path):
    dataset = SequenceDataset.from_store(EpisodeStore.open(path), horizon=5, obs_horizon=2)
    assert bool((dataset.batch(torch.arange(len(dataset))).mask == 1).all())


def test_a_batch_shares_no_memory_with_the_data(path):
    dataset = SequenceDataset.from_store(EpisodeStore.open(path), horizon=2, obs_horizon=1)
    before = dataset.action.clone()
    dataset.batch(torch.arange(len(dataset))).action.zero_()
    torch.testing.assert_close(dataset.action, before, rtol=0, atol=0)


def test_images_stay_uint8():
    dataset = SequenceDataset(
        {"image": torch.zeros(6, 4, 4, 3, dtype=torch.uint8)}, torch.zeros(6, 2), [6], horizon=3, obs_horizon=2
    )
    image = dataset.batch(torch.tensor([0, 5])).obs["image"]
    assert image.shape == (2, 2, 4, 4, 3) and image.dtype == torch.uint8


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="x has 5 steps, episode_ends ends at 6"):
        SequenceDataset({"x": torch.zeros(5, 1)}, torch.zeros(6, 2), [6], horizon=3, obs_horizon=1)
    with pytest.raises(ValueError, match="wanted action"):
        SequenceDataset({"x": torch.zeros(6, 1)}, torch.zeros(6), [6], horizon=3, obs_horizon=1)


def test_an_index_outside_is_an_error(path):
    dataset = SequenceDataset.from_store(EpisodeStore.open(path), horizon=2, obs_horizon=1)
    with pytest.raises(IndexError):
        dataset.batch(torch.tensor([14]))


@pytest.mark.parametrize("key", ["action", "agent_pos"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_is_refused_with_key_episode_and_step(path, key, value):
    zarr.open_array(path / "data" / key, mode="r+")[7, 1] = value
    with pytest.raises(ValueError, match=f"{key}, episode 2, step 2 .*validate_store"):
        SequenceDataset.from_store(EpisodeStore.open(path), horizon=2, obs_horizon=1)


def test_unknown_key_and_missing_embodiment(path):
    store = EpisodeStore.open(path)
    with pytest.raises(ValueError, match="no key 'point_cloud'; available are"):
        SequenceDataset.from_store(store, horizon=2, obs_horizon=1, keys=["point_cloud"])
    del zarr.open_group(path, mode="r+").attrs["embodiment"]
    store = EpisodeStore.open(path)
    with pytest.raises(ValueError, match="no embodiment record; pass keys"):
        SequenceDataset.from_store(store, horizon=2, obs_horizon=1)
    dataset = SequenceDataset.from_store(store, horizon=2, obs_horizon=1, keys=["env_state"])
    assert list(dataset.obs) == ["env_state"]


def test_batches_are_drawn_fast_enough():
    dataset = SequenceDataset(
        {"state": torch.randn(7500, 42)}, torch.randn(7500, 8), range(75, 7501, 75), horizon=16, obs_horizon=1
    )
    index = torch.randint(7500, (200, 256))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = []
        for _ in range(5):
            start = time.process_time()  # other processes share the cores
            for row in index:
                dataset.batch(row)
            seconds.append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    assert 200 * 256 / min(seconds) > 300_000
