"""`flowpolicy data inspect|validate` on a small store, and what `collect` refuses."""

import numpy as np
import pytest
import zarr
from omegaconf import OmegaConf

from flowpolicy.cli import config
from flowpolicy.cli.data import main
from flowpolicy.data.store import Episode, EpisodeStore, EpisodeWriter
from flowpolicy.embodiment import Embodiment, KeySpec

EMBODIMENT = Embodiment(
    robot="point",
    obs={"agent_pos": KeySpec((2,), unit="m", names=("x", "y"))},
    action=KeySpec((2,)),
    action_kind="velocity",
    control_hz=10.0,
    action_low=(-1.0, -1.0),
    action_high=(1.0, 1.0),
)


@pytest.fixture
def path(tmp_path):
    rng = np.random.default_rng(0)
    with EpisodeWriter(tmp_path / "a.zarr", EMBODIMENT, {"task": "toy"}) as writer:
        for seed in range(3):
            writer.add(
                Episode(
                    {"agent_pos": np.linspace(seed, 1 + seed, 11)[:, None].repeat(2, 1)},
                    rng.uniform(-1, 1, (11, 2)),
                    np.zeros(11),
                    True,
                    seed,
                )
            )
    return tmp_path / "a.zarr"


def test_inspect_prints_counts_shapes_and_statistics(path, capsys):
    assert main(["inspect", str(path)]) == 0
    text = capsys.readouterr().out
    assert "episodes  3   steps 33" in text and "min 11   median 11   max 11" in text and "task      toy" in text
    assert "(33, 2)" in text and "point   10 Hz" in text
    x = next(line for line in text.splitlines() if line.strip().startswith("x "))
    assert [float(word) for word in x.split()[1:]][::3] == [0.0, 1.5, 3.0]  # min, median, max
    assert all(column in text for column in ("q01", "q10", "q50", "q90", "q99", "mean", "std"))


def test_validate_passes_a_sound_store(path, capsys):
    assert main(["validate", str(path)]) == 0
    assert capsys.readouterr().out.splitlines() == ["0 errors, 0 warnings", str(path)]


def test_validate_fails_a_store_with_nan(path, capsys):
    zarr.open_array(path / "data/action", mode="r+")[12, 0] = np.nan
    assert main(["validate", str(path)]) == 1
    assert "error: action: NaN or infinity in 1 of 33 steps, first at episode 1, step 1" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [[], ["look"], ["inspect"], ["validate", "a", "b"], ["inspect", "path=a"]])
def test_wrong_usage_is_a_value_error(argv):
    with pytest.raises(ValueError, match="wanted one"):
        main(argv)


def test_a_missing_path_is_file_not_found(tmp_path):
    for verb in ("inspect", "validate"):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            main([verb, str(tmp_path / "none.zarr")])


class Expert:
    """Succeeds on even seeds."""

    embodiment = EMBODIMENT

    def episode(self, seed: int) -> Episode:
        """Two steps that know their seed."""
        action = np.zeros((2, 2), np.float32)
        return Episode({"agent_pos": np.full((2, 2), seed)}, action, np.zeros(2), seed % 2 == 0, seed)

    def close(self) -> None:
        """Nothing to free."""


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    task = {"name": "toy", "id": "Even", "expert": {"_target_": "somewhere.Expert", "speed": 1.0}}
    cfg = OmegaConf.create(
        {"task": task, "episodes": 3, "out": str(tmp_path / "new.zarr"), "seed": 1, "workers": 1, "overwrite": False}
    )
    monkeypatch.setattr(config, "load", lambda name, argv: cfg)
    monkeypatch.setattr(config, "instantiate", lambda expert: Expert)
    return cfg


def test_collect_writes_successes_and_the_facts_of_the_task(cfg, capsys):
    assert main(["collect"]) == 0
    store = EpisodeStore.open(cfg.out)
    assert store.episode_seeds.tolist() == [2, 4, 6] and store.attrs["task"] == "toy" and store.attrs["seed"] == 1
    assert store.attrs["task_id"] == "Even" and "task_expert" not in store.attrs
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("3 episodes from 6 attempts, expert success rate 0.500") and last == cfg.out


def test_collect_replaces_a_store_only_when_told(cfg):
    assert main(["collect"]) == 0
    cfg.seed = 11
    with pytest.raises(FileExistsError, match="`overwrite=True`"):
        main(["collect"])
    assert EpisodeStore.open(cfg.out).episode_seeds.tolist() == [2, 4, 6]
    cfg.overwrite = True
    assert main(["collect"]) == 0
    assert EpisodeStore.open(cfg.out).episode_seeds.tolist() == [12, 14, 16]


def test_collect_needs_an_out(cfg):
    cfg.out = None
    with pytest.raises(ValueError, match="out=PATH"):
        main(["collect"])
