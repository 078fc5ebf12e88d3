"""`flowpolicy train` takes the task from the store, and does not train one task's demonstrations as another's."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowpolicy.checkpoint import Checkpoint
from flowpolicy.cli.main import main
from flowpolicy.data.store import Episode, EpisodeWriter
from flowpolicy.embodiment import Embodiment, KeySpec

SMALL = [
    "policy.net.width=16",
    "policy.net.depth=1",
    "trainer.batch_size=8",
    "trainer.steps=2",
    "trainer.eval_every=0",
    "policy/head=regression",
]
HAND = Embodiment(
    robot="hand",
    obs={"agent_pos": KeySpec((4,), "m"), "env_state": KeySpec((10,), "m")},
    action=KeySpec((4,)),
    action_kind="eef_delta",
    control_hz=80.0,
    action_low=(-1.0,) * 4,
    action_high=(1.0,) * 4,
)
REACH = {"task": "metaworld", "task_id": "reach-v3", "task_obs": "state", "task_max_episode_steps": 150}


def write_store(path: Path, attrs: dict[str, Any]) -> Path:
    """Two episodes of a hand that may be Meta-World's; no simulator is needed."""
    rng = np.random.default_rng(0)
    with EpisodeWriter(path, HAND, attrs) as writer:
        for seed in range(2):
            obs = {key: rng.normal(size=(9, *spec.shape)).astype(np.float32) for key, spec in HAND.obs.items()}
            action = rng.uniform(-1, 1, (9, 4)).astype(np.float32)
            writer.add(Episode(obs, action, np.zeros(9, np.float32), True, seed))
    return path


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def train(*words: str) -> dict[str, Any]:
    """The task that the checkpoint records."""
    assert main(["train", *SMALL, "dataset.path=demos.zarr", "out=run", *words]) == 0
    return Checkpoint.open("run").record["task"]


def test_the_task_is_the_stores_own(tmp_path: Path):
    write_store(tmp_path / "demos.zarr", REACH)
    assert main(["train", *SMALL, "dataset.path=demos.zarr"]) == 0
    (run,) = Path("runs/metaworld/reach-v3").iterdir()  # the file's place, too
    task = Checkpoint.open(run).record["task"]
    assert (task["name"], task["id"], task["obs"], task["max_episode_steps"]) == ("metaworld", "reach-v3", "state", 150)
    assert task["env"]["_target_"] == "flowpolicy_envs.metaworld.make_env"
    assert Checkpoint.open(run).record["policy"]["action_horizon"] == 8  # metaworld.yaml's


@pytest.mark.parametrize("words", [["task=metaworld"], ["experiment=dm1_metaworld"]])
def test_a_family_without_an_id_takes_the_stores_id(tmp_path: Path, words: list[str]):
    write_store(tmp_path / "demos.zarr", REACH)
    assert train(*words, *SMALL)["id"] == "reach-v3"  # assembly-v3 by the yaml


def test_the_view_that_demonstrations_were_collected_with_is_kept(tmp_path: Path):
    recorded = {"points": 77, "crop_low": [-0.5, 0.3, 0.01], "_target_": "os.system"}
    write_store(tmp_path / "demos.zarr", REACH | {"task_view": recorded})
    task = train("task.max_episode_steps=90")  # what is typed comes after what the store says
    view = task["view"]
    assert (task["id"], task["max_episode_steps"]) == ("reach-v3", 90)
    assert (view["points"], view["crop_low"]) == (77, [-0.5, 0.3, 0.01])
    assert view["_target_"] == "flowpolicy_envs.metaworld.View"  # a class is ours to name, not a store's


def test_collect_records_the_view_as_well():
    from flowpolicy.cli.config import load, plain
    from flowpolicy.cli.recorded import store_facts

    facts = store_facts(plain(load("collect", ["task=metaworld", "task.id=push-v3", "task.view.points=77"]).task))
    assert (facts["task"], facts["task_id"], facts["task_view"]["points"]) == ("metaworld", "push-v3", 77)
    assert not any(key.startswith("_") for key in facts["task_view"]) and "task_env" not in facts
    json.dumps(facts)


@pytest.mark.parametrize(
    ("attrs", "words", "said"),
    [
        ({}, [], "demos.zarr names no task, got {}; pass task=… task.id=…"),
        ({"task": "real"}, [], "is of the task real, of which there is no configs/task/real.yaml"),
        ({"task": "../../evil", "task_id": "x"}, [], "names no task"),
        ({"task": "metaworld", "task_id": "${oc.env:HOME}"}, [], "names no task"),
        (REACH | {"task_view": {"points": "${oc.env:HOME}"}}, [], "names no task"),
        (REACH | {"task_view": {"_partial_._target_": "os.system"}}, [], "names no task"),
        (REACH, ["task=toy", "task.name=metaworld"], "is of metaworld reach-v3, the words say metaworld two-ways"),
        (
            REACH,
            ["task=toy"],
            "demos.zarr is of metaworld reach-v3, the words say toy two-ways; leave task= and task.id= out",
        ),
        (REACH, ["task=metaworld", "task.id=push-v3"], "is of metaworld reach-v3, the words say metaworld push-v3"),
        (REACH, ["experiment=dm1_pickcube"], "is of metaworld reach-v3, the words say maniskill PickCube-v1"),
        (REACH, ["task.id=push-v3"], "is of metaworld reach-v3, the words say metaworld push-v3"),
    ],
)
def test_a_task_that_is_unknown_or_another_one_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture, attrs: dict[str, Any], words: list[str], said: str
):
    write_store(tmp_path / "demos.zarr", attrs)
    before = sorted(tmp_path.rglob("*"))
    code = main(["train", *SMALL, "dataset.path=demos.zarr", "out=run", *words])
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2 and said in line, line
    assert sorted(tmp_path.rglob("*")) == before


def test_a_store_that_says_nothing_trains_as_what_is_typed(tmp_path: Path):
    write_store(tmp_path / "demos.zarr", {})
    assert train("task=metaworld", "task.id=hammer-v3")["id"] == "hammer-v3"


@pytest.mark.parametrize("words", [["task.env=null"], ["task=toy", "task.env=null", "task.name=real", "task.id=peg"]])
def test_demonstrations_of_a_task_without_a_yaml_train_without_a_simulator(tmp_path: Path, words: list[str]):
    write_store(tmp_path / "demos.zarr", {"task": "real", "task_id": "peg"})
    task = train(*words)
    assert (task["name"], task["id"], task["env"]) == ("real", "peg", None)
