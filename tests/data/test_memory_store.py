"""Arrays as a store: the same windows as from the disk, and what is wrong with them by key and episode."""

from typing import Any

import numpy as np
import pytest
import torch

from flowpolicy.data import EpisodeStore, EpisodeWriter, MemoryStore, SequenceDataset
from flowpolicy.data.episode import Episode
from tests.helpers import EMBODIMENT

LENGTHS = (7, 5)
WHOLE = {"obs": {"state": np.zeros((12, 3))}, "action": np.zeros((12, 3))}


def arrays(seed: int = 0) -> tuple[dict[str, list[np.ndarray]], list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    obs = {key: [rng.normal(size=(steps, *spec.shape)) for steps in LENGTHS] for key, spec in EMBODIMENT.obs.items()}
    return obs, [rng.uniform(-1, 1, size=(steps, 3)) for steps in LENGTHS]


def made(obs: Any = None, action: Any = None, **changes: Any) -> MemoryStore:
    good = arrays()
    options = {"control_hz": 10.0, **changes}
    return MemoryStore(good[0] if obs is None else obs, good[1] if action is None else action, **options)


def test_a_store_in_memory_gives_the_windows_of_one_on_the_disk(tmp_path) -> None:
    obs, action = arrays()
    with EpisodeWriter(tmp_path / "demos.zarr", EMBODIMENT) as writer:
        for i, steps in enumerate(LENGTHS):
            writer.add(Episode({key: parts[i] for key, parts in obs.items()}, action[i], np.zeros(steps), True, i))
    disk = EpisodeStore.open(tmp_path / "demos.zarr")
    memory = MemoryStore(obs, action, embodiment=EMBODIMENT)
    assert (memory.num_episodes, memory.num_steps, memory.obs_keys) == (2, 12, disk.obs_keys)
    assert memory.episode_ends.tolist() == disk.episode_ends.tolist()
    windows = [
        SequenceDataset.from_store(store, horizon=4, obs_horizon=2).batch(torch.arange(12)) for store in (disk, memory)
    ]
    for key in EMBODIMENT.obs:
        assert torch.equal(windows[0].obs[key], windows[1].obs[key])
    assert torch.equal(windows[0].action, windows[1].action) and torch.equal(windows[0].mask, windows[1].mask)


def test_one_array_with_episode_ends_is_the_list_of_its_episodes() -> None:
    obs, action = arrays()
    whole = MemoryStore(
        {key: torch.from_numpy(np.concatenate(parts)) for key, parts in obs.items()},
        np.concatenate(action),
        episode_ends=[7, 12],
        control_hz=10,
    )
    assert whole.content_hash() == made().content_hash() and whole.embodiment == made().embodiment


def test_the_contract_says_what_the_data_does() -> None:
    images = [np.zeros((steps, 8, 8, 3), dtype=np.uint8) for steps in LENGTHS]
    obs, action = arrays()
    store = MemoryStore({**obs, "image": images}, action, control_hz=10, action_high=(2.0, 2.0, 2.0))
    assert store.embodiment is not None
    assert store.embodiment.obs["image"].shape == (8, 8, 3) and store.embodiment.obs["image"].dtype == "uint8"
    assert store.embodiment.action_low == tuple(np.concatenate(action).astype(np.float32).min(axis=0).tolist())
    assert store.embodiment.action_high == (2.0, 2.0, 2.0) and store.embodiment.control_hz == 10.0


def test_the_arrays_are_copied() -> None:
    obs, action = arrays()
    store = MemoryStore(obs, action, control_hz=10)
    before = store.content_hash()
    action[0][:] = 9.0
    assert store.content_hash() == before


def changed(where: tuple[str, int], value: Any) -> dict[str, Any]:
    """The good arrays with one of them changed."""
    obs, action = arrays()
    parts = action if where[0] == "action" else obs[where[0]]
    parts[where[1]] = value(parts[where[1]])
    return {"obs": obs, "action": action}


def nan(array: np.ndarray) -> np.ndarray:
    array[3] = np.nan
    return array


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (changed(("env_state", 1), nan), "env_state, episode 1, step 3: NaN or infinity"),
        (changed(("action", 0), nan), "action, episode 0, step 3: NaN or infinity"),
        (changed(("agent_pos", 1), lambda a: a[:-1]), r"agent_pos, episode 1: wanted shape \(5, 3\), as of action"),
        (changed(("agent_pos", 1), lambda a: a[:, :2]), r"agent_pos, episode 1: .* as of episode 0, got \(5, 2\)"),
        (changed(("agent_pos", 0), lambda a: a[:, 0]), r"agent_pos, episode 0: .*pass array\[:, None\]"),
        (changed(("agent_pos", 0), lambda a: a.astype(str)), "agent_pos, episode 0: wanted numbers"),
        ({"action": arrays()[1][:1]}, "agent_pos: wanted 1 episodes, as many as of action, got 2"),
        ({"action": [a[:0] for a in arrays()[1]]}, "action, episode 0: no steps"),
        ({"action": np.zeros((12, 3))}, "action: wanted a list with one array .*pass episode_ends="),
        (
            {"obs": {"state": np.zeros((12, 3))}, "action": np.zeros((12, 3)), "episode_ends": [7, 11]},
            "wanted 11 steps",
        ),
        ({"obs": {"state": np.zeros((12, 3))}, "action": np.zeros((12, 3)), "episode_ends": [7, 7, 12]}, "increasing"),
        ({"obs": {}}, "wanted observations by keys"),
        ({"control_hz": None}, "pass control_hz="),
        ({"embodiment": EMBODIMENT}, "pass embodiment, or control_hz and the bounds"),
        (
            {"embodiment": EMBODIMENT, "control_hz": None, "obs": {"agent_pos": arrays()[0]["agent_pos"]}},
            "embodiment has",
        ),
    ],
)
def test_what_is_wrong_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made(**options)
