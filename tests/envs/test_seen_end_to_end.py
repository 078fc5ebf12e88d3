"""Collect, train and evaluate on what a camera sees: the view is recorded with data and policy, and asked for again."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("metaworld", reason="needs the extra metaworld")

from flowpolicy.checkpoint import load_policy  # noqa: E402
from flowpolicy.cli.main import main  # noqa: E402
from flowpolicy.data.store import EpisodeStore  # noqa: E402
from flowpolicy.embodiment import load_embodiment  # noqa: E402
from tests.helpers import last

CLOUD = ["task=metaworld", "task.id=reach-v3", "task.obs=point_cloud", "task.view.renderer=ray"]
VIEW = ["task.view.points=40", "task.view.depth_size=48", "task.view.crop_high=[0.4,0.9,0.3]"]
SMALL = ["trainer.steps=3", "trainer.batch_size=4", "policy.net.width=16", "trainer.log_every=1"]
EPISODE = ["episodes=1", "envs=1", "task.max_episode_steps=3"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a policy that was trained on one episode of small clouds, cast by rays: no graphics library."""
    folder = tmp_path_factory.mktemp("seen")
    store, out = folder / "demos.zarr", folder / "run"
    assert main(["data", "collect", *CLOUD, *VIEW, "episodes=1", f"out={store}"]) == 0
    words = ["train", *CLOUD, *VIEW, f"dataset.path={store}", f"out={out}", "policy/encoder=point_cloud", *SMALL]
    assert main(words) == 0
    return out


def test_crop_points_and_frame_are_in_the_dataset_and_in_the_checkpoint(run: Path) -> None:
    recorded = EpisodeStore.open(run.parent / "demos.zarr").embodiment
    assert recorded is not None and recorded == load_embodiment(last(run) / "policy/embodiment.json")
    cloud = recorded.obs["point_cloud"].cloud
    assert cloud is not None and (cloud.points, cloud.crop_high, cloud.frame) == (40, (0.4, 0.9, 0.3), "world")


def test_a_checkpoint_is_evaluated_on_its_own_view(run: Path) -> None:
    assert main(["evaluate", f"checkpoint={run}", *EPISODE, f"out={run}/own"]) == 0
    assert json.loads((run / "own" / "summary.json").read_text())["n"] == 1


def test_another_view_is_an_error_that_says_how_to_mend_it(run: Path, capsys: pytest.CaptureFixture) -> None:
    other = ["task.view.points=30", "task.view.crop_high=[0.5,0.95,0.35]"]
    assert main(["evaluate", f"checkpoint={run}", *EPISODE, *other, f"out={run}/other"]) == 2
    said = capsys.readouterr().err
    assert "checkpoint and task disagree on the embodiment: " in said and "cloud.points: wanted 40, got 30" in said
    fix = "To see as the checkpoint does, pass task.view.points=40 'task.view.crop_high=[0.4,0.9,0.3]'"
    assert fix in said and not (run / "other").exists()
    assert main(["evaluate", f"checkpoint={run}", *EPISODE, *other, *VIEW, f"out={run}/mended"]) == 0


def test_training_beside_a_simulator_that_sees_otherwise_is_refused(run: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["train", f"dataset.path={run.parent / 'demos.zarr'}", *SMALL, "policy/encoder=point_cloud"]
    check = ["trainer.eval_every=3", "eval.episodes=1", "task.max_episode_steps=3"]
    assert main([*words, *check, "task.view.points=30", "task.view.renderer=ray", f"out={run}2"]) == 2
    assert "To see as the dataset does, pass task.view.points=40" in capsys.readouterr().err
    assert main([*words, *check, "task=metaworld", "task.obs=state", f"out={run}2"]) == 2
    assert "To see as the dataset does, pass task.obs=point_cloud" in capsys.readouterr().err
    assert main([*words, *check, f"out={run}2"]) == 0  # task, observations and view are the store's


def test_the_encoder_of_states_takes_no_cloud(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["train", *CLOUD, *VIEW, f"dataset.path={run.parent / 'demos.zarr'}", f"out={run}3"]) == 2
    assert "pass policy/encoder=point_cloud" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("encoder", [pytest.param("vit", marks=pytest.mark.ci), "resnet18"])
def test_pictures_go_the_same_way(opengl, tmp_path: Path, encoder: str) -> None:
    task = ["task=metaworld", "task.id=reach-v3", "task.obs=rgb", "task.view.image_size=48"]
    store, run = tmp_path / "demos.zarr", tmp_path / "run"
    assert main(["data", "collect", *task, "episodes=1", f"out={store}"]) == 0
    words = [f"dataset.path={store}", f"policy/encoder={encoder}", f"out={run}", *SMALL]
    assert main(["train", *task, *words]) == 0
    assert main(["evaluate", f"checkpoint={run}", *EPISODE, f"out={tmp_path}/evaluation"]) == 0
    assert main(["data", "validate", str(store)]) == 0
    assert main(["data", "view", str(store)]) == 0


@pytest.mark.slow
@pytest.mark.ci
def test_fine_tuning_reaches_the_encoder_of_clouds(run: Path, tmp_path: Path) -> None:
    """Twenty iterations on clouds that are cast as the robot moves; the first ratio is 1, and the encoder learns."""
    words = [
        "envs=2",
        "workers=2",
        "loop.iterations=20",
        "loop.decisions=2",
        "loop.eval_every=0",
        "ppo.warmup=1",
        "ppo.minibatches=1",
        "ppo.epochs=1",
        "ppo.guard=false",
        "preflight.episodes=2",
        "preflight.min_success=0",
        "receipt.episodes=0",
        "task.max_episode_steps=3",
        "reward.env=1",
    ]
    assert main(["finetune", f"checkpoint={run}", f"out={tmp_path}/rl", *words]) == 0
    found = json.loads((tmp_path / "rl" / "preflight.json").read_text())
    assert found["ratio_error"] <= 1e-4  # rounding: collection and update give the encoder batches of another size
    lines = [json.loads(line) for line in (tmp_path / "rl" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 20 and all("rl/policy_loss" in line for line in lines[1:])
    before, after = load_policy(run).encoder.state_dict(), load_policy(tmp_path / "rl").encoder.state_dict()
    assert any(not torch.equal(value, after[name]) for name, value in before.items())
