"""Observations keep the names that other libraries gave them, from the writer to the exported bundle."""

from pathlib import Path

import numpy as np
import pytest
import torch

from flowpolicy.checkpoint import load_policy
from flowpolicy.cli.main import main
from flowpolicy.data.store import Episode, EpisodeStore, EpisodeWriter
from flowpolicy.data.validate import validate_store
from flowpolicy.embodiment import Embodiment, KeySpec
from flowpolicy.inference import prepare
from tests.helpers import EMBODIMENT, small_policy

VECTORS = ["observation.state", "keys", "type", "train", "forward", "training", "T_destination", "_modules", "a..b."]
IMAGE, CLOUD = "observation.images.top", "items"


def embodiment(keys: list[str]) -> Embodiment:
    obs = {key: KeySpec((2,)) for key in keys}
    return Embodiment(
        robot="arm",
        obs=obs | {IMAGE: KeySpec((24, 24, 3), dtype="uint8"), CLOUD: KeySpec((16, 3), "m")},
        action=KeySpec((2,)),
        action_kind="joint_position",
        control_hz=10.0,
        action_low=(-1.0, -1.0),
        action_high=(1.0, 1.0),
        reference_key=keys[0],
        reference_index=(0, 1),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("keys"), np.random.default_rng(0)
    contract = embodiment(VECTORS)
    with EpisodeWriter(folder / "own.zarr", contract, {"task": "own"}) as writer:
        for seed in range(3):
            obs = {key: rng.uniform(-1, 1, (9, *spec.shape)).astype(np.float32) for key, spec in contract.obs.items()}
            obs[IMAGE] = rng.integers(0, 256, (9, 24, 24, 3), np.uint8)
            action = rng.uniform(-1, 1, (9, 2)).astype(np.float32)
            writer.add(Episode(obs, action, np.zeros(9, np.float32), True, seed))
    words = [
        "task.env=null",
        "policy/encoder=vit",
        "policy.net.width=32",
        "policy.net.depth=1",
        "trainer.steps=2",
        "trainer.batch_size=8",
        "policy.action_representation=relative",
    ]
    assert main(["train", f"dataset.path={folder / 'own.zarr'}", f"out={folder / 'run'}", *words]) == 0
    return folder


def test_a_store_with_such_names_is_valid_and_a_policy_learns_from_it_and_is_loaded(run: Path, capsys):
    assert validate_store(run / "own.zarr") == []
    store, policy = EpisodeStore.open(run / "own.zarr"), load_policy(run / "run")
    assert set(policy.obs_keys) == set(policy.normalized_keys) | {IMAGE} == {*VECTORS, IMAGE, CLOUD}
    for key in (*VECTORS, CLOUD):  # each has its own normaliser, fitted to its own numbers
        values = policy.normalizer(key)(torch.from_numpy(store.load(key)))
        torch.testing.assert_close(values.flatten(0, -2).amax(0), torch.ones(values.shape[-1]))
    obs = {key: torch.from_numpy(store.load(key, slice(0, 1)))[None] for key in policy.obs_keys}
    noise = torch.zeros(1, policy.horizon, 2)
    chunk = policy.predict(obs, noise=noise)
    torch.testing.assert_close(prepare(policy).predict(obs, noise=noise), chunk, rtol=1e-4, atol=1e-5)
    assert main(["data", "inspect", str(run / "own.zarr")]) == 0 and "observation.state" in capsys.readouterr().out
    assert main(["data", "view", str(run / "own.zarr"), f"out={run / 'own.html'}"]) == 0
    assert IMAGE in (run / "own.html").read_text()


def test_a_bundle_takes_the_same_names(run: Path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from flowpolicy.deploy.runtime import OnnxPolicy

    assert (
        main(
            [
                "export",
                f"checkpoint={run / 'run'}",
                f"out={run / 'bundle'}",
                f"dataset.path={run / 'own.zarr'}",
                "episodes=0",
                "repeats=2",
                "tolerance=1e-3",
            ]
        )
        == 0
    )
    bundle, store = OnnxPolicy(run / "bundle"), EpisodeStore.open(run / "own.zarr")
    assert set(bundle.obs_keys) == {*VECTORS, IMAGE, CLOUD}
    obs = {key: store.load(key, slice(0, 1))[None] for key in bundle.obs_keys}
    assert bundle.predict(obs, rng=np.random.default_rng(0)).shape[-1] == 2


def test_a_policy_can_be_told_to_see_one_of_them(run: Path):
    words = [
        "task.env=null",
        "policy.obs_keys=[observation.state]",
        "policy.net.width=32",
        "trainer.steps=2",
        "trainer.batch_size=8",
    ]
    assert main(["train", f"dataset.path={run / 'own.zarr'}", f"out={run / 'one'}", *words]) == 0
    assert load_policy(run / "one").obs_keys == ("observation.state",)


@pytest.mark.parametrize("key", ["obs/state", "../state", ".zarray", "two words"])
def test_a_name_that_no_file_can_have_is_refused_before_anything_is_written(tmp_path: Path, key: str):
    with pytest.raises(ValueError, match=r"wanted keys of letters, digits, -, _ and \., got .*"):
        EpisodeWriter(tmp_path / "own.zarr", embodiment([key]), {})
    assert not list(tmp_path.iterdir())


def test_plain_names_stand_in_checkpoints_as_they_always_did():
    names = {name for name in small_policy().state_dict() if name.startswith("obs_normalizer")}
    assert names == {f"obs_normalizer.{key}.{entry}" for key in EMBODIMENT.obs for entry in ("scale", "offset")}
