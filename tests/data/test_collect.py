"""Collecting: the first N successes in seed order, the same store for any number of workers, or nothing at all."""

import os
from functools import partial

import numpy as np
import pytest

from flowpolicy.data.collect import collect_episodes
from flowpolicy.data.store import Episode, EpisodeStore
from flowpolicy.embodiment import Embodiment, KeySpec

EMBODIMENT = Embodiment(
    robot="dice", obs={"agent_pos": KeySpec((2,))}, action=KeySpec((1,)), action_kind="number", control_hz=1.0,
    action_low=(-1.0,), action_high=(1.0,),
)  # fmt: skip


class Dice:
    """Succeeds on seeds not divisible by `fails_on`; episode length and content follow from the seed."""

    embodiment = EMBODIMENT

    def __init__(self, *, fails_on=3, action=0.5, dies_at=-1):
        self.fails_on, self.action, self.dies_at, self.closed = fails_on, action, dies_at, False

    def episode(self, seed):
        if seed == self.dies_at:
            os._exit(9)
        rng, steps = np.random.default_rng(seed), 2 + seed % 5
        obs = {"agent_pos": rng.random((steps, 2), np.float32)}
        action = np.full((steps, 1), self.action, np.float32)
        return Episode(obs, action, np.zeros(steps, np.float32), seed % self.fails_on != 0, seed)

    def close(self):
        self.closed = True


def test_keeps_the_first_successes_in_seed_order(tmp_path):
    report = collect_episodes(Dice, tmp_path / "a.zarr", episodes=5, seed=6, attrs={"task": "dice"}, progress=False)
    store = EpisodeStore.open(tmp_path / "a.zarr")
    assert store.episode_seeds.tolist() == [7, 8, 10, 11, 13] and store.attrs["task"] == "dice"
    assert (report.episodes, report.attempts, report.success_rate) == (5, 8, 5 / 8)
    assert report.path == tmp_path / "a.zarr"


def test_the_store_is_the_same_for_one_and_three_workers(tmp_path):
    stores = []
    for workers in (1, 3):
        path = tmp_path / f"{workers}.zarr"
        report = collect_episodes(Dice, path, episodes=11, seed=2, workers=workers, progress=False)
        stores.append((EpisodeStore.open(path).content_hash(), report.attempts))
    assert stores[0] == stores[1]


def test_a_hopeless_expert_is_given_up_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"solved 0 of 60 seeds"):
        collect_episodes(partial(Dice, fails_on=1), tmp_path / "a.zarr", episodes=5, progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("action", [1.5, float("nan")])
def test_an_action_outside_the_action_space_is_an_error(tmp_path, action):
    with pytest.raises(ValueError, match=r"step 0: action\[0\] .* outside \[-1.0, 1.0\]"):
        collect_episodes(partial(Dice, action=action), tmp_path / "a.zarr", episodes=1, seed=1, progress=False)
    assert not list(tmp_path.iterdir())


def test_a_dying_worker_is_a_clear_error_and_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="worker process died.*workers=1"):
        collect_episodes(partial(Dice, dies_at=4), tmp_path / "a.zarr", episodes=9, workers=2, progress=False)
    assert not list(tmp_path.iterdir())


def test_the_expert_is_closed_even_after_an_error(tmp_path):
    made = []

    def make():
        made.append(Dice(action=2.0))
        return made[0]

    with pytest.raises(ValueError, match="outside"):
        collect_episodes(make, tmp_path / "a.zarr", episodes=1, seed=1, progress=False)
    assert made[0].closed


@pytest.mark.parametrize("bad", [{"episodes": 0}, {"workers": 0}, {"seed": -1}])
def test_counts_out_of_range_are_refused(tmp_path, bad):
    with pytest.raises(ValueError, match="episodes >= 1, workers >= 1, seed >= 0"):
        collect_episodes(Dice, tmp_path / "a.zarr", **{"episodes": 1, **bad})
