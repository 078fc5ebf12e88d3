"""`evaluate` on a small environment with a small policy: formats, seeds, determinism, refusals."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from flowpolicy.checkpoint import create_policy, load_policy, save_policy
from flowpolicy.data.store import Episode, EpisodeStore, EpisodeWriter
from flowpolicy.embodiment import Embodiment, KeySpec
from flowpolicy.evaluation.chunk_panels import record_episode, training_data
from flowpolicy.evaluation.evaluate import Task, evaluate, evaluation_folders, format_table, success_so_far
from flowpolicy.rollout.vector_env import make_vector_env
from flowpolicy.samplers import Jump
from flowpolicy.statistics.tests import wilson_interval

EMBODIMENT = Embodiment(
    robot="point",
    obs={"agent_pos": KeySpec((2,), unit="m")},
    action=KeySpec((2,), names=("x", "y")),
    action_kind="velocity",
    control_hz=10.0,
    action_low=(-1.0, -1.0),
    action_high=(1.0, 1.0),
)
CONFIG: dict[str, Any] = {
    "_target_": "flowpolicy.policy.build_policy",
    "encoder": {"_target_": "flowpolicy.encoders.state.StateEncoder", "_partial_": True},
    "net": {"_target_": "flowpolicy.nets.mlp.ResidualMLP", "_partial_": True, "width": 16, "depth": 1},
    "head": {"_target_": "flowpolicy.heads.meanflow.MeanFlowHead", "_partial_": True},
    "horizon": 8,
    "obs_horizon": 2,
    "action_horizon": 3,
}


class Point(gymnasium.Env):
    """A point that an action moves; success is decided by the seed: even seeds end after 5 steps, odd ones never."""

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, embodiment: Embodiment = EMBODIMENT, render: bool = False) -> None:
        self.embodiment = embodiment
        self.observation_space = spaces.Dict({"agent_pos": spaces.Box(-np.inf, np.inf, (2,), np.float32)})
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.even, self.steps = (seed or 0) % 2 == 0, 0
        self.place = self.np_random.normal(size=2).astype(np.float32)
        return {"agent_pos": self.place.copy()}, {"success": False}

    def step(self, action):
        self.steps += 1
        self.place = self.place + 0.1 * np.asarray(action, np.float32)
        success = self.even and self.steps == 5
        info = {"success": success, "outcome": "left" if self.place[0] < 0 else "right"}
        return {"agent_pos": self.place.copy()}, float(success), success, self.steps >= 10, info


TASK = Task("point", "Point-v0", Point)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with one checkpoint."""
    torch.manual_seed(0)
    policy = create_policy(CONFIG, EMBODIMENT)
    save_policy(policy, tmp_path / "run" / "checkpoints" / "000010" / "policy", facts={"task": {}})
    (tmp_path / "run" / "checkpoints" / "best").symlink_to("000010")
    return tmp_path / "run"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer latency repeats: these tests are not about time."""
    from flowpolicy.evaluation import evaluate as module

    monkeypatch.setattr(module, "measure_latency", partial(module.measure_latency, warmup=0, repeats=3))


pytestmark = pytest.mark.usefixtures("measured")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_results_and_summary_have_the_promised_format_and_agree(run: Path, tmp_path: Path):
    (one,) = evaluate(run, TASK, outs={1: tmp_path / "eval"}, episodes=25, envs=1, progress=False)
    episodes, summary = lines(one.out / "results.jsonl"), json.loads((one.out / "summary.json").read_text())
    assert list(episodes[0]) == [
        "task",
        "task_id",
        "checkpoint",
        "num_steps",
        "seed",
        "success_once",
        "success_at_end",
        "return",
        "episode_len",
        "failure",
        "solved_at_reset",
        "outcome",
    ]
    assert [e["seed"] for e in episodes] == list(range(100_000, 100_025))  # over several groups, in order
    assert [e["success_once"] for e in episodes] == [seed % 2 == 0 for seed in range(25)]
    assert {(e["failure"], e["episode_len"]) for e in episodes} == {("", 5), ("timeout", 10)}
    wanted = {
        "task",
        "task_id",
        "checkpoint",
        "num_steps",
        "n",
        "success_once",
        "ci_low",
        "ci_high",
        "success_at_end",
        "return_mean",
        "latency_ms",
        "env_steps_per_s",
        "policy_params",
        "versions",
    }
    assert wanted <= set(summary)
    assert summary == one.summary
    assert (summary["n"], summary["success_once"], summary["return_mean"]) == (25, 13 / 25, 13 / 25)
    assert (summary["ci_low"], summary["ci_high"]) == wilson_interval(13, 25)
    ways = [e["outcome"] for e in episodes if e["success_once"]]
    assert summary["success_outcomes"] == {way: ways.count(way) for way in ("left", "right")}
    assert set(summary["latency_ms"]) == {"p50", "p95", "p99"}
    assert summary["checkpoint"] == str(run / "checkpoints" / "000010")
    assert not list(one.out.glob("*.part"))


def test_a_second_evaluation_gives_the_same_results_byte_for_byte(run: Path, tmp_path: Path):
    for name in ("a", "b"):
        evaluate(run, TASK, outs={2: tmp_path / name}, episodes=4, envs=1, progress=False)
    assert (tmp_path / "a" / "results.jsonl").read_bytes() == (tmp_path / "b" / "results.jsonl").read_bytes()
    assert (tmp_path / "a" / "chunks.json").read_bytes() == (tmp_path / "b" / "chunks.json").read_bytes()


def test_the_results_do_not_depend_on_the_number_of_simulators(run: Path, tmp_path: Path):
    for envs in (1, 2):
        evaluate(run, TASK, outs={1: tmp_path / str(envs)}, episodes=23, envs=envs, progress=False)
    assert (tmp_path / "1" / "results.jsonl").read_bytes() == (tmp_path / "2" / "results.jsonl").read_bytes()


def test_each_number_of_steps_gets_its_own_folder(run: Path, tmp_path: Path):
    outs = evaluation_folders(run / "checkpoints" / "000010", [Jump(), Jump(num_steps=4)], out=None)
    assert outs == {Jump(num_steps=k): run / "evaluation" / "000010" / f"steps_{k}" for k in (1, 4)}
    found = evaluate(run, TASK, outs=outs, episodes=2, envs=1, progress=False)
    assert [lines(out / "results.jsonl")[0]["num_steps"] for out in outs.values()] == [1, 4]
    table = format_table([one.summary for one in found]).splitlines()
    assert len(table) == 3 and len(set(map(len, table))) == 1
    assert evaluation_folders(run, Jump(), out=tmp_path) == {Jump(): tmp_path}
    assert evaluation_folders(run, [Jump()], out=tmp_path) == {Jump(): tmp_path / "steps_1"}


def test_the_chunk_picture_shows_the_executed_and_the_demonstrated_actions(run: Path, tmp_path: Path):
    demos = tmp_path / "demos.zarr"
    action = np.linspace(-1, 1, 14, dtype=np.float32).reshape(7, 2)
    with EpisodeWriter(demos, EMBODIMENT, {}) as writer:
        for seed in range(2):
            obs = {"agent_pos": np.full((7, 2), seed, np.float32)}
            writer.add(Episode(obs, action + seed, np.zeros(7, np.float32), True, seed))
    out = tmp_path / "eval"
    evaluate(run, TASK, outs={1: out}, episodes=1, start_seed=3, envs=1, demonstrations=demos, progress=False)
    content = json.loads((out / "chunks.json").read_text())
    executed, demonstrated = content["panels"]
    assert content["names"] == ["x", "y"]
    assert np.shape(executed["actions"]) == (10, 2)  # odd seed: never a success
    assert [chunk["step"] for chunk in executed["chunks"]] == [0, 3, 6, 9]
    assert {np.shape(chunk["actions"]) for chunk in executed["chunks"]} == {(8, 3, 2)}
    assert np.allclose(demonstrated["actions"], action, atol=1e-4)
    assert len({json.dumps(draw) for draw in demonstrated["chunks"][0]["actions"]}) > 1  # noise is drawn per line


def test_the_training_data_is_used_only_while_it_is_the_same(tmp_path: Path):
    demos = tmp_path / "demos.zarr"
    with EpisodeWriter(demos, EMBODIMENT, {}) as writer:
        zeros = np.zeros((4, 2), np.float32)
        writer.add(Episode({"agent_pos": zeros}, zeros, zeros[:, 0], True, 0))
    digest = EpisodeStore.open(demos).content_hash()
    assert training_data({"dataset": {"path": str(demos), "hash": digest}}) == demos
    assert training_data({"dataset": {"path": str(demos), "hash": "another"}}) is None
    assert training_data({"dataset": {"path": str(tmp_path / "gone.zarr"), "hash": digest}}) is None
    assert training_data({}) is None
    next((demos / "data" / "action").glob("0*")).write_bytes(b"cut")
    assert training_data({"dataset": {"path": str(demos), "hash": digest}}) is None


def test_what_was_executed_is_what_the_policy_answered(run: Path, tmp_path: Path):
    """The recorded episode ends where its own actions lead."""
    env = make_vector_env(Point, 1)
    record = record_episode(load_policy(run), env, seed=7, sampler=Jump())
    env.close()
    first, later = record.seen[0]["agent_pos"][0], record.seen[1]["agent_pos"][0]  # (To, 2)
    assert torch.equal(first[0], first[1])  # the first observation is repeated
    torch.testing.assert_close(later[1], first[1] + 0.1 * record.chunks[0][0].sum(0))


def test_a_task_with_another_embodiment_is_refused_before_anything_is_written(run: Path, tmp_path: Path):
    other = Embodiment.from_dict(EMBODIMENT.to_dict() | {"control_hz": 50.0})
    task = Task("point", "Point-v0", partial(Point, other))
    with pytest.raises(ValueError, match="control_hz: wanted 10.0, got 50.0"):
        evaluate(run, task, outs={1: tmp_path / "eval"}, episodes=1, envs=1, progress=False)
    assert not (tmp_path / "eval").exists()


@pytest.mark.parametrize(
    "bad",
    [{"episodes": 0}, {"episodes": 2.5}, {"envs": 0}, {"video": -1}, {"start_seed": -1}]
    + [{"outs": outs} for outs in ({}, {0: Path("x")}, {1.5: Path("x")})],
)
def test_impossible_counts_are_refused(run: Path, tmp_path: Path, bad: dict[str, Any]):
    with pytest.raises(ValueError, match="must be|wanted at least one"):
        evaluate(run, TASK, **({"outs": {1: tmp_path / "eval"}, "episodes": 1, "envs": 1, "progress": False} | bad))
    assert not (tmp_path / "eval").exists()


def test_filming_without_a_picture_is_an_error_that_leaves_nothing(run: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="film"):
        evaluate(run, TASK, outs={1: tmp_path / "eval"}, episodes=1, envs=1, video=1, progress=False)
    assert not (tmp_path / "eval").exists()


def test_the_speed_counts_environment_steps(run: Path, tmp_path: Path):
    (one,) = evaluate(run, TASK, outs={1: tmp_path / "eval"}, episodes=2, envs=1, progress=False)
    assert 1.0 < one.summary["env_steps_per_s"] < math.inf


def test_the_progress_bar_does_not_favour_short_episodes():
    """Of four simulators the three that succeed end first."""
    row = {"success_once": True, "solved_at_reset": False}
    found = {7: row, 9: row, 10: row}
    assert success_so_far(found, range(7, 12)) == "success 1.00" and success_so_far({8: row}, range(7, 12)) == ""
    found[8] = row | {"success_once": False}
    assert success_so_far(found, range(7, 12)) == "success 0.75"
    assert success_so_far(found | {11: row | {"solved_at_reset": True}}, range(7, 12)) == "success 0.75"


class Untouched(Point):
    """Whose episodes nobody begins."""

    def reset(self, *, seed=None, options=None):
        raise AssertionError("an episode began")


def foreign_store(path: Path, *, obs: np.ndarray, action: np.ndarray) -> Path:
    """Without an embodiment record, as other programs write them."""
    zarr = pytest.importorskip("zarr")
    root = zarr.open_group(path, mode="w", zarr_format=2)
    for name, value in (("data/agent_pos", obs), ("data/action", action), ("meta/episode_ends", np.array([len(obs)]))):
        root.create_array(name, data=value)
    return path


@pytest.mark.parametrize(
    ("obs", "action", "message"),
    [
        (np.zeros((6, 3)), np.zeros((6, 2)), r"agent_pos is float64 \(3,\) per step, the policy's float32 \(2,\)"),
        (np.zeros((6, 2)), np.zeros((6, 5)), r"action is float64 \(5,\) per step, the policy's float32 \(2,\)"),
        (np.full((6, 2), "a"), np.zeros((6, 2)), r"agent_pos is <U1 \(2,\) per step"),
        (np.full((6, 2), np.nan), np.ones((6, 2)), "NaN or infinity in agent_pos of the first episode"),
    ],
)
def test_demonstrations_that_the_end_could_not_draw_are_refused_before_the_first_episode(
    run: Path, tmp_path: Path, obs: np.ndarray, action: np.ndarray, message: str
):
    store = foreign_store(tmp_path / "theirs.zarr", obs=obs, action=action)
    with pytest.raises(ValueError, match=message):
        evaluate(
            run,
            Task("point", "Point-v0", Untouched),
            outs={1: tmp_path / "eval"},
            episodes=2,
            envs=1,
            demonstrations=store,
            progress=False,
        )
    assert not (tmp_path / "eval").exists()


def test_demonstrations_in_float64_are_drawn(run: Path, tmp_path: Path):
    store = foreign_store(tmp_path / "theirs.zarr", obs=np.ones((6, 2)), action=np.ones((6, 2)))
    (one,) = evaluate(run, TASK, outs={1: tmp_path / "eval"}, episodes=2, envs=1, demonstrations=store, progress=False)
    assert len(json.loads((one.out / "chunks.json").read_text())["panels"]) == 2


@pytest.mark.parametrize("part", ["measure_latency", "write_chunks", "write_json"])
def test_whatever_the_end_needs_is_tried_before_the_first_episode(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
):
    from flowpolicy.evaluation import evaluate as module

    def broken(*arguments: Any, **named: Any) -> None:
        raise ValueError(f"{part} is broken")

    monkeypatch.setattr(module, part, broken)
    with pytest.raises(ValueError, match=f"{part} is broken"):
        evaluate(
            run, Task("point", "Point-v0", Untouched), outs={1: tmp_path / "eval"}, episodes=2, envs=1, progress=False
        )


def test_lines_are_on_the_disk_as_the_episodes_end(run: Path, tmp_path: Path):
    class Ends(Point):
        def reset(self, *, seed=None, options=None):
            if seed == 100_003:
                raise KeyError("the simulator died")
            return super().reset(seed=seed)

    with pytest.raises((KeyError, RuntimeError), match="the simulator died"):
        evaluate(run, Task("point", "Point-v0", Ends), outs={1: tmp_path / "eval"}, episodes=5, envs=1, progress=False)
    rows = lines(tmp_path / ".eval.unfinished" / "results.jsonl")
    assert [row["seed"] for row in rows] == [100_000, 100_001, 100_002]


def test_a_store_whose_record_says_float64_is_refused_by_train_too(tmp_path: Path, capsys: pytest.CaptureFixture):
    from flowpolicy.cli.main import main
    from tests.helpers import write_store

    path = write_store(tmp_path / "own.zarr")
    record = (path / ".zattrs").read_text()
    (path / ".zattrs").write_text(record.replace('"float32"', '"float64"'))
    assert main(["train", f"dataset.path={path}", "task.env=null", f"out={tmp_path / 'run'}"]) == 2
    assert "dtype: wanted float32 or uint8, got 'float64'; correct the record" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
